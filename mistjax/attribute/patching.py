"""Activation patching: put activations of a clean run into a corrupted one, and see how much of the
clean behaviour comes back. What restores it is sufficient for it, given the rest of the corrupted
run; compare Zhang and Nanda, arXiv 2309.16042, for what that does and does not show.

`patch_sweep` is the one sweep: its masks are data, so a sweep over layers, heads or tokens is one
compiled function. The others only build masks.
Source: Meng et al., arXiv 2202.05262 (causal tracing); Vig et al., arXiv 2004.12265.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mistjax.attribute.batching import check_shares, compiled, in_chunks
from mistjax.attribute.readouts import Readout
from mistjax.attribute.sharing import NOTHING, PICTURES, PREFIX, Runs
from mistjax.hooks.edits import Patch
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy


@flax.struct.dataclass
class MaskedPatch(Patch):
    """`Patch` where a mask [L,1,T,*D] in [0, 1] (sizes of 1 broadcast) says so; 1 gives `value`."""

    mask: Float[Array, "l #b t *#d"] = None  # type: ignore[assignment]

    def layer_data(self, depth) -> dict[str, Array]:
        return {**super().layer_data(depth), "mask": self.mask}

    @staticmethod
    def transform(x, coefficient, data) -> Array:
        weight = (coefficient * data["mask"]).astype(x.dtype)
        value = data["value"].astype(x.dtype)
        return jnp.where(weight == 1, value, x + weight * (value - x))


@flax.struct.dataclass
class Restored:
    """What a sweep found.

    Attributes:
        patched: readout of each patched run; the sweep's own axes, then the batch.
        clean: readout of the clean run.
        corrupted: readout of the corrupted run.
    """

    patched: Float[Array, "*sweep b"]
    clean: Float[Array, " b"]
    corrupted: Float[Array, " b"]

    @property
    def share(self) -> Float[Array, "*sweep b"]:
        """0 is the corrupted run, 1 the clean one; NaN or Inf where they do not differ."""
        one = (None,) * (self.patched.ndim - 1)
        start, end = self.corrupted[one], self.clean[one]
        return (self.patched - start) / (end - start)


def patch_sweep(
    policy: Policy,
    clean: Observation,
    corrupted: Observation,
    key: Array,
    readout: Readout,
    site: str,
    masks: Float[Array, "n l t *d"],
    *,
    chunk: int = 8,
) -> Restored:
    """Runs the corrupted observation with clean activations at `site`, once for each mask.

    Args:
        policy: the policy.
        clean: observation with the behaviour in question.
        corrupted: the same batch with something changed.
        key: of the sampling noise, the same in every run.
        readout: what is measured.
        site: `<stack>.<point>`; on `action`, every flow step gets the same step of the clean run.
        masks: what to patch, in [0, 1]: layer, token, and where the site has them heads
            [n,L,T,N,1] or single neurons [n,L,T,F].
        chunk: patched runs in memory at a time, each the whole batch.

    A token that is padding in the corrupted run is not patched. Cost: n + 2 inferences of the
    batch, and the clean activations of the whole stack in memory.

    Raises:
        ValueError: not a site, masks of other layers and tokens than the site has, or outside of
            [0, 1].
    """
    check_shares("masks", masks)
    return _patch_sweep(policy, clean, corrupted, key, readout, site, masks, chunk=chunk)


@compiled
def _patch_sweep(policy, clean, corrupted, key, readout, site, masks, *, chunk):
    tap = Tap(site)
    sample = policy.sample(clean, key, taps=(*readout.taps, tap))
    values, clean_value = sample.taps[str(tap)], readout(sample)
    sizes = dict(zip(tap.axes(values.ndim), values.shape, strict=True))
    layers, tokens = sizes["layer"], sizes["token"]
    if masks.shape[1:3] != (layers, tokens):
        raise ValueError(
            f"masks of shape {masks.shape}: {site} has {layers} layers and {tokens} tokens, so "
            f"expected [n,{layers},{tokens},...]."
        )

    shared = {"vlm": PICTURES, "action": PREFIX}.get(tap.stack, NOTHING)
    runs = Runs.sharing(shared, policy, corrupted, key, readout)

    def run(mask):
        return runs(runs.obs, _edits(site, values, mask))

    masks = jnp.concatenate([masks, jnp.zeros_like(masks[:1])])
    patched = in_chunks(run, masks, chunk)
    return Restored(patched[:-1], clean_value, patched[-1])


def _edits(site: str, values: Array, mask: Array) -> tuple[MaskedPatch, ...]:
    """One patch, or on a stack with steps one for each step."""
    axes = Tap(site).axes(values.ndim)
    steps = axes[0] == "step"
    missing = len(axes) - steps - mask.ndim - 1
    wide = mask.reshape(*mask.shape, *(1,) * missing)[:, None]
    if not steps:
        return (MaskedPatch(site=site, value=values, mask=wide),)
    every = jnp.eye(len(values))
    return tuple(
        MaskedPatch(site=site, value=value, mask=wide, step_weights=only)
        for value, only in zip(values, every, strict=True)
    )


def _sizes(policy: Policy, obs: Observation, key: Array, site: str) -> dict[str, int]:
    """Name of each axis of a site's value -> its size, see `Tap.axes`."""
    tap = Tap(site)
    shape = jax.eval_shape(lambda: policy.sample(obs, key, taps=(tap,)).taps[str(tap)]).shape
    return dict(zip(tap.axes(len(shape)), shape, strict=True))


def patch_layers(policy, clean, corrupted, key, readout, site: str, *, chunk: int = 8) -> Restored:
    """One layer at a time, all its tokens: `patched` is [L,B]."""
    sizes = _sizes(policy, clean, key, site)
    layers, tokens = sizes["layer"], sizes["token"]
    masks = jnp.broadcast_to(jnp.eye(layers)[:, :, None], (layers, layers, tokens))
    return patch_sweep(policy, clean, corrupted, key, readout, site, masks, chunk=chunk)


def patch_tokens(policy, clean, corrupted, key, readout, site: str, *, chunk: int = 8) -> Restored:
    """One layer and token at a time: `patched` is [L,T,B]. Cost: L * T inferences."""
    sizes = _sizes(policy, clean, key, site)
    layers, tokens = sizes["layer"], sizes["token"]
    masks = jnp.eye(layers * tokens).reshape(-1, layers, tokens)
    return _folded(
        patch_sweep(policy, clean, corrupted, key, readout, site, masks, chunk=chunk),
        (layers, tokens),
    )


def patch_heads(policy, clean, corrupted, key, readout, stack: str, *, chunk: int = 8) -> Restored:
    """One attention head at a time, all tokens: `patched` is [L,N,B]. Cost: L * N inferences."""
    site = f"{stack}.attn_heads"
    sizes = _sizes(policy, clean, key, site)
    layers, tokens, heads = sizes["layer"], sizes["token"], sizes["head"]
    masks = jnp.eye(layers * heads).reshape(-1, layers, 1, heads, 1)
    masks = jnp.broadcast_to(masks, (layers * heads, layers, tokens, heads, 1))
    return _folded(
        patch_sweep(policy, clean, corrupted, key, readout, site, masks, chunk=chunk),
        (layers, heads),
    )


def _folded(result: Restored, shape: tuple[int, int]) -> Restored:
    return Restored(result.patched.reshape(*shape, -1), result.clean, result.corrupted)

"""What a policy makes of each token: how much its actions attend to it, how long its vector is, and
what the action expert does without it, or without all tokens of a camera.

The first two are read off one inference, and know nothing of what is explained. Cache ablation is
an intervention that leaves the prefix as it is: the keys of a token stay, so it draws the same
attention, but there is nothing to read (value zeroing). Regions are the vision tower's patches. The
state is one token of pi0 and none of the others: its dimensions get equal shares.

Source: Mohebbi et al., arXiv 2301.12971 (value zeroing). Cost: one inference; cache ablation one
prefix, and the action for each patch, word and state dimension.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.batching import compiled, in_chunks
from mistjax.attribute.inputs import PatchSize, Regions, each_region, per_element
from mistjax.attribute.readouts import Readout
from mistjax.attribute.sharing import PICTURES, Runs
from mistjax.hooks.sites import Tap
from mistjax.models.gemma import MASKED_LOGIT, HeadsIn, RMSNorm, apply_rope
from mistjax.models.observation import Observation
from mistjax.models.pi0 import Pi0, attention_mask
from mistjax.models.sampling import Prefix
from mistjax.models.stacks import token_layouts
from mistjax.policies.pi import PiPolicy
from mistjax.policies.protocol import Policy
from mistjax.policies.wrapper import innermost

_ACTION = Tap("action.resid")


@compiled
def attention_mass(
    policy: Policy, obs: Observation, key: Array, readout: Readout, *, patch: PatchSize
) -> Attribution:
    """The share of the actions' attention that each token gets: the mean over heads, layers, flow
    steps and action tokens. What is missing from 1 goes to the actions themselves.

    Args:
        policy: pi0 or pi0.5.
        obs: a batch.
        key: of the sampling noise.
        readout: its value is reported; it has no part in the shares.
        patch: pixels (height, width) of a vision patch.

    Raises:
        ValueError: another kind of policy, or other patches than the vision tower's.
    """
    inner = innermost(policy)
    if not isinstance(inner, PiPolicy) or not isinstance(inner.model, Pi0):
        raise ValueError(
            f"attention mass is read from pi0 and pi0.5, and this is a {type(inner).__name__}: "
            "choose another method."
        )
    _check_patch(policy, patch)
    prefix = policy.prefill(obs, taps=readout.taps)
    sample = policy.sample(obs, key, taps=(*readout.taps, _ACTION), prefix=prefix)
    weights = action_attention(inner, obs, prefix, sample).mean(axis=(0, 1, 5))  # [B,T,S]
    length = prefix.valid.shape[1]
    mass = weights[:, -inner.config.action_horizon :].mean(axis=1)
    state = jnp.zeros(len(mass)) if inner.config.pi05 else mass[:, length]
    return _unsigned(obs, mass[:, :length], state, readout(sample), patch)


def action_attention(
    policy: PiPolicy, obs: Observation, prefix: Prefix, sample: Any
) -> Float[Array, "n l b t s h"]:
    """Attention weights of the action expert at every flow step and layer: from its own tokens to
    those of the prefix and its own.

    Args:
        policy: pi0 or pi0.5, without a wrapper.
        obs: what was seen.
        prefix: of the observation.
        sample: with the tap `action.resid` of all layers and tokens.
    """
    velocity = jnp.moveaxis(sample.aux["velocity"], 1, 0)
    count = len(velocity)
    noisy = sample.actions[None] + jnp.cumsum(velocity[::-1], axis=0)[::-1] / count
    config, layers = policy.config, policy.variables["params"]["PaliGemma"]["llm"]["layers"]
    expert = config.action_expert
    heads, groups = expert.num_heads, expert.num_heads // expert.num_kv_heads
    shapes = (
        {"qkv_einsum_1": (3, heads, expert.width, expert.head_dim)}
        if groups == 1
        else {
            "q_einsum_1": (heads, expert.width, expert.head_dim),
            "kv_einsum_1": (2, expert.num_kv_heads, expert.width, expert.head_dim),
        }
    )

    def at_step(x_t, step, after):
        t = jnp.full(obs.batch_size, 1.0 - step / count)
        suffix: Any = policy.model.apply(policy.variables, obs.state, x_t, t, method="embed_suffix")
        tokens, valid, ar, condition = suffix
        seen = jnp.broadcast_to(prefix.valid[:, None], (*valid.shape, prefix.valid.shape[1]))
        mask = jnp.concatenate([seen, attention_mask(valid, ar)], axis=-1)
        positions = prefix.valid.sum(1, keepdims=True) + jnp.cumsum(valid, axis=1) - 1
        before = jnp.concatenate([tokens.astype(after.dtype)[None], after[:-1]])

        def layer(x, params, cached):
            norm = {"params": params["pre_attention_norm_1"]}
            normed: Any = RMSNorm().apply(norm, x, condition)
            parts: list[Any] = [
                HeadsIn(shape, (len(shape) - 2,)).apply({"params": params["attn"][name]}, normed[0])
                for name, shape in shapes.items()
            ]
            joined = jnp.concatenate(parts, axis=2)  # queries, keys, values
            q = apply_rope(joined[:, :, :heads], positions) * expert.head_dim**-0.5
            own = joined[:, :, heads : heads + expert.num_kv_heads]
            keys = jnp.concatenate([cached, apply_rope(own, positions)], axis=1)
            logits = jnp.einsum("btnh,bsnh->btsn", q, jnp.repeat(keys, groups, axis=2))
            logits = jnp.where(mask[..., None], logits.astype(jnp.float32), MASKED_LOGIT)
            return jax.nn.softmax(logits, axis=2)

        return jax.vmap(layer)(before, layers, prefix.cache[0])

    steps = jnp.arange(count, dtype=jnp.float32)
    return jax.vmap(at_step)(noisy, steps, sample.taps[str(_ACTION)])


@compiled
def token_norm(
    policy: Policy, obs: Observation, key: Array, readout: Readout, *, patch: PatchSize
) -> Attribution:
    """The norm of each token's vector after the last layer of the VLM, and of pi0's state token
    after the last of the action expert; arguments as for `attention_mass`. Their units differ.

    Raises:
        ValueError: another kind of policy than pi0, pi0.5 and pi0-FAST, or other patches than the
            vision tower's.
    """
    inner = innermost(policy)
    if not isinstance(inner, PiPolicy):
        raise ValueError(
            f"token norms are read from pi0, pi0.5 and pi0-FAST, and this is a "
            f"{type(inner).__name__}: choose another method."
        )
    _check_patch(policy, patch)
    parts = [Tap("vlm.resid", (-1,), name) for name in (*obs.images, "text")]
    layout = token_layouts(inner.config)["action"]
    own = [Tap("action.resid", (-1,), "state")] if "state" in layout.segments else []
    sample = policy.sample(obs, key, taps=(*readout.taps, *parts, *own))
    lengths = [jnp.linalg.norm(sample.taps[str(tap)][0], axis=-1) for tap in parts]
    state = [jnp.linalg.norm(sample.taps[str(tap)], axis=-1).mean((0, 1, 3)) for tap in own]
    text = jnp.where(jnp.asarray(obs.tokenized_prompt_mask), lengths[-1], 0.0)
    tokens = jnp.concatenate([*lengths[:-1], text], axis=1)
    none = jnp.zeros(obs.batch_size)
    return _unsigned(obs, tokens, state[0] if state else none, readout(sample), patch)


@compiled
def cache_ablation(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    *,
    patch: PatchSize,
    chunk: int = 8,
) -> Attribution:
    """Readout minus the readout where the action expert cannot read one token's values; a state
    dimension is set to 0 instead.

    Args:
        policy: one whose `prefill` is a cache of keys and values: pi0, pi0.5, pi0-FAST.
        obs, key, patch: as for `attention_mass`.
        readout: what is measured. What the prefix decides alone, such as a tap of the VLM, does
            not change.
        chunk: ablations in memory at a time, each the whole batch.

    Raises:
        ValueError: another kind of policy, or other patches than the vision tower's.
    """
    unravel, size = each_region(policy, obs, patch)
    masks = jnp.eye(size + 2, size, dtype=jnp.float32).at[size + 1].set(1.0)
    values = ablated(policy, obs, key, readout, jax.vmap(unravel)(masks), patch=patch, chunk=chunk)
    changes, value, start = values[size, None] - values[:size], values[size], values[size + 1]
    return Attribution.signed(per_element(unravel, changes.T), value, start, patch)


@compiled
def ablated(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    regions: Regions,
    *,
    patch: PatchSize,
    chunk: int = 8,
) -> Float[Array, "n b"]:
    """The readout after each of n cache ablations; `regions` as for `effects`."""
    _check_patch(policy, patch)
    prefix = policy.prefill(obs, taps=readout.taps)
    if not isinstance(prefix, Prefix):
        raise ValueError(
            f"{policy.spec.name!r} has no cache of keys and values to ablate: choose occlusion, "
            "which works for every policy."
        )
    keys, values = prefix.cache

    def run(region: Regions):
        flat = [grid.reshape(len(grid), -1) for grid in region.images.values()]
        kept = 1 - jnp.concatenate([*flat, region.text], axis=1)
        left = (values * kept[None, :, :, None, None]).astype(values.dtype)
        state = obs.state * (1 - region.state)
        sample = policy.sample(
            dataclasses.replace(obs, state=state),
            key,
            taps=readout.taps,
            prefix=dataclasses.replace(prefix, cache=(keys, left)),
        )
        return readout(sample)

    return in_chunks(run, regions, chunk)


def _check_patch(policy: Policy, patch: PatchSize) -> None:
    if tuple(patch) != tuple(policy.patch):
        raise ValueError(
            f"regions of {patch} pixels: a token is a vision patch, so expected {policy.patch}."
        )


def _unsigned(
    obs: Observation,
    tokens: Float[Array, "b p"],
    state: Float[Array, " b"],
    value: Float[Array, " b"],
    patch: PatchSize,
) -> Attribution:
    """Numbers of the prefix's tokens, and of the state as a whole."""
    images, start = {}, 0
    for name, picture in obs.images.items():
        grid = (picture.shape[1] // patch[0], picture.shape[2] // patch[1])
        stop = start + grid[0] * grid[1]
        images[name] = tokens[:, start:stop].reshape(-1, *grid)
        start = stop
    dims = obs.state.shape[1]
    parts = Regions(images, tokens[:, start:], jnp.repeat(state[:, None] / dims, dims, axis=1))
    return Attribution.unsigned(parts, value, jnp.full_like(value, jnp.nan), patch)


@compiled
def camera_masking(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    *,
    patch: PatchSize,
    chunk: int = 8,
) -> Attribution:
    """Readout minus the readout where no token may look at those of a camera, shared evenly by the
    camera's patches; words and state are not masked and get 0. Arguments as for `cache_ablation`;
    the baseline is all cameras masked.

    Cost: two inferences, and one a camera.
    """
    names = list(obs.images)
    seen = ~jnp.eye(len(names) + 2, len(names), dtype=bool)  # one camera masked each; then all
    seen = seen.at[-1].set(False)

    runs = Runs.sharing(PICTURES, policy, obs, key, readout)

    def run(row):
        there = {name: jnp.asarray(obs.image_masks[name]) & row[i] for i, name in enumerate(names)}
        return runs(dataclasses.replace(runs.obs, image_masks={**obs.image_masks, **there}))

    values = in_chunks(run, seen, chunk)
    value, images = values[-2], {}
    for i, name in enumerate(names):
        rows, columns = obs.images[name].shape[1] // patch[0], obs.images[name].shape[2] // patch[1]
        each = (value - values[i]) / (rows * columns)
        images[name] = jnp.broadcast_to(each[:, None, None], (len(each), rows, columns))
    rest = (jnp.zeros(jnp.shape(x), jnp.float32) for x in (obs.tokenized_prompt, obs.state))
    return Attribution.signed(Regions(images, *rest), value, values[-1], patch)

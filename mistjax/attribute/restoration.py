"""Corrupt an input, then put clean activations back unit by unit: what carries the action?

The readout of a unit u is R(u), the share of the way from the corrupted chunk back to the clean one
along the line between them: 0 restores nothing, 1 all of it. Of a policy that writes tokens it is
measured in the log-probability of the clean run's tokens. Units are whole stacks, layers, layers x
heads, layers x tokens; see `patching` for what restoring does and does not show.

Source: causal tracing (Meng et al., arXiv 2202.05262) with the normalised restoration of Zhang and
Nanda, arXiv 2309.16042, on chunks of actions. Cost: an inference per unit; the sweep over tokens
takes layers x tokens of them.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.attribute.inputs import Baseline, Inputs, Regions, replaced
from mistjax.attribute.interventional import occlusion
from mistjax.attribute.patching import patch_heads, patch_layers, patch_sweep, patch_tokens
from mistjax.attribute.readouts import ActionContrast, ActionKept, Readout, TokenLogProbability
from mistjax.attribute.text import leave_one_out, word_spans
from mistjax.envs.faults.battery import input_name
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, RawObs, WritingPolicy
from mistjax.policies.wrapper import language

PATCH, WORD, TEXT, STATE = "patch", "word", "text", "state"
UNITS = ("stacks", "layers", "heads", "tokens")


@dataclasses.dataclass(frozen=True)
class Corruption:
    """What was done to an observation.

    Attributes:
        obs: the corrupted observation.
        said: the same in words.
        without: each word, and how far the chunk moves without it, in model units, or by how many
            nats its tokens are less likely. Of the corruption `word` alone.
    """

    obs: Observation
    said: str
    without: tuple[tuple[str, float], ...] = ()


def corruptions(policy: Policy) -> tuple[str, ...]:
    """What `corrupt` knows: a camera, the text, the state, the strongest patch or word."""
    cameras = [input_name(key) for key in policy.spec.cameras.values()]
    return (PATCH, WORD, *cameras, TEXT, STATE)


def corrupt(
    policy: Policy,
    raw: RawObs,
    key: Array,
    what: str,
    *,
    prompt: str | None = None,
    baseline: Baseline = Baseline(),
) -> Corruption:
    """One observation with something taken out of it, or with another prompt.

    Args:
        policy: the policy.
        raw: what the policy saw.
        key: of the sampling noise.
        what: one of `corruptions`: an input is replaced by its baseline, as is the patch whose
            replacement moves the chunk most (or makes its tokens least likely); the word without
            which it moves most is left out.
        prompt: in place of all that, another prompt.
        baseline: what is put in place of pictures and words.

    Raises:
        ValueError: nothing is called `what`, or the prompt has no words.
    """
    if prompt is not None:
        obs = policy.prepare([{**raw, "prompt": prompt}])
        return Corruption(jax.tree.map(jnp.asarray, obs), f"the prompt is “{prompt}”")
    if what not in corruptions(policy):
        raise ValueError(
            f"nothing to corrupt is called {what!r}: choose one of "
            f"{', '.join(corruptions(policy))}, or give another prompt."
        )
    obs = jax.tree.map(jnp.asarray, policy.prepare([raw]))
    own = policy.sample(obs, key).actions
    kept: Readout = ActionKept(own)
    measured = policy
    if isinstance(policy, WritingPolicy):
        measured, kept = policy.saying(obs, key), TokenLogProbability()
    if what == WORD:
        (words,), spans = word_spans(language(policy).tokenizer, obs)
        if not words:
            raise ValueError("the prompt has no words to leave out: corrupt a camera or the state.")
        effect = np.asarray(leave_one_out(measured, obs, key, kept, spans))[:, 0]
        strongest = int(np.argmax(effect))
        left = jnp.asarray(obs.tokenized_prompt_mask) & ~jnp.asarray(spans[strongest])
        shorter = dataclasses.replace(obs, tokenized_prompt_mask=left)
        far = effect if measured is not policy else np.sqrt(np.maximum(effect, 0) * own[0].size)
        each = [(word.text, float(e)) for word, e in zip(words, far, strict=True)]
        said = f"the word “{words[strongest].text}” is left out"
        return Corruption(shorter, said, tuple(each))
    inputs = Inputs.of(policy, obs)
    region = Regions.full(inputs, policy.patch, 0.0)
    names = {input_name(key): name for name, key in policy.spec.cameras.items()}
    if what == PATCH:
        found = occlusion(measured, obs, key, kept, patch=policy.patch, baseline=baseline)
        grids = {name: np.asarray(grid[0]) for name, grid in found.images.items()}
        camera = max(grids, key=lambda name: grids[name].max())
        at = np.unravel_index(grids[camera].argmax(), grids[camera].shape)
        images = {**region.images, camera: region.images[camera].at[0, at[0], at[1]].set(1.0)}
        region = dataclasses.replace(region, images=images)
        said = f"patch row {at[0] + 1} column {at[1] + 1} of camera {camera} is blurred"
    elif what in names:
        whole = jnp.ones_like(region.images[names[what]])
        region = dataclasses.replace(region, images={**region.images, names[what]: whole})
        said = f"camera {what} is {baseline.image}"
    else:
        whole = jnp.ones_like(getattr(region, what))
        region = dataclasses.replace(region, **{what: whole})
        said = f"the {input_name(what)} is at its baseline"
    start = baseline.inputs(policy, obs, inputs)
    return Corruption(replaced(inputs, start, region, policy.patch).into(obs), said)


@flax.struct.dataclass
class Restoration:
    """R(u) of one moment, by unit. The names are those of stacks.

    Attributes:
        moved: distance between the clean and the corrupted chunk, in model units; of tokens, by how
            many nats the corruption makes the clean run's less likely.
        stacks: all layers and tokens of a stack.
        layers: all tokens of a layer's residual stream, [L].
        heads: a head of a layer, [L,N].
        tokens: a token of a layer's residual stream, [L,T].
    """

    moved: float
    stacks: dict[str, float]
    layers: dict[str, Float[np.ndarray, " l"]]
    heads: dict[str, Float[np.ndarray, "l n"]]
    tokens: dict[str, Float[np.ndarray, "l t"]]


def restore(
    policy: Policy,
    clean: Observation,
    corrupted: Observation,
    key: Array,
    *,
    stacks: tuple[str, ...] = ("vision", "vlm", "action"),
    units: tuple[str, ...] = UNITS,
    chunk: int = 8,
) -> Restoration:
    """Restores a corrupted moment, one unit at a time.

    Args:
        policy: the policy.
        clean: a batch of one.
        corrupted: the same with something changed.
        key: of the sampling noise.
        stacks: whose activations are put back.
        units: of `UNITS`. Tokens are those of the VLM only, heads those of other stacks than
            `vision`.
        chunk: restored runs in memory at a time.

    Raises:
        ValueError: the corruption does not move the action, or see `patch_sweep`.
    """
    if isinstance(policy, WritingPolicy):
        policy, readout = policy.saying(clean, key), TokenLogProbability()
        own, other = (readout(policy.sample(obs, key)) for obs in (clean, corrupted))
        moved, unit = float((own - other)[0]), "nats"
    else:
        own, other = (policy.sample(obs, key).actions for obs in (clean, corrupted))
        readout = ActionContrast(other, own - other)
        moved, unit = float(jnp.sqrt(jnp.square(own - other).sum())), "model units"
    if abs(moved) < 1e-4:
        raise ValueError(
            f"the corruption moves the action by {moved:.1e} {unit}: there is nothing to "
            "restore; corrupt something else."
        )
    args = (policy, clean, corrupted, key, readout)

    def share(found) -> np.ndarray:
        return np.asarray(found.share)[..., 0]

    whole, layers, heads, tokens = {}, {}, {}, {}
    for stack in stacks:
        sizes, site = policy.spec.stacks[stack], f"{stack}.resid"
        if "stacks" in units:
            everything = jnp.ones((1, sizes.depth, sizes.layout.length))
            whole[stack] = float(share(patch_sweep(*args, site, everything, chunk=chunk))[0])
        if "layers" in units:
            layers[stack] = share(patch_layers(*args, site, chunk=chunk))
        if "heads" in units and stack != "vision":
            heads[stack] = share(patch_heads(*args, stack, chunk=chunk))
        if "tokens" in units and stack == "vlm":
            tokens[stack] = share(patch_tokens(*args, site, chunk=chunk))
    return Restoration(moved, whole, layers, heads, tokens)

"""From an attribution to a cause: which modality, which regions, which words raised the readout.

`localise` is pure and jittable, for use inside a monitor's program. `describe` runs on the host,
finds the names and writes one sentence. Both count positive attribution alone: what raised the
readout, not what held it down.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.text import Word, words_of
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Pieces


@flax.struct.dataclass
class Cause:
    """Where a readout comes from; shares are of all positive attribution of the batch element.

    Attributes:
        modalities: the cameras in the order of the attribution, then "text" and "state".
        modality: index of the largest share.
        shares: of each modality; they sum to 1, or are all 0 where nothing is positive.
        found: whether there is any positive attribution.
        finite: whether every number of the attribution is finite.
        patches: per camera the strongest patches, (row, column) from the top left.
        patch_shares: of those patches.
        boxes: the same patches in pixels of the model's image: top, left, bottom, right.
        tokens: positions of the strongest prompt tokens.
        token_shares: of those tokens.
        dims: the strongest state dimensions.
        dim_shares: of those dimensions.
    """

    modalities: tuple[str, ...] = flax.struct.field(pytree_node=False)
    modality: Int[Array, " b"]
    shares: Float[Array, "b m"]
    found: Bool[Array, " b"]
    finite: Bool[Array, " b"]
    patches: Int[Array, "b c k 2"]
    patch_shares: Float[Array, "b c k"]
    boxes: Int[Array, "b c k 4"]
    tokens: Int[Array, "b kt"]
    token_shares: Float[Array, "b kt"]
    dims: Int[Array, "b ks"]
    dim_shares: Float[Array, "b ks"]


def localise(attribution: Attribution, top: int = 3) -> Cause:
    """The cause of each element; `top` regions, words and dimensions of each modality (fewer if
    there are no more). NaN and infinite entries of the attribution count as 0.

    Raises:
        ValueError: `top` is below 1.
    """
    if top < 1:
        raise ValueError(f"top is {top}: expected at least 1 region, word and dimension to name.")
    found = [_positive(part) for part in (*attribution.images.values(), attribution.text)]
    found = [part.reshape(len(part), -1) for part in (*found, _positive(attribution.state))]
    peak = jnp.max(jnp.concatenate(found, axis=1), axis=1, keepdims=True)
    peak = jnp.where(peak >= jnp.finfo(peak.dtype).tiny, peak, jnp.inf)  # shares of 0 if nothing is
    *cameras, text, state = (part / peak for part in found)  # at most 1, so that no sum overflows
    masses = jnp.stack([part.sum(axis=1) for part in (*cameras, text, state)], axis=1)
    total = masses.sum(axis=1, keepdims=True)
    scale = 1 / jnp.maximum(total, 1)

    columns = next(iter(attribution.images.values())).shape[2]
    best = [_top(flat * scale, top) for flat in cameras]
    patch_shares = jnp.stack([share for share, _ in best], axis=1)
    index = jnp.stack([index for _, index in best], axis=1)
    patches = jnp.stack([index // columns, index % columns], axis=-1)
    size = jnp.array(attribution.patch)[None, None, None]
    corner = patches * size
    token_shares, tokens = _top(text * scale, top)
    dim_shares, dims = _top(state * scale, top)
    return Cause(
        modalities=(*attribution.images, "text", "state"),
        modality=jnp.argmax(masses, axis=1),
        shares=masses * scale,
        found=total[:, 0] > 0,
        finite=_all_finite([*attribution.images.values(), attribution.text, attribution.state]),
        patches=patches,
        patch_shares=patch_shares,
        boxes=jnp.concatenate([corner, corner + size], axis=-1),
        tokens=tokens,
        token_shares=token_shares,
        dims=dims,
        dim_shares=dim_shares,
    )


def _all_finite(parts: Sequence[Array]) -> Bool[Array, " b"]:
    rows = [jnp.isfinite(part).reshape(len(part), -1).all(axis=1) for part in parts]
    return jnp.stack(rows).all(axis=0)


def _positive(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x) & (x > 0), x, 0)


def _top(shares: Array, count: int) -> tuple[Array, Array]:
    values, index = jax.lax.top_k(shares, min(count, shares.shape[1]))
    return values, index


def describe(
    cause: Cause,
    obs: Observation,
    tokenizer: Pieces,
    *,
    what: str = "failure score",
    state_names: Sequence[str] = (),
) -> list[str]:
    """One sentence each: the modality, then the strongest regions, words and state dimensions.

    Args:
        cause: of the same batch.
        obs: the observation that was explained.
        tokenizer: names the prompt's tokens.
        what: the readout's name.
        state_names: of the state's dimensions; "state 3" for those without a name.
    """
    host = jax.tree.map(np.asarray, cause)
    return [_sentence(host, obs, tokenizer, what, state_names, b) for b in range(len(host.found))]


def named_words(
    cause: Cause, obs: Observation, tokenizer: Pieces, row: int, state_names: Sequence[str] = ()
) -> list[tuple[str, float]]:
    """(word, share) of one element's strongest tokens, strongest first; tokens of one word add up.

    A number of the state that the prompt holds goes by its dimension's name.
    """
    tokens, mask = np.asarray(obs.tokenized_prompt[row]), np.asarray(obs.tokenized_prompt_mask[row])
    words = _state_named(words_of(tokenizer, tokens, mask), state_names)
    pairs = list(
        zip(np.asarray(cause.tokens[row]), np.asarray(cause.token_shares[row]), strict=True)
    )
    named = [
        (word.text, float(sum(share for i, share in pairs if word.start <= i < word.stop)))
        for word in words
    ]
    return sorted((pair for pair in named if pair[1] > 0), key=lambda pair: -pair[1])


def _sentence(cause: Cause, obs, tokenizer, what, state_names, b: int) -> str:
    if not cause.finite[b]:
        return f"The attribution of the {what} holds NaN or Inf: it names no cause."
    if not cause.found[b]:
        return f"Nothing in the observation raises the {what} above its baseline."
    order = np.argsort(-cause.shares[b], kind="stable")
    shares = [f"{_spoken(cause.modalities[m])} ({cause.shares[b, m]:.0%})" for m in order]
    first = int(order[0])
    sentence = f"The {what} comes mostly from {shares[0]}"
    if first < len(cause.modalities) - 2:
        seen = [i for i, share in enumerate(cause.patch_shares[b, first]) if share > 0]
        sentence += f", {_listed([_region(cause, b, first, i) for i in seen])}"
    elif cause.modalities[first] == "text":
        words = named_words(cause, obs, tokenizer, b, state_names)
        if words:
            sentence += f", {_listed([f'“{word}” ({share:.0%})' for word, share in words])}"
    else:
        dims = [
            f"{_state_name(state_names, int(dim))} ({share:.0%})"
            for dim, share in zip(cause.dims[b], cause.dim_shares[b], strict=True)
            if share > 0
        ]
        sentence += f", {_listed(dims)}"
    return f"{sentence}; then {_listed(shares[1:])}."


def _state_named(words: Sequence[Word], names: Sequence[str]) -> list[Word]:
    """The words of a prompt `Task: TEXT, State: 12 251;` (pi0.5, pi0-FAST) as what they stand for;
    other prompts as they are.
    """
    text = [word.text for word in words]
    if text[:1] != ["Task:"] or "State:" not in text:
        return list(words)
    begin = len(text) - 1 - text[::-1].index("State:")
    end = next((i for i in range(begin + 1, len(text)) if text[i].endswith(";")), len(text) - 1)
    text[begin - 1] = text[begin - 1].removesuffix(",")
    for i in range(begin + 1, end + 1):
        value = text[i].removesuffix(";")
        text[i] = f"{_state_name(names, i - begin - 1)} (written as {value})"
    return [word._replace(text=said) for word, said in zip(words, text, strict=True)]


def _region(cause: Cause, b: int, camera: int, i: int) -> str:
    row, column = cause.patches[b, camera, i]
    top, left, bottom, right = cause.boxes[b, camera, i]
    pixels = f"pixels {left}-{right} across, {top}-{bottom} down"
    share = cause.patch_shares[b, camera, i]
    return f"patch row {row + 1} column {column + 1} ({pixels}; {share:.0%})"


def _spoken(modality: str) -> str:
    named = {"text": "the instruction", "state": "the robot state"}
    return named.get(modality, f"camera {modality}")


def _state_name(names: Sequence[str], dim: int) -> str:
    return names[dim] if dim < len(names) else f"state {dim}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

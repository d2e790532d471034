"""Sparse features of a policy's activations: a TopK autoencoder, and what stands in for them.

Each activation of a token is written as a sum of k of many directions. Features that no token used
in an epoch are reset to the tokens that were reconstructed worst.

Source: TopK: Gao et al., arXiv 2406.04093. Resetting dead features: Bricken et al., "Towards
Monosemanticity" (2023).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mistjax.detect.methods.sparse import SparseCoder
from mistjax.detect.sparse import FIELDS
from mistjax.hooks.edits import Affine, Sparse
from mistjax.hooks.sites import Tap, resolve_layers
from mistjax.policies.protocol import PolicySpec
from mistjax.rollouts.run import Run
from mistjax.steer.vectors import Provenance, SteeringVector


class Epoch(NamedTuple):
    """Of one epoch: share of the variance left over, and features that no token used."""

    unexplained: float
    dead: int


class _State(NamedTuple):
    params: dict[str, Array]
    moments: Any


def token_activations(run: Run, tap: Tap) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    """What a tap recorded of single tokens, at every inference and flow step; and the place of each
    one's episode in `run.finished`.

    Padding of a prompt is among the tokens of `text`: choose a segment without.

    Raises:
        ValueError: a reduced tap, one of several layers, or one that was not recorded.
    """
    if tap.reduce is not None or tap.layers is None or len(tap.layers) != 1:
        raise ValueError(
            f"{tap} is not of the single tokens of one layer: record one such as "
            "'action.resid@-1/action/tokens'."
        )
    name, parts, episodes = str(tap), [], []
    for place, trace in enumerate(run.traces()):
        if name not in trace.features:
            raise ValueError(f"tap {name!r} was not recorded: there are {sorted(trace.features)}.")
        values = trace.features[name].astype(np.float32)
        values = values.reshape(-1, values.shape[-1])
        parts.append(values)
        episodes.append(np.full(len(values), place))
    if not parts:
        raise ValueError("the run has no finished episode: nothing to take activations from.")
    return np.concatenate(parts), np.concatenate(episodes)


def train_coder(
    tokens: Float[np.ndarray, "n d"],
    *,
    features: int = 512,
    k: int = 16,
    epochs: int = 20,
    batch: int = 512,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> tuple[SparseCoder, list[Epoch]]:
    """Trains an autoencoder; one compiled program per epoch.

    Args:
        tokens: activations.
        features: number of features.
        k: active features per token.
        epochs: at least 1.
        batch: tokens per update; all of them if there are fewer.
        learning_rate: of Adam.
        seed: of weights and order.

    Raises:
        ValueError: numbers below 1, `k` above `features`, or tokens that are not finite or all
            the same.
    """
    if min(features, k, epochs, batch) < 1 or k > features or not learning_rate > 0:
        raise ValueError(
            f"{features} features, {k} per token, {epochs} epochs, batches of {batch}, learning "
            f"rate {learning_rate}: expected all above 0, and no more per token than there are."
        )
    if not np.isfinite(tokens).all() or not (spread := float(tokens.var(0).sum())) > 0:
        raise ValueError(f"{len(tokens)} activations are not finite, or all the same.")
    batch = min(batch, len(tokens))
    mean = jnp.asarray(tokens.mean(0))
    centred = jnp.asarray(tokens) - mean[None]
    size = float(np.sqrt(spread))  # so that the learning rate means the same for every stack
    centred = centred / size
    key = jax.random.key(seed)
    start = jax.random.normal(key, (features, tokens.shape[1]))
    start = start / jnp.linalg.norm(start, axis=1, keepdims=True)
    params = {"encoder": start.T, "bias": jnp.zeros(features), "decoder": start}
    rule = optax.adam(learning_rate)
    state, history = _State(params, rule.init(params)), []
    for epoch in range(epochs):
        again = epoch < epochs - 1  # what is reset needs an epoch to learn
        state, (lost, dead) = _epoch(
            state, centred, jax.random.fold_in(key, epoch + 1), rule, k, batch, again
        )
        history.append(Epoch(float(lost), int(dead)))
    found = state.params
    coder = SparseCoder(found["encoder"], found["bias"] * size, found["decoder"], mean, k)
    return coder, history


@functools.partial(jax.jit, static_argnames=("rule", "k", "batch", "again"))
def _epoch(state: _State, tokens: Array, key: Array, rule: Any, k: int, batch: int, again: bool):
    count = len(tokens) // batch
    order = jax.random.permutation(key, len(tokens))[: count * batch].reshape(count, batch)
    zero = jnp.zeros(tokens.shape[1])

    def loss(params, x):
        code = Sparse.encode(x, params["encoder"], params["bias"], zero, k)
        lost = jnp.sum((code @ params["decoder"] - x) ** 2, axis=1)
        return jnp.mean(lost), (jnp.any(code > 0, axis=0), lost)

    def update(carry, rows):
        state, used = carry
        (value, (fired, _)), slope = jax.value_and_grad(loss, has_aux=True)(
            state.params, tokens[rows]
        )
        step, moments = rule.update(slope, state.moments, state.params)
        params: dict[str, Any] = optax.apply_updates(state.params, step)  # type: ignore
        length = jnp.linalg.norm(params["decoder"], axis=1, keepdims=True)
        params["decoder"] = params["decoder"] / jnp.maximum(length, 1e-8)
        return (_State(params, moments), used | fired), value

    used = jnp.zeros(state.params["bias"].shape, bool)
    (state, used), lost = jax.lax.scan(update, (state, used), order)
    if again:
        state = _restarted(state, used, tokens, loss, k)
    total = jnp.mean(jnp.sum(tokens**2, axis=1))
    return state, (jnp.mean(lost) / total, jnp.sum(~used))


def _restarted(state: _State, used: Array, tokens: Array, loss: Any, k: int) -> _State:
    """Unused features point at the tokens that were reconstructed worst, and lose their moments."""
    params = state.params
    some = tokens[: min(len(tokens), 8192)]
    _, (_, lost) = loss(params, some)
    worst = jnp.argsort(-lost)
    turn = jnp.cumsum(~used) - 1
    chosen = some[worst[jnp.where(used, 0, turn) % len(some)]]
    unit = chosen / jnp.maximum(jnp.linalg.norm(chosen, axis=1, keepdims=True), 1e-8)
    size = jnp.mean(jnp.linalg.norm(params["encoder"], axis=0), where=used)
    new = {
        "encoder": jnp.where(used[None], params["encoder"], size * unit.T),
        "bias": jnp.where(used, params["bias"], 0.0),
        "decoder": jnp.where(used[:, None], params["decoder"], unit),
    }
    keep = {"encoder": used[None], "bias": used, "decoder": used[:, None]}

    def forget(tree: Any) -> Any:
        own = isinstance(tree, dict) and tree.keys() == keep.keys()
        return {n: jnp.where(keep[n], tree[n], 0.0) for n in tree} if own else tree

    moments = jax.tree.map(forget, state.moments, is_leaf=lambda tree: isinstance(tree, dict))
    return _State(new, moments)


def unexplained(stand_in: Float[np.ndarray, "n d"], tokens: Float[np.ndarray, "n d"]) -> float:
    """Share of the tokens' variance that their stand-in leaves unexplained."""
    return float(((stand_in - tokens) ** 2).sum() / ((tokens - tokens.mean(0)) ** 2).sum())


def principal(
    tokens: Float[np.ndarray, "n d"], count: int
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """The tokens' mean, and the projection onto their first principal components."""
    mean = tokens.mean(0)
    _, _, axes = np.linalg.svd(tokens - mean, full_matrices=False)
    return mean, axes[:count].T @ axes[:count]


def random_coder(
    coder: SparseCoder, tokens: Float[np.ndarray, "n d"], seed: int = 0
) -> SparseCoder:
    """As many random directions, of which the k nearest stand for each token.

    Their activations have the one size that reconstructs the tokens best (least squares).
    """
    count, width = coder.decoder.shape
    drawn = jax.random.normal(jax.random.key(seed), (count, width))
    drawn = drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
    plain = coder.replace(  # type: ignore[attr-defined]
        encoder=drawn.T, bias=jnp.zeros(count), decoder=drawn, mean=jnp.asarray(tokens.mean(0))
    )
    some = tokens[:: max(1, len(tokens) // 8192)]
    written = np.asarray(plain.encode(jnp.asarray(some)) @ drawn)
    size = np.sum((some - tokens.mean(0)) * written) / max(np.sum(written**2), 1e-12)
    return plain.replace(encoder=jnp.float32(size) * drawn.T)


def replacements(
    coder: SparseCoder, tokens: Float[np.ndarray, "n d"], tap: Tap, spec: PolicySpec
) -> dict[str, Sparse | Affine]:
    """What stands in for every token of a tap: the features; as controls, as many principal
    components of the tokens, or as many random directions; and, as the floor, the tokens' mean.

    Costs two copies of the autoencoder for each layer of the stack.
    """
    depth, width = spec.stacks[tap.stack].depth, tokens.shape[1]
    (layer,) = resolve_layers(tap.layers, depth)
    gate = jnp.zeros(depth).at[layer].set(1.0)
    mean, onto = principal(tokens, coder.k)

    def tiled(array: Any) -> Array:
        return jnp.broadcast_to(jnp.asarray(array, jnp.float32), (depth, *np.shape(array)))

    def affine(weight: np.ndarray) -> Affine:
        change = weight - np.eye(width)
        return Affine(
            site=tap.site,
            tokens=tap.tokens,
            gate=gate,
            weight=tiled(change),
            bias=tiled(mean - mean @ weight),
        )

    def sparse(coder: SparseCoder) -> Sparse:
        arrays = {name: tiled(getattr(coder, name)) for name in FIELDS}
        return Sparse(site=tap.site, tokens=tap.tokens, gate=gate, k=coder.k, **arrays)

    return {
        "features": sparse(coder),
        "random_directions": sparse(random_coder(coder, tokens)),
        "principal_components": affine(onto),
        "mean": affine(np.zeros((width, width))),
    }


def feature_vector(
    coder: SparseCoder, feature: int, size: float, tap: Tap, spec: PolicySpec
) -> SteeringVector:
    """The direction of a feature; strength 1 adds `size`, its activation where it is strong."""
    depth = spec.stacks[tap.stack].depth
    layers = resolve_layers(tap.layers, depth)
    at = jnp.zeros(depth).at[jnp.array(layers)].set(1.0)
    provenance = Provenance(
        spec.fingerprint, "feature_vector", {"feature": feature, "tap": str(tap), "size": size}
    )
    return SteeringVector(
        at[:, None] * coder.decoder[feature][None],
        at * size,
        at,
        tap.site,
        tap.tokens,
        provenance,
    )

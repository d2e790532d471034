"""SAFE's training losses: weighted sequence losses, L2, time weights and the hard-negative hinge;
and the pair of margins of Hide-and-Seek in place of the sequence loss.

Notation: s score, m mask, y success, L valid length. Failure is the positive class.
Source: SAFE (arXiv 2506.09937), section 4.2 and its released options; Hide-and-Seek (arXiv
2605.30834).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from mistjax.detect.methods.safe.heads import SafeLSTM, SafeMLP


@dataclasses.dataclass(frozen=True)
class SeekConfig:
    """Hide-and-Seek's margins. A failed episode is not a failure from its first step on, as the
    sequence loss has it: where the failure begins is found while training.

    Source: arXiv 2605.30834, equations 2 to 4, read in a summary, not in full: the two margins and
    their best values. Ours: every pair of a failure and a success of the batch counts alike, and
    the weight of the second term.

    Attributes:
        between: by how much the highest score of a failure is to exceed that of a success.
        within: by how much the mean score of a failure after its onset, the steepest rise, is to
            exceed the mean before it.
        weight: of the second term; 0 leaves it out.
    """

    between: float = 1.0
    within: float = 0.5
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Attributes:
        l2: weight of the sum of squared kernels (biases excluded).
        fail_weight: multiplies the class weight of failures.
        success_weight: multiplies the class weight of successes.
        time_weight: let early failure steps count more, 5 exp(-3 t / L) + 1, rescaled to mean 1.
        threshold: accumulated scores of failures are pushed up to this value only; None pushes
            without end.
        hard_negative: weight of the hinge on the soft maximum over time (LSTM with probabilities
            only).
        margin: distance of that hinge from 0.5.
        beta: sharpness of its soft maximum.
        one_random_step: learn from one random valid step per sequence instead of all.
        seek: Hide-and-Seek's loss in place of SAFE's; class weights and the options between `l2`
            and this one then play no part.
    """

    l2: float = 1e-2
    fail_weight: float = 1.0
    success_weight: float = 1.0
    time_weight: bool = False
    threshold: float | None = None
    hard_negative: float = 0.0
    margin: float = 0.1
    beta: float = 50.0
    one_random_step: bool = False
    seek: SeekConfig | None = None


def class_weights(success: Bool[Array, " n"], config: LossConfig) -> Float[Array, "2"]:
    """Inverse class frequency (with one added count) of [failure, success], over the training
    set.
    """
    n = success.shape[0]
    n_success = jnp.sum(success, dtype=jnp.float32)
    return jnp.stack(
        [config.fail_weight * n / (n - n_success + 1), config.success_weight * n / (n_success + 1)]
    )


def _mean_of(values: Float[Array, " b"], chosen: Bool[Array, " b"]) -> Float[Array, ""]:
    """The mean of the chosen ones; 0 of none."""
    return jnp.sum(jnp.where(chosen, values, 0.0)) / jnp.maximum(chosen.sum(dtype=values.dtype), 1)


def time_weights(mask: Bool[Array, "b t"]) -> Float[Array, "b t"]:
    """5 exp(-3 t / L) + 1 on valid steps, rescaled to mean 1 over them; 0 elsewhere."""
    length = mask.sum(1, keepdims=True, dtype=jnp.float32)
    steps = jnp.arange(mask.shape[1], dtype=jnp.float32)[None]
    w = jnp.where(mask, 5 * jnp.exp(-3 * steps / length) + 1, 0.0)
    return w * length / w.sum(1, keepdims=True)


def l2_penalty(params: PyTree) -> Float[Array, ""]:
    """Sum of squared entries of every leaf that is not a bias."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(
        (jnp.sum(x**2) for path, x in leaves if getattr(path[-1], "key", None) != "bias"),
        start=jnp.zeros((), jnp.float32),
    )


def hard_negative_hinge(
    scores: Float[Array, "b t"],
    mask: Bool[Array, "b t"],
    success: Bool[Array, " b"],
    *,
    margin: float,
    beta: float | None,
) -> Float[Array, ""]:
    """Mean squared hinge that wants the maximum over time beyond 0.5 by `margin`, on the right
    side.

    Args:
        scores: probabilities of failure.
        mask: valid steps.
        success: episode outcome.
        margin: distance from 0.5.
        beta: sharpness of the soft maximum logsumexp(beta s) / beta; None takes the hard maximum.
    """
    valid = jnp.where(mask, scores, -jnp.inf)
    peak = valid.max(1) if beta is None else jax.nn.logsumexp(beta * valid, axis=1) / beta
    gap = jnp.where(success, peak - (0.5 - margin), 0.5 + margin - peak)
    return jnp.mean(jax.nn.relu(gap) ** 2)


def seek_loss(
    scores: Float[Array, "b t"],
    mask: Bool[Array, "b t"],
    success: Bool[Array, " b"],
    config: SeekConfig,
) -> Float[Array, ""]:
    """See `SeekConfig`; 0 in a batch without failures, and no first term in one without successes.

    The onset is where the score rises most from one step to the next; no gradient asks where that
    is. A failure of one step has none.
    """
    peak = jnp.where(mask, scores, -jnp.inf).max(1)
    pairs = (~success[:, None] & success[None, :]).astype(scores.dtype)
    short = jax.nn.relu(config.between - (peak[:, None] - peak[None, :]))
    ranking = jnp.sum(short * pairs) / jnp.maximum(pairs.sum(), 1)
    rise = jnp.where(mask[:, 1:], jax.lax.stop_gradient(jnp.diff(scores, axis=1)), -jnp.inf)
    onset = 1 + jnp.argmax(rise, axis=1)
    later = jnp.arange(scores.shape[1])[None] >= onset[:, None]

    def mean(rows: Bool[Array, "b t"]) -> Float[Array, " b"]:
        return jnp.sum(jnp.where(rows, scores, 0.0), axis=1) / jnp.maximum(
            rows.sum(1, dtype=scores.dtype), 1
        )

    flat = jax.nn.relu(config.within - (mean(mask & later) - mean(mask & ~later)))
    parted = (~success & (mask.sum(1) > 1)).astype(scores.dtype)
    return ranking + config.weight * jnp.sum(flat * parted) / jnp.maximum(parted.sum(), 1)


def _step_losses(
    head: Any, features: Array, success: Array, config: LossConfig
) -> tuple[Array, Array]:
    """Scores [b, t] and per-step losses [b, t] before any weight."""
    failed = ~success[:, None]
    if isinstance(head, SafeLSTM) and head.accumulate == "none":
        z = head.evidence(features)
        return jax.nn.sigmoid(z), -jax.nn.log_sigmoid(jnp.where(failed, z, -z))
    s = head.sequence(features)
    push = -s if config.threshold is None else jax.nn.relu(config.threshold - s)
    return s, jnp.where(failed, push, jax.nn.relu(s))


def sequence_loss(
    head: SafeMLP | SafeLSTM,
    features: Float[Array, "b t d"],
    mask: Bool[Array, "b t"],
    success: Bool[Array, " b"],
    weights: Float[Array, "2"],
    config: LossConfig,
    l2: Float[Array, ""] | float,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Total loss and its parts.

    Args:
        head: the head being trained.
        features: padded features.
        mask: valid steps.
        success: outcomes.
        weights: `class_weights` of the training set.
        config: options.
        l2: weight of the L2 penalty (an argument, so that a grid over it is one compiled program).
        key: needed by `one_random_step` only.

    Returns:
        The total, and a dict with monitor, reg, success_avg, fail_avg and hard_negative.
    """
    scores, losses = _step_losses(head, features, success, config)
    if config.time_weight:
        losses = losses * jnp.where(success[:, None], 1.0, time_weights(mask))
    chosen = mask.astype(losses.dtype)
    if config.one_random_step:
        if key is None:
            raise ValueError(
                "one_random_step draws a step per sequence; pass key=jax.random.key(...)."
            )
        picks = jax.random.categorical(key, jnp.where(mask, 0.0, -jnp.inf), axis=1)
        chosen = jax.nn.one_hot(picks, mask.shape[1], dtype=losses.dtype)
    per_episode = jnp.sum(losses * chosen, axis=1) / chosen.sum(1)
    monitor = jnp.mean(per_episode * jnp.where(success, weights[1], weights[0]))
    if config.seek is not None:
        monitor = seek_loss(scores, mask, success, config.seek)
    hinge = jnp.zeros((), jnp.float32)
    if config.hard_negative:
        hinge = config.hard_negative * hard_negative_hinge(
            scores, mask, success, margin=config.margin, beta=config.beta
        )
    reg = l2 * l2_penalty(head)
    parts = {
        "monitor": monitor + hinge,
        "reg": reg,
        "success_avg": _mean_of(per_episode, success),
        "fail_avg": _mean_of(per_episode, ~success),
        "hard_negative": hinge,
    }
    return monitor + hinge + reg, parts


def loss_and_gradient(
    head: SafeMLP | SafeLSTM,
    batch: tuple[Float[Array, "b t d"], Bool[Array, "b t"], Bool[Array, " b"]],
    weights: Float[Array, "2"],
    config: LossConfig,
    l2: Float[Array, ""] | float,
    key: PRNGKeyArray,
    group: int | None = None,
) -> tuple[Float[Array, ""], PyTree]:
    """`sequence_loss` of (features, mask, success) and its gradient.

    With `group`, that many episodes are taken at a time. The loss is a mean over episodes, so the
    sums are the same but for rounding, and the activations of a few episodes stay in a CPU's cache.
    """
    n = batch[2].shape[0]
    size = min(group or n, n)
    groups, rest = divmod(n, size)
    whole = jax.tree.map(lambda x: x[: n - rest].reshape(groups, size, *x.shape[1:]), batch)
    last = jax.tree.map(lambda x: x[n - rest :], batch)

    def add(total: PyTree, part: tuple) -> tuple[PyTree, None]:
        (features, mask, success), key = part
        (loss, _), gradient = jax.value_and_grad(sequence_loss, has_aux=True)(
            head, features, mask, success, weights, config, l2, key
        )
        share = success.shape[0] / n
        return jax.tree.map(lambda t, x: t + share * x, total, (loss, gradient)), None

    keys = jax.random.split(key, groups + 1)
    total = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, head))
    total, _ = jax.lax.scan(add, total, (whole, keys[:-1]))
    return add(total, (last, keys[-1]))[0] if rest else total

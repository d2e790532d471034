"""A bounded memory of what worked: situations and chunks of successful clean episodes.

    <folder>/elites.{json,safetensors}   made from a run by `mistjax fit-elites`

A situation is what the VLM makes of the pictures and of the words (the means of their tokens at its
last layer), and the state; each of the three counts alike. A situation is written down only where
the memory so far would have answered it with another chunk: see `recover.gate`. Memory: a few
hundred numbers for each pair; of more pairs than there is room for, evenly spread ones are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mistjax.detect.fitted import load_fitted, save_fitted
from mistjax.detect.novelty.build import refuse_unclean
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, PolicySpec
from mistjax.recover.fusion import FusionLimits
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace

TAPS = tuple(Tap("vlm.resid", (-1,), tokens, "mean") for tokens in ("image", "text"))
_NAME, _COMMAND = "elites", "mistjax fit-elites"
FAMILIAR = 0.95
"""Share of clean inferences whose nearest situation of another episode is within `limit`."""


@flax.struct.dataclass
class Elites:
    """See the module.

    Attributes:
        mean, scale: of situations; the scale makes each of the three parts' mean square 1/3.
        situations: scaled.
        chunks: in model units.
        limit: largest squared distance at which a situation is known.
    """

    mean: Float[Array, " f"]
    scale: Float[Array, " f"]
    situations: Float[Array, "m f"]
    chunks: Float[Array, "m h a"]
    limit: Float[Array, ""]

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What a situation is made of, beside the state."""
        return TAPS

    def nearest(
        self, taps: Mapping[str, Array], obs: Observation
    ) -> tuple[Float[Array, "b h a"], Bool[Array, " b"]]:
        """(chunk of the nearest situation, whether it is near)."""
        parts = [taps[str(tap)][0] for tap in TAPS]
        width = self.mean.shape[0] - sum(part.shape[-1] for part in parts)
        now = jnp.concatenate([*parts, jnp.asarray(obs.state)[:, :width]], axis=-1)
        away = _squared((now - self.mean[None]) * self.scale[None], self.situations)
        best = jnp.argmin(away, axis=1)
        return self.chunks[best], away.min(axis=1) <= self.limit


def _squared(now: Float[Array, "b f"], then: Float[Array, "m f"]) -> Float[Array, "b m"]:
    both = jnp.square(now).sum(1)[:, None] + jnp.square(then).sum(1)[None]
    return jnp.maximum(both - 2 * now @ then.T, 0.0)


def build_elites(
    policy: Policy, runs: Sequence[Run], out: Path, *, size: int = 500, tolerance: float = 0.1
) -> tuple[Elites, dict[str, Any]]:
    """Remembers what led to success, and writes it.

    Args:
        policy: what was recorded.
        runs: clean episodes, recorded with what the policy reads and with `TAPS`.
        out: folder of the artefact.
        size: largest number of pairs.
        tolerance: largest difference of an executed action that counts as none, as a share of its
            range; 0 writes down every situation.

    Returns:
        (the memory, how many episodes and inferences it saw, and how many it wrote down and kept).

    Raises:
        ValueError: a tolerance that is no share, a run of another policy or with faults, one
            recorded without what is needed, fewer than two successes, or a policy whose chunks
            cannot be had in its own units.
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(
            f"tolerance is {tolerance}: expected a share of the action range, from 0 to 1."
        )
    refuse_unclean(policy.spec, runs)
    width, executed = policy.chunk_width, policy.spec.execute_steps
    same = np.asarray(FusionLimits.of(policy.spec, tolerance, width).cap)
    traces = [trace for run in runs for trace in run.traces() if trace.success]
    if len(traces) < 2:
        raise ValueError(
            f"{len(traces)} successful episodes: at least two are needed, better some hundred."
        )
    episode = np.repeat(np.arange(len(traces)), [len(trace.chunks) for trace in traces])
    parts = [np.concatenate(column) for column in zip(*map(_parts, traces), strict=True)]
    scales = [
        1 / np.sqrt(3 * part.shape[1]) / np.maximum(part.std(0), 0.05 * part.std() + 1e-6)
        for part in parts
    ]
    features = np.concatenate(parts, axis=1).astype(np.float32)
    mean, scale = features.mean(0), np.concatenate(scales).astype(np.float32)
    features = (features - mean) * scale
    chunks = _padded(np.concatenate([model_chunks(policy.spec, trace) for trace in traces]), width)
    written = np.arange(len(features))
    if tolerance:
        written = write_where_it_changes(features, chunks[:, :executed], same)
    kept = spread(written, size)
    elites = Elites(
        *(jnp.asarray(array, jnp.float32) for array in (mean, scale, features[kept])),
        chunks=jnp.asarray(chunks[kept], jnp.float32),
        limit=jnp.float32(_limit(features, episode, kept)),
    )
    notes = {
        "remembers": [str(run.path) for run in runs],
        "episodes": len(traces),
        "inferences": len(features),
        "written": len(written),
        "pairs": len(kept),
        "tolerance": tolerance,
    }
    save_fitted(out, _NAME, elites, policy.spec.fingerprint, {}, notes)
    return elites, notes


def write_where_it_changes(
    situations: Float[np.ndarray, "n f"],
    chunks: Float[np.ndarray, "n h a"],
    same: Float[np.ndarray, " a"],
) -> np.ndarray:
    """Which of a stream of pairs are written to a memory that is asked before each: those whose
    chunk differs by more than `same` from that of the nearest situation written so far [M].
    """
    written = np.zeros(len(situations), int)
    count = 1
    for i in range(1, len(situations)):
        there = written[:count]
        away = np.square(situations[there] - situations[i]).sum(axis=1)
        answer = chunks[there[np.argmin(away)]]
        if not (np.abs(answer - chunks[i]) <= same).all():
            written[count] = i
            count += 1
    return written[:count]


def spread(rows: np.ndarray, size: int) -> np.ndarray:
    """At most so many of them, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(size, len(rows))).astype(int))]


def load_elites(folder: str | Path, policy: str) -> Elites:
    """Reads what `build_elites` wrote.

    Raises:
        FileNotFoundError: none there.
        FingerprintError: made with another policy.
        ValueError: another format version, or a damaged file.
    """
    _, nested = load_fitted(folder, _NAME, policy, "remembers", _COMMAND)
    return Elites(**{**nested, "limit": jnp.asarray(nested["limit"]).reshape(())})


def _parts(trace: Trace) -> tuple[np.ndarray, ...]:
    missing = [str(tap) for tap in TAPS if str(tap) not in trace.features]
    if missing or "read/state" not in trace.aux:
        raise ValueError(
            f"episode {trace.seed} was recorded without what a situation is made of: record it "
            f"with `mistjax collect --inputs --taps {' '.join(map(str, TAPS))}`."
        )
    rows = [np.asarray(trace.features[str(tap)], np.float64) for tap in TAPS]
    return (
        *(row.reshape(len(row), -1) for row in rows),
        np.asarray(trace.aux["read/state"], np.float64),
    )


def model_chunks(spec: PolicySpec, trace: Trace) -> Float[np.ndarray, "n h a"]:
    """The executed chunks of a recorded episode in model units.

    Raises:
        ValueError: actions that follow the state, recorded in the robot's units alone.
    """
    if "sampled_actions" in trace.aux:
        return np.asarray(trace.aux["sampled_actions"])[:, 0]
    if len(spec.action_offset) < spec.action_dim or None in spec.action_offset:
        raise ValueError(
            f"{spec.name!r} commands what follows the state, and episode {trace.seed} has its "
            "chunks in the robot's units alone: record it with `mistjax collect --samples 1`."
        )
    scale = np.array(spec.action_scale)
    offset = np.array(spec.action_offset, np.float64)
    return (trace.chunks - offset) / np.where(scale == 0, 1, scale)


def _padded(chunks: Float[np.ndarray, "n h a"], width: int) -> Float[np.ndarray, "n h w"]:
    return np.pad(chunks, ((0, 0), (0, 0), (0, width - chunks.shape[-1])))


def _limit(situations: Float[np.ndarray, "n f"], episode: np.ndarray, kept: np.ndarray) -> float:
    """`Elites.limit` of a memory that keeps some of all situations."""
    away = np.array(_squared(jnp.asarray(situations), jnp.asarray(situations[kept])))
    away[episode[:, None] == episode[kept][None]] = np.inf
    return float(np.quantile(away.min(axis=1), FAMILIAR))

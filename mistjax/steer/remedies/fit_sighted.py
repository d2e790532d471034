"""What `SightedReckoning` goes by, and how well: fitted to and measured on recorded episodes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mistjax.detect.novelty.fit import Recorded, held_out
from mistjax.detect.novelty.monitor import InputMonitor
from mistjax.detect.novelty.odometry import fit_odometer
from mistjax.steer.remedies.dynamics import fit_dynamics
from mistjax.steer.remedies.sighted import SightedReckoning

STRIDE, HORIZON = 4, 20
"""Looks from one last good look that is tried to the next, and for how many later ones."""
KEPT = 0.95
FACTORS = (1.0, 3.0, 10.0, 30.0)
"""By which the noise of a camera may be larger than its errors, unless it is left out."""


def fit_sighted(
    monitor: InputMonitor,
    clean: Recorded,
    reckoned: Recorded | None = None,
    *,
    starts: Sequence[Sequence[Hashable]] | None = None,
    seed: int = 0,
) -> tuple[SightedReckoning, Float[np.ndarray, " s"]]:
    """(the remedy of the state, with the errors that it makes where every fourth look of an episode
    is the last good one; what its `usual` would be without cameras).

    All is fitted to 70% of the episodes and measured on the rest, `usual` and `joint` on clean
    ones. The odometer's errors at two looks are alike, which a Kalman filter does not know: each
    entry's `noise` is what it is measured to be times that of `FACTORS`, or infinity, by which the
    estimate errs least.

    Args:
        monitor: of the inputs.
        clean: clean episodes.
        reckoned: others, in which the policy acted on a reckoned state while the sensor was sound:
            how the robot strays when it does not know where it is.
        starts: of each episode of either kind: none is fitted to in one and measured on in another;
            by default all differ.
        seed: of the networks.

    Raises:
        ValueError: fewer than ten episodes of a kind, or none of two looks held out.
    """
    sets = [part for part in (clean, reckoned) if part is not None]
    if few := [len(part.mask) for part in sets if len(part.mask) < 10]:
        raise ValueError(f"{few[0]} episodes: fit to at least ten of a kind, better to a hundred.")
    if starts is None:
        starts = [[(kind, n) for n in range(len(part.mask))] for kind, part in enumerate(sets)]
    held_ones = _held_out(starts)
    kept = [part[rows] for part, rows in zip(sets, held_ones, strict=True)]
    if min(np.asarray(part.mask).sum(1).max(initial=0) for part in kept) < 2:
        raise ValueError("the episodes are of one look each: expected some with several.")
    width = monitor.state_mean.shape[0]
    looks = [_Looks.of(*part, width) for part in zip(sets, held_ones, strict=True)]
    states, tokens, commands, held = (
        np.concatenate([getattr(part, name) for part in looks])
        for name in ("states", "tokens", "commands", "held")
    )
    before = itertools.accumulate((len(part.mask) for part in sets), initial=0)
    episode = np.concatenate([n + part.episode for n, part in zip(before, looks, strict=False)])
    again = np.flatnonzero(episode[1:] == episode[:-1]) + 1
    motion = fit_dynamics(
        monitor.motion,
        states[again - 1],
        commands[again - 1],
        states[again],
        held[again],
        seed=seed,
    )
    odometer = fit_odometer(tokens[~held], states[~held], episode[~held], seed=seed)
    blind = jnp.full((len(monitor.cameras), width), jnp.inf)
    remedy = SightedReckoning(motion, odometer, blind, jnp.full(width, jnp.inf), jnp.ones(1))
    views, alone, _ = zip(*(_errors(remedy, part) for part in kept), strict=True)
    scale = np.asarray(motion.scale)
    noise = np.maximum(np.square(np.concatenate(views)).mean(0), np.square(scale / 10))
    tried = [
        dataclasses.replace(remedy, noise=jnp.asarray(f * noise, jnp.float32)) for f in FACTORS
    ]
    estimates = [*(_errors(one, kept[-1])[1] for one in tried), alone[-1]]
    sizes = [np.square(error).mean(0) for error in estimates]
    noise = noise * np.array([*FACTORS, np.inf])[np.argmin(sizes, axis=0)][None]
    remedy = dataclasses.replace(remedy, noise=jnp.asarray(noise, jnp.float32))
    _, off, episode = _errors(remedy, kept[0])
    usual = np.maximum(_kept(np.abs(off), episode), scale)
    joint = max(float(_kept((np.abs(off) / usual).max(axis=1), episode)), 1.0)
    remedy = dataclasses.replace(
        remedy, usual=jnp.asarray(usual, jnp.float32), joint=jnp.asarray([joint], jnp.float32)
    )
    return remedy, _kept(np.abs(alone[0]), episode)


def _held_out(starts: Sequence[Sequence[Hashable]]) -> list[Bool[np.ndarray, " e"]]:
    """Of each kind of episodes, those of the starts that are held out."""
    places = {start: n for n, start in enumerate(dict.fromkeys(itertools.chain(*starts)))}
    held = held_out(len(places))
    return [held[[places[start] for start in part]] for part in starts]


@dataclasses.dataclass
class _Looks:
    """Of all episodes of a kind, one after the other, and which ones are held out."""

    states: Float[np.ndarray, "n s"]
    tokens: Float[np.ndarray, "n c t"]
    commands: Float[np.ndarray, "n e a"]
    episode: Int[np.ndarray, " n"]
    held: Bool[np.ndarray, " n"]

    @classmethod
    def of(cls, episodes: Recorded, held: Bool[np.ndarray, " e"], width: int) -> _Looks:
        readings, episode = episodes.looks()
        return cls(
            np.asarray(readings.state, np.float32)[:, :width],
            np.asarray(readings.flat, np.float32),
            np.asarray(episodes.commands, np.float32)[np.asarray(episodes.mask)],
            episode,
            held[episode],
        )


def _errors(
    remedy: SightedReckoning, episodes: Recorded
) -> tuple[Float[np.ndarray, "n c s"], Float[np.ndarray, "n s"], Int[np.ndarray, " n"]]:
    """(of the cameras' view, of the estimate, in which episode), at every later look of every
    anchor.
    """
    width = remedy.usual.shape[0]
    states = np.asarray(episodes.readings.state, np.float32)[..., :width]
    tokens = np.asarray(episodes.readings.flat, np.float32)
    commands, mask = np.asarray(episodes.commands), np.asarray(episodes.mask)

    def after(values: Shaped[np.ndarray, "e n *x"], look: int) -> Shaped[np.ndarray, "h e *x"]:
        """At the looks from one on; 0 where there is none."""
        part = values[:, look : look + HORIZON].swapaxes(0, 1)
        return np.pad(part, [(0, HORIZON - len(part))] + [(0, 0)] * (part.ndim - 1))

    @jax.jit
    def follow(note, later):
        def look(note, now):
            state, tokens, command = now
            seen = remedy.view(note, tokens) - state[:, None]
            note = remedy.step(note, state, tokens, command)
            return note, (seen, note.state - state)

        return jax.lax.scan(look, note, later)[1]

    found = []
    for first in range(0, mask.shape[1] - 1, STRIDE):
        there = after(mask, first + 1)
        later = after(states, first + 1), after(tokens, first + 1), after(commands, first)
        start = remedy.start(jnp.asarray(states[:, first]), jnp.asarray(tokens[:, first]))
        both = follow(start, later)
        found.append([*(np.asarray(error)[there] for error in both), np.nonzero(there)[1]])
    views, estimates, episode = map(np.concatenate, zip(*found, strict=True))
    return views, estimates, episode


def _kept(
    errors: Float[np.ndarray, "n *s"], episode: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "*s"]:
    """What 95% of the looks of the median episode keep: one that fails is long, and strays."""
    each = [np.quantile(errors[episode == one], KEPT, axis=0) for one in np.unique(episode)]
    return np.asarray(np.median(each, axis=0))

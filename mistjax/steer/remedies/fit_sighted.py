"""How well the cameras see the state of clean episodes, for `SightedReckoning`."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from mistjax.detect.novelty.fit import Recorded
from mistjax.detect.novelty.monitor import InputMonitor
from mistjax.steer.remedies.sighted import SightedReckoning

STRIDE, HORIZON = 4, 20
"""Looks from one last good look that is tried to the next, and for how many later ones."""
KEPT = 0.95


def fit_sighted(
    monitor: InputMonitor, episodes: Recorded
) -> tuple[SightedReckoning, Float[np.ndarray, " s"]]:
    """(the remedy of the state, with the errors that it makes where every fourth look of an episode
    is the last good one; what its `usual` would be without cameras).

    Args:
        monitor: whose motion model and odometer are used.
        episodes: clean ones that they were not fitted to.

    Raises:
        ValueError: no episode of two looks.
    """
    width = monitor.state_mean.shape[0]
    states = np.asarray(episodes.readings.state, np.float32)[..., :width]
    tokens = np.asarray(episodes.readings.flat, np.float32)
    commands, mask = np.asarray(episodes.commands), np.asarray(episodes.mask)
    if mask.shape[1] < 2:
        raise ValueError("the episodes are of one look each: expected some with several.")
    anchors = range(0, mask.shape[1] - 1, STRIDE)

    def after(values: Shaped[np.ndarray, "e n *x"], look: int) -> Shaped[np.ndarray, "h e *x"]:
        """At the looks from one on; 0 where there is none."""
        part = values[:, look : look + HORIZON].swapaxes(0, 1)
        return np.pad(part, [(0, HORIZON - len(part))] + [(0, 0)] * (part.ndim - 1))

    def errors(remedy: SightedReckoning) -> tuple[np.ndarray, np.ndarray]:
        """Of the cameras' view and of the estimate, at every later look of every anchor."""

        @jax.jit
        def follow(note, later):
            def look(note, now):
                state, tokens, command = now
                seen = remedy.view(note, tokens) - state[:, None]
                note = remedy.step(note, state, tokens, command)
                return note, (seen, note.state - state)

            return jax.lax.scan(look, note, later)[1]

        found = []
        for first in anchors:
            there = after(mask, first + 1)
            later = after(states, first + 1), after(tokens, first + 1), after(commands, first)
            start = remedy.start(jnp.asarray(states[:, first]), jnp.asarray(tokens[:, first]))
            both = follow(start, later)
            found.append([np.asarray(error)[there] for error in both])
        views, estimates = zip(*found, strict=True)
        return np.concatenate(views), np.concatenate(estimates)

    blind = jnp.full((len(monitor.cameras), width), jnp.inf)
    remedy = SightedReckoning(
        monitor.motion, monitor.odometer, blind, jnp.full(width, jnp.inf), jnp.ones(1)
    )
    views, alone = errors(remedy)
    scale = np.asarray(monitor.motion.scale)
    noise = np.maximum(np.square(views).mean(0), np.square(scale / 10))
    remedy = dataclasses.replace(remedy, noise=jnp.asarray(noise, jnp.float32))
    off = np.abs(errors(remedy)[1])
    usual = np.maximum(np.quantile(off, KEPT, axis=0), scale)
    joint = np.quantile((off / usual).max(axis=1), KEPT)
    remedy = dataclasses.replace(
        remedy, usual=jnp.asarray(usual, jnp.float32), joint=jnp.asarray([joint], jnp.float32)
    )
    return remedy, np.quantile(np.abs(alone), KEPT, axis=0)

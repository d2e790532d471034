"""What the remedies without a network measure an input against: numbers and words of clean runs.

    <folder>/clean.{json,safetensors}   beside the monitor of inputs that they are used with

Recorded clean runs in, the artefact out: `mistjax fit-remedies`; a few seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.detect.fitted import load_fitted, save_fitted
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.build import refuse_unclean
from mistjax.detect.novelty.fit import recorded_runs
from mistjax.detect.novelty.monitor import InputMonitor
from mistjax.policies.corrected import words_of
from mistjax.policies.protocol import Policy
from mistjax.rollouts.run import Run
from mistjax.steer.remedies.gain import PictureGain, as_log_light
from mistjax.steer.remedies.paste import PatchPaste

_NAME = "clean"
_COMMAND = "mistjax fit-remedies"
LIGHT, CELL = 0.99, 0.95
"""Share of clean looks that `Clean.light` and `Clean.cell` cover."""


@flax.struct.dataclass
class Clean:
    """See the module.

    Attributes:
        light: see `PictureGain.usual`.
        cell: see `PatchPaste.usual`.
        cameras: names (static).
        words: of all prompts (static).
    """

    light: Float[Array, " c"]
    cell: Float[Array, " c"]
    cameras: tuple[str, ...] = flax.struct.field(pytree_node=False)
    words: tuple[str, ...] = flax.struct.field(pytree_node=False)

    @property
    def gain(self) -> PictureGain:
        return PictureGain(self.light, self.cameras)

    def paste(self, monitor: InputMonitor, size: tuple[int, int]) -> PatchPaste:
        """With the cells' novelty of the monitor beside it; `size`: of a picture."""
        return PatchPaste.of(monitor, self.cell, size)


def build_clean(policy: Policy, runs: Sequence[Run], out: Path) -> Clean:
    """Measures clean episodes, and writes what was found beside a monitor of inputs.

    Args:
        policy: what was recorded.
        runs: clean episodes, recorded with what the policy reads.
        out: folder with `inputs.json`.

    Raises:
        FileNotFoundError: no monitor of inputs in `out`.
        ValueError: a run of another policy or with faults, or one recorded without what it read.
    """
    monitor = load_inputs(out, policy.spec.fingerprint)
    refuse_unclean(policy.spec, runs)
    readings = recorded_runs(runs)
    looks, episode = readings.looks()
    again = np.flatnonzero(episode[1:] == episode[:-1]) + 1
    light = np.asarray(as_log_light(jnp.asarray(looks.grid).mean((2, 3))))
    steps = np.abs(light[again] - light[again - 1]).max(-1)
    before = np.zeros_like(commands := np.asarray(readings.commands)[np.asarray(readings.mask)])
    before[again] = commands[again - 1]
    paste = PatchPaste.of(monitor, jnp.ones(len(monitor.cameras)), (0, 0))
    cells = [
        np.asarray(
            paste.strangeness(looks.grid[:, c], looks.detail[:, c], jnp.asarray(before), c)
        ).max((1, 2))
        for c in range(len(monitor.cameras))
    ]
    clean = Clean(
        jnp.asarray(np.quantile(steps, LIGHT, axis=0), jnp.float32),
        jnp.asarray(np.quantile(cells, CELL, axis=1), jnp.float32),
        monitor.cameras,
        words_of(row["prompt"] for run in runs for row in run.rows),
    )
    card = {"cameras": list(clean.cameras), "words": list(clean.words)}
    notes = {"measured_on": [str(run.path) for run in runs], "episodes": len(readings.mask)}
    save_fitted(out, _NAME, clean, policy.spec.fingerprint, card, notes)
    return clean


def load_clean(folder: str | Path, policy: str) -> Clean:
    """Reads what `build_clean` wrote.

    Raises:
        FileNotFoundError: none there.
        FingerprintError: made with another policy.
        ValueError: another format version, or a damaged file.
    """
    document, nested = load_fitted(folder, _NAME, policy, "measures", _COMMAND)
    return Clean(**nested, cameras=tuple(document["cameras"]), words=tuple(document["words"]))

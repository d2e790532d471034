"""Do architectures look at the same places?

Every patch of every picture is blurred in turn and the absolute change of a readout kept: of the
policy's failure score, and of its executed actions. Interventions mean the same for every
architecture; gradients through a flow, a token and a chunk do not. Maps of two policies are
compared scene by scene (Spearman over the patches of a camera). The control compares each map with
the other policy's map of another scene, so that what is left is not a common habit such as looking
at the middle of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from experiments.studies.cross.scenes import CAMERAS, Scene
from mistjax.attribute.inputs import Inputs, Regions
from mistjax.attribute.interventional import effects
from mistjax.attribute.readouts import FailureScore
from mistjax.detect.monitor import Monitor
from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy, Sample

PATCH, SIDE, BATCH = (16, 16), 4, 50
Maps = dict[str, Float[np.ndarray, "scenes patches"]]


@flax.struct.dataclass
class ExecutedChange:
    """Root mean squared change of the executed actions from `reference`, in model units."""

    reference: Float[Array, "b h a"]
    name: str = flax.struct.field(pytree_node=False, default="action")
    taps: tuple[Tap, ...] = flax.struct.field(pytree_node=False, default=())

    def __call__(self, sample: Sample) -> Float[Array, " b"]:
        _, steps, width = self.reference.shape
        change = sample.actions[:, :steps, :width] - self.reference
        return jnp.sqrt(jnp.mean(jnp.square(change), axis=(1, 2)) + 1e-12)


def blur_maps(policy: Policy, monitor: Monitor, scenes: Sequence[Scene], key: Array) -> Maps:
    """`<readout>/<camera>` -> absolute change by patch, one row a scene."""
    cameras = tuple(policy.spec.cameras)
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(scenes), BATCH):
        part = [scenes[i % len(scenes)].raw for i in range(start, start + BATCH)]
        obs = policy.prepare(part)
        keys = jax.random.split(jax.random.fold_in(key, start), BATCH)
        plain = policy.sample(obs, keys).actions[:, : policy.spec.execute_steps]
        state = monitor.detector.init_state(BATCH)
        readouts = {
            "score": FailureScore(monitor.detector, state, monitor.reads),
            "action": ExecutedChange(plain[..., : policy.spec.action_dim]),
        }
        for name, readout in readouts.items():
            regions = _each_patch(policy, obs, cameras)
            values = np.asarray(effects(policy, obs, keys, readout, regions, patch=PATCH, chunk=1))
            change = np.abs(values[:-1] - values[-1]).reshape(len(cameras), SIDE**2, BATCH)
            for camera, maps in zip(cameras, change, strict=True):
                found.setdefault(f"{name}/{camera}", []).append(maps.T)
    return {name: np.concatenate(parts)[: len(scenes)] for name, parts in found.items()}


def _each_patch(policy: Policy, obs: Any, cameras: Sequence[str]) -> Regions:
    """One intervention for each patch of each camera, and one that changes nothing."""
    none = Regions.full(jax.eval_shape(lambda: Inputs.of(policy, obs)), PATCH, 0.0)
    patches = SIDE**2
    count = len(cameras) * patches + 1
    every = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, axis=0), none)
    for i, camera in enumerate(cameras):
        one = jnp.eye(count)[:, i * patches : (i + 1) * patches]
        every.images[camera] = one.reshape(count, 1, SIDE, SIDE)
    return every


def agreement(a: Maps, b: Maps, seeds: np.ndarray, readout: str) -> dict[str, Any]:
    """Camera -> mean rank correlation, that of the control, and intervals over seeds."""
    rows = {}
    other = np.roll(np.arange(len(seeds)), 2 * (len(seeds) // 4))  # another seed, the same phase
    for camera in CAMERAS:
        if (name := f"{readout}/{camera}") not in a or name not in b:
            continue
        same, control = _correlations(a[name], b[name]), _correlations(a[name], b[name][other])
        rows[camera] = {
            "rho": _mean(same),
            "interval": over_seeds(same, seeds),
            "control": _mean(control),
            "gain": _mean(same - control),
            "gain interval": over_seeds(same - control, seeds),
            "scenes": int(np.isfinite(same).sum()),
        }
    return rows


def stone_overlap(maps: Maps, scenes: Sequence[Scene], readout: str) -> dict[str, Any]:
    """Share of a map on patches that show the task's stone; control: the map of another scene."""
    camera, seeds = CAMERAS[0], np.array([scene.seed for scene in scenes])
    shown = np.stack([_patches(scene.stone[camera]) for scene in scenes])
    seen = shown.any(axis=1)
    heat = maps[f"{readout}/{camera}"]
    other = np.roll(np.arange(len(seeds)), 2 * (len(seeds) // 4))
    share, control = (_share(h, shown)[seen] for h in (heat, heat[other]))
    return {
        "share": _mean(share),
        "interval": over_seeds(share, seeds[seen]),
        "control": _mean(control),
        "gain": _mean(share - control),
        "gain interval": over_seeds(share - control, seeds[seen]),
        "area": float(shown[seen].mean()),
        "scenes": int(seen.sum()),
    }


def over_seeds(values: np.ndarray, seeds: np.ndarray, draws: int = 2000) -> list[float]:
    """Percentile bootstrap interval of the mean; seeds are resampled, with all their scenes."""
    names, index = np.unique(seeds, return_inverse=True)
    real = np.isfinite(values)
    total = np.bincount(index, np.where(real, values, 0), len(names))
    count = np.bincount(index, real, len(names))
    rows = np.random.default_rng(0).integers(len(names), size=(draws, len(names)))
    means = total[rows].sum(1) / np.maximum(count[rows].sum(1), 1)
    return np.quantile(means, (0.025, 0.975)).tolist()


def _mean(values: np.ndarray) -> float:
    """Of the finite ones; NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman by row; NaN where a map is constant."""
    ranks = [stats.rankdata(x, axis=1) - (x.shape[1] + 1) / 2 for x in (a, b)]
    size = [np.sqrt((r**2).sum(1)) for r in ranks]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks[0] * ranks[1]).sum(1) / (size[0] * size[1])


def _patches(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(SIDE, PATCH[0], SIDE, PATCH[1]).any(axis=(1, 3)).ravel()


def _share(heat: np.ndarray, shown: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (heat * shown).sum(1) / heat.sum(1)

"""Demonstrations of LIBERO tasks by the scripted expert, for behaviour cloning.

    python -m mistjax.envs.libero.demos --suite libero_object --episodes 20 --out data/libero_demos

Starts are drawn from each task's regions, which leaves its fixed start states for evaluation. Most
episodes are disturbed by short bursts of noise, so that the data shows how to recover; a frame is
kept only where the next `HORIZON` expert actions were carried out unchanged.

Cost: about 35 kept frames per episode, two pictures each (see `cameras`), and 110 control steps:
some 10 s on one free CPU core.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from safetensors.numpy import save_file
from tqdm import tqdm

from mistjax.envs.libero.env import IMAGE_KEYS, STATE_KEY, LiberoEnv
from mistjax.envs.libero.expert import Expert

HORIZON = 8
DISTURBED = 0.7
FIRST_SEED = 1_000_000
Driver = Callable[[LiberoEnv], Iterable[np.ndarray]]
"""A scene -> its actions [7] of the next steps, at least one."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is demonstrated.

    Attributes:
        out: folder of shards, one per task and ten episodes; existing shards are kept.
        suite, tasks: which tasks of an installed suite.
        episodes: attempts at each task; those in which the disturbed expert fails are left out.
        image_size: pixels per side.
        every: keep every n-th frame.
        seed: of the first episode.
    """

    out: Path
    suite: str = "libero_object"
    tasks: tuple[int, ...] = tuple(range(10))
    episodes: int = 40
    image_size: int = 64
    every: int = 3
    seed: int = FIRST_SEED


def demonstrate(
    env: LiberoEnv, seed: int, every: int, other: Driver | None = None
) -> dict[str, Any] | None:
    """One episode's kept frames as columns, or None if the disturbed expert failed.

    What disturbs it is noise, or another driver that has turns; see `bursts` and `turns`.

    Columns: image and wrist_image uint8 [n,h,w,3], state [n,8], actions [n,8,7], aux [n,6] (metres:
    where the object and the place to put it are), episode [n], and prompt, a list.
    """
    env.reset(seed=seed)
    rng, steps = np.random.default_rng([seed, 1]), env.max_steps + HORIZON
    noise = bursts(rng, steps) if other is None else np.zeros((steps, 7))
    theirs = np.zeros(steps, bool) if other is None else turns(rng, steps)
    dirty = np.any(noise, axis=1) | theirs
    expert, frames, actions, planned = Expert(env.simulator), [], [], []
    finished = 0
    for step in range(env.max_steps):
        if other is not None and theirs[step]:
            planned = planned or list(other(env))
            action = planned.pop(0)
        else:
            planned, action = [], expert.action().astype(np.float32)
        if step % every == 0 and not np.any(dirty[step : step + HORIZON]):
            frames.append((step, _frame(env, expert)))
        actions.append(action)
        *_, info = env.step(np.clip(action + noise[step], -1.0, 1.0))
        finished += info["success"]
        if finished > HORIZON:
            break
    kept = [(step, frame) for step, frame in frames if step + HORIZON <= len(actions)]
    if not finished or not kept:
        return None
    columns = {key: np.stack([frame[key] for _, frame in kept]) for key in kept[0][1]}
    chunks = np.stack([actions[step : step + HORIZON] for step, _ in kept])
    prompt = [env.episode.change.prompt] * len(kept)
    return {**columns, "actions": chunks, "episode": np.full(len(kept), seed), "prompt": prompt}


def turns(rng: np.random.Generator, steps: int) -> np.ndarray:
    """Whether another driver has the step [steps]: in turns of 15 to 60 steps with 15 or 30 of the
    expert's between; none begins in the last half, which leaves the expert time to end well."""
    theirs, step = np.zeros(steps, bool), 15 * int(rng.integers(0, 3))
    while step < steps // 2:
        length = 15 * int(rng.integers(1, 5))
        theirs[step : step + length] = True
        step += length + 15 * int(rng.integers(1, 3))
    return theirs


def bursts(rng: np.random.Generator, steps: int) -> np.ndarray:
    """Noise to add to actions [steps,7]: bursts of 2 to 4 steps with 12 to 40 clean ones between;
    none at all in some episodes, and never on rotation or gripper."""
    noise = np.zeros((steps, 7))
    if rng.random() > DISTURBED:
        return noise
    step = int(rng.integers(0, 20))
    while step < steps:
        length = int(rng.integers(2, 5))
        push = rng.normal(0.0, 0.6, 3)
        for at in range(step, min(step + length, steps)):
            noise[at, :3] = push + rng.normal(0.0, 0.3, 3)
        step += length + int(rng.integers(12, 41))
    return noise


def _frame(env: LiberoEnv, expert: Expert) -> dict[str, np.ndarray]:
    seen = env.observe()
    item, place = expert.shape().centre, expert.place()
    return {
        "image": np.ascontiguousarray(seen[IMAGE_KEYS[0]]),
        "wrist_image": np.ascontiguousarray(seen[IMAGE_KEYS[1]]),
        "state": seen[STATE_KEY],
        "aux": np.concatenate([item, place]).astype(np.float32),
    }


def generate(config: Config, other: Driver | None = None) -> None:
    """Writes the shards that are missing; `other` is who disturbs the expert, or noise does."""
    config.out.mkdir(parents=True, exist_ok=True)
    for task_id in config.tasks:
        env = LiberoEnv(
            config.suite,
            task_id,
            image_size=config.image_size,
            picture_every=10**6,
            reflections=False,
        )
        env.tasks = tuple(dataclasses.replace(task, init_file=None) for task in env.tasks)
        starts = range(0, config.episodes, 10)
        for start in tqdm(starts, desc=f"task {task_id}", unit="shard"):
            name = config.out / f"shard_{config.suite}_{task_id}_{start:04d}"
            if not name.with_suffix(".safetensors").exists():
                count = min(10, config.episodes - start)
                first = config.seed + 10_000 * task_id + start
                seeds = range(first, first + count)
                _write(name, [demonstrate(env, seed, config.every, other) for seed in seeds])
        env.close()


def _write(name: Path, tried: list[dict[str, Any] | None]) -> None:
    rows = [row for row in tried if row is not None]
    if not rows:
        raise RuntimeError(f"the disturbed expert failed in all {len(tried)} episodes of {name}.")
    prompts = [prompt for row in rows for prompt in row["prompt"]]
    arrays = {key: np.concatenate([r[key] for r in rows]) for key in rows[0] if key != "prompt"}
    text = {"prompt": prompts, "tried": len(tried), "kept": len(rows)}
    name.with_suffix(".json").write_text(json.dumps(text))
    partial = name.with_suffix(".partial")
    save_file(arrays, partial)
    partial.rename(name.with_suffix(".safetensors"))


if __name__ == "__main__":
    generate(tyro.cli(Config))

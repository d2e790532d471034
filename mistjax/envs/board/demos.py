"""Demonstrations of the board task for behaviour cloning.

Most episodes are disturbed by short noise bursts, so that the data shows how to come back; a frame
is kept only where the next `HORIZON` expert actions were carried out unchanged, so that chunks stay
clean. The appearance varies a little (`_vary`), so that a policy does not hang on one brightness.

Frames are kept more seldom for slow episodes, which have more of them. Pictures are drawn at the
end of each episode in batches. Cost: about 0.2 s an episode on one CPU core.
"""

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Float, UInt8
from safetensors.numpy import save_file
from tqdm import tqdm

from mistjax.envs.board import scene as s
from mistjax.envs.board.captions import caption
from mistjax.envs.board.drawing import board_appearance, board_poses
from mistjax.envs.board.env import BoardEnv
from mistjax.envs.board.expert import recovery_action
from mistjax.envs.board.instructions import PHRASINGS, instruct
from mistjax.envs.board.raycast import Poses, picture_batch

HORIZON = 8
SHARD_EPISODES = 50
IMAGE_SIZE = 64
KEEP = {"slowly": 0.45, "": 0.75, "quickly": 1.0}
DISTURBED, FLIPPED, STAY = 0.7, 0.12, HORIZON + 4
BATCH = 16

Frame = dict[str, Any]


class _Blind(BoardEnv):
    """The board without its pictures, which are drawn later."""

    def pictures(self) -> UInt8[np.ndarray, "2 size size 3"]:
        return np.zeros((2, self.image_size, self.image_size, 3), np.uint8)


class _Bursts:
    """Noise on the expert's actions: bursts of 1 to 3 steps with 9 to 21 clean steps between."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.left, self.wait = rng, 0, int(rng.integers(0, 12))
        self.enabled = bool(rng.random() < DISTURBED)

    def __call__(self, action: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
        """The action to carry out in place of `action`."""
        if not self.enabled:
            return action
        if self.left == 0:
            if self.wait > 0:
                self.wait -= 1
                return action
            self.left, self.wait = int(self.rng.integers(1, 4)), int(self.rng.integers(9, 22))
            self.push = self.rng.normal(0.0, 0.6, 3)
            self.grip = -1.0 if self.rng.random() < FLIPPED else 1.0
        self.left -= 1
        motion = self.push + self.rng.normal(0.0, 0.3, 3)
        return np.append(motion, self.grip * action[3])


def _vary(rng: np.random.Generator) -> s.BoardScene:
    """The nominal scene with up to 10% other brightness and the camera turned by up to 5 mm."""
    scene, turn = s.BoardScene(), rng.uniform(-0.005, 0.005, 2)
    x, y, z = scene.front.target
    front = dataclasses.replace(scene.front, target=(float(x + turn[0]), float(y + turn[1]), z))
    gain = float(rng.uniform(0.9, 1.1))
    return dataclasses.replace(scene, front=front, gain=(gain, gain, gain))


def demonstrate(seed: int) -> dict[str, Any] | None:
    """One episode's kept frames as columns, or None if the disturbed expert failed.

    Columns: image and wrist_image uint8 [n, 64, 64, 3], state [n, 5], actions [n, 8, 4], aux
    [n, 6] (metres: x, y of the task's stone, of its cell, of the other supply stone), episode [n],
    and the lists prompt and caption.
    """
    rng = np.random.default_rng([seed, 1])
    env, frames = play(seed, rng)
    if not env.is_success():
        return None
    kept = _keep(frames, KEEP[env.episode.task.speed], rng)
    return _columns(env, kept, seed, rng) if kept else None


def play(seed: int, rng: np.random.Generator) -> tuple[BoardEnv, list[Frame]]:
    """One disturbed episode: the environment at its end, and what was seen and wanted at each step
    (poses, state, aux, the expert's action, and whether that was carried out unchanged).
    """
    env, disturb = _Blind(image_size=IMAGE_SIZE, max_steps=160), _Bursts(rng)
    env.reset(seed=seed, options={"scene": _vary(rng)})
    frames: list[Frame] = []
    finished = 0
    for step in range(env.max_steps):
        action = recovery_action(env)
        given = action if finished or step >= 110 else disturb(action)
        frames.append(_frame(env, action, clean=given is action))
        finished += env.step(given)[4]["success"]
        if finished > STAY:
            break
    return env, frames


def _frame(env: BoardEnv, action: Float[np.ndarray, "4"], clean: bool) -> Frame:
    world, goal = env.world, env.goal
    aux = [world.stones[goal, :2], env.target, world.stones[1 - goal, :2]]
    return {
        "poses": board_poses(env.physics.model, env.physics.data),
        "state": np.array([*world.gripper, world.opening, world.command], np.float32),
        "aux": np.concatenate(aux).astype(np.float32),
        "action": action.astype(np.float32),
        "clean": clean,
    }


def _keep(frames: list[Frame], share: float, rng: np.random.Generator) -> list[Frame]:
    """A random share of the frames before clean chunks, each with its chunk as "actions"."""
    kept = []
    for i in range(len(frames) - HORIZON + 1):
        chunk = frames[i : i + HORIZON]
        at_rest = i > len(frames) - HORIZON - 3
        wanted = rng.random() < share * (0.5 if at_rest else 1.0)
        if wanted and all(f["clean"] for f in chunk):
            kept.append({**frames[i], "actions": np.stack([f["action"] for f in chunk])})
    return kept


def _columns(
    env: BoardEnv, frames: list[Frame], seed: int, rng: np.random.Generator
) -> dict[str, Any]:
    images = draw(env, [f["poses"] for f in frames])
    task = env.episode.task
    return {
        "image": images[:, 0],
        "wrist_image": images[:, 1],
        **{key: np.stack([f[key] for f in frames]) for key in ("state", "actions", "aux")},
        "episode": np.full(len(frames), seed, np.int64),
        "prompt": [instruct(task, int(rng.integers(PHRASINGS))) for _ in frames],
        "caption": [caption(f["actions"], float(f["state"][2])) for f in frames],
    }


def draw(env: BoardEnv, poses: list[Poses]) -> UInt8[np.ndarray, "n 2 size size 3"]:
    """Pictures of both cameras in batches of one size, so that one compiled program draws all."""
    appearance, images = board_appearance(env.episode.scene, env.physics.colours), []
    for i in range(0, len(poses), BATCH):
        part = poses[i : i + BATCH]
        padded = part + [part[-1]] * (BATCH - len(part))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
        drawn = picture_batch(stacked, appearance, size=IMAGE_SIZE, shadow=False)
        images.append(np.asarray(drawn)[: len(part)])
    return np.concatenate(images)


def _shard(job: tuple[int, int, int, Path]) -> int:
    """Write one shard unless it is there; returns its number of episodes."""
    index, first_seed, count, folder = job
    name = folder / f"shard_{index:04d}"
    if name.with_suffix(".safetensors").exists():
        return count
    rows = [r for r in map(demonstrate, range(first_seed, first_seed + count)) if r]
    if not rows:
        raise RuntimeError(
            f"the disturbed expert failed in all of the {count} episodes from seed {first_seed}; "
            "ask for more episodes"
        )
    text = {k: [t for r in rows for t in r[k]] for k in ("prompt", "caption")}
    arrays = {k: np.concatenate([r[k] for r in rows]) for k in rows[0] if k not in text}
    name.with_suffix(".json").write_text(json.dumps(text))
    partial = name.with_suffix(".partial")
    save_file(arrays, partial)
    partial.rename(name.with_suffix(".safetensors"))
    return count


def generate(num_episodes: int, seed: int, path: Path, workers: int = 2) -> None:
    """Write demonstrations of episodes `seed` to `seed + num_episodes - 1` to a folder.

    The folder gets shards `shard_0000.safetensors` with the arrays of `demonstrate` and
    `shard_0000.json` with their prompts and captions. Shards that are there are kept, so an
    interrupted run goes on where it stopped.

    Args:
        num_episodes: episodes to try; those in which the disturbed expert fails are left out.
        seed: the first episode's seed.
        path: folder to write to.
        workers: processes, each with one thread.

    Raises:
        ValueError: the folder holds demonstrations of other episodes.
    """
    path.mkdir(parents=True, exist_ok=True)
    _claim(path, {"num_episodes": num_episodes, "seed": seed, "horizon": HORIZON})
    jobs = []
    for index, start in enumerate(range(0, num_episodes, SHARD_EPISODES)):
        jobs.append((index, seed + start, min(SHARD_EPISODES, num_episodes - start), path))
    pool = multiprocessing.get_context("spawn").Pool(workers, initializer=_use_one_thread)
    with pool, tqdm(total=num_episodes, unit="episode") as bar:
        for count in pool.imap_unordered(_shard, jobs):
            bar.update(count)


def _use_one_thread() -> None:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"


def _claim(path: Path, run: dict[str, int]) -> None:
    """Write the run's settings, or check that the folder's are the same."""
    settings = path / "demos.json"
    if settings.exists() and (found := json.loads(settings.read_text())) != run:
        raise ValueError(f"{path} holds demonstrations of {found}, not {run}; use another folder")
    settings.write_text(json.dumps(run))


def main(episodes: int, out: Path, seed: int = 100_000, workers: int = 2) -> None:
    """Generate demonstrations: `python -m mistjax.envs.board.demos --episodes 2300 --out demos`."""
    generate(episodes, seed, out, workers)


if __name__ == "__main__":
    tyro.cli(main)

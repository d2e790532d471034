"""Scenes that every policy is shown: moments of expert episodes, two a seed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Bool
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

import mistjax.envs  # noqa: F401 (registers the environments)
from mistjax.envs.board.drawing import solid_ids
from mistjax.envs.board.env import BoardEnv
from mistjax.envs.board.expert import recovery_action
from mistjax.envs.board.instructions import COLOURS, Task, instruct
from mistjax.files import atomic

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """One moment.

    Attributes:
        seed: of the episode.
        raw: what the robot saw.
        task: without modifiers.
        carrying: whether the stone was held.
        stone: camera -> pixels that show the task's stone.
    """

    seed: int
    raw: dict[str, Any]
    task: Task
    carrying: bool
    stone: dict[str, Bool[np.ndarray, "h w"]]

    def asked(self, **modifiers: str) -> dict[str, Any]:
        """The observation with a prompt for the task with these modifiers."""
        return {**self.raw, "prompt": instruct(dataclasses.replace(self.task, **modifiers))}


def kept_scenes(file: Path, episodes: int, first_seed: int) -> list[Scene]:
    """`expert_scenes`, from a file if they have been made before."""
    if not file.exists():
        made = expert_scenes(episodes, first_seed)
        arrays = {f"{i}/{key}": value for i, s in enumerate(made) for key, value in s.raw.items()}
        arrays |= {f"{i}/stone/{c}": m for i, s in enumerate(made) for c, m in s.stone.items()}
        labels = [
            {"seed": s.seed, "carrying": s.carrying, "task": dataclasses.asdict(s.task)}
            for s in made
        ]
        prompts = {name: arrays.pop(name) for name in list(arrays) if name.endswith("/prompt")}
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            about = {"labels": json.dumps(labels), "prompts": json.dumps(prompts)}
            save_file(arrays, temporary, metadata=about)
    with safe_open(file, "np") as stored:
        about, names = stored.metadata(), list(stored.keys())
        arrays = {name: stored.get_tensor(name) for name in names}
    arrays |= json.loads(about["prompts"])
    scenes = []
    for i, label in enumerate(json.loads(about["labels"])):
        own = {n.removeprefix(f"{i}/"): v for n, v in arrays.items() if n.startswith(f"{i}/")}
        stone = {camera: own.pop(f"stone/{camera}") for camera in CAMERAS}
        task = Task(**label["task"])
        scenes.append(Scene(label["seed"], own, task, label["carrying"], stone))
    return scenes


def expert_scenes(episodes: int, first_seed: int) -> list[Scene]:
    """A moment before the grasp and a moment of the carry, of each seed."""
    env = gym.make("mistjax/Board-v0")
    scenes: list[Scene] = []
    for seed in tqdm(range(first_seed, first_seed + episodes), unit="seed", desc="scenes"):
        rng = np.random.default_rng(seed)
        task = Task(COLOURS[seed % 2], int(rng.integers(1, 6)), int(rng.integers(1, 6)))
        raw, info = env.reset(seed=seed, options={"task": task})
        found: dict[str, list[Scene]] = {"approach": [], "carry": []}
        ended = False
        while not ended:
            if info["phase"] in found:
                carrying = info["phase"] == "carry"
                found[info["phase"]].append(Scene(seed, raw, task, carrying, _stone(env)))
            raw, _, success, truncated, info = env.step(recovery_action(env))
            ended = success or truncated
        scenes += [frames[rng.integers(len(frames))] for frames in found.values() if frames]
    return scenes


def _stone(env: gym.Env) -> dict[str, np.ndarray]:
    board: BoardEnv = env.unwrapped  # type: ignore[assignment]
    wanted = solid_ids()[f"stone{board.goal}"]
    return dict(zip(CAMERAS, board.segmentation() == wanted, strict=True))

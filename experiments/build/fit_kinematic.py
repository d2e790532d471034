"""How well the compiled board's physics fit C MuJoCo's: the same seeds in each, side by side.

    python -m experiments.build.fit_kinematic --results experiments/results/fit_kinematic.json
    python -m experiments.build.fit_kinematic --physics kinematic mjx --conditions nominal --floors
        --expert 8 --episodes 16 --out runs/fit_mjx --results experiments/results/fit_mjx.json

Expert: what the scripted expert did in MuJoCo, replayed in the compiled board. Policy: closed loop
in all, without a change and under perturbations and faults. Floor: MuJoCo against itself, where
every action is moved by a little: no physics can agree with it more closely than it does with that.
Interrupt it at will: what has been played is kept.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import numpy as np
import tyro
from jaxtyping import Bool, Float

from experiments.record import write_results
from mistjax.compilation import enable_cache
from mistjax.envs.board.env import BoardEnv
from mistjax.envs.board.expert import expert_action
from mistjax.envs.board.functional import FunctionalBoard
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy, RawObs, Sample
from mistjax.policies.wrapper import Wrapper
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run
from mistjax.stats import Rate, mcnemar

CONDITIONS: Mapping[str, Mapping[str, Any]] = {
    "nominal": {},
    "initial_positions 1": {"perturbation": {"initial_positions": 1.0}},
    "stone_count 1": {"perturbation": {"stone_count": 1.0}},
    "camera_angle 0.5": {"perturbation": {"camera_angle": 0.5}},
    "action_noise 0.5": {"fault": ("action_noise", 0.5)},
    "push 1": {"fault": ("push", 1.0)},
}
FLOORS = (1e-6, 1e-4, 1e-2)


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is played.

    Attributes:
        policy: what acts.
        episodes: seeds of each condition.
        expert: episodes of the expert.
        physics: those of the compiled board.
        conditions: of the policy's episodes, from `CONDITIONS`.
        floors: how far actions are moved where MuJoCo plays against itself, nominal.
        first_seed: fresh ones: nothing was fitted or tuned on them.
        out: folder of the runs.
        results: JSON file to write.
    """

    policy: str = "checkpoints/board_pi0"
    episodes: int = 300
    expert: int = 100
    physics: tuple[str, ...] = ("kinematic",)
    conditions: tuple[str, ...] = tuple(CONDITIONS)
    floors: tuple[float, ...] = FLOORS
    first_seed: int = 23_700_000
    out: Path = Path("runs/fit_kinematic")
    results: Path | None = None


@flax.struct.dataclass
class Jittered(Wrapper):
    """A policy of which every number of an action is moved by up to `size`, env's units."""

    policy: Policy
    size: float = flax.struct.field(pytree_node=False)

    def sample(self, obs: Any, key: Any, **options: Any) -> Sample:
        """The policy's."""
        return self.policy.sample(obs, key, **options)

    def finish(self, sample: Sample, raw: Sequence[RawObs]) -> np.ndarray:
        """The policy's, moved; by the same numbers for the same chunk."""
        actions = self.policy.finish(sample, raw)
        moves = [
            np.random.default_rng(int(abs(chunk).sum() * 1e6)).uniform(-1, 1, chunk.shape)
            for chunk in actions
        ]
        moved = actions + self.size * np.stack(moves).astype(np.float32)
        return np.clip(moved, self.spec.action_low, self.spec.action_high).astype(np.float32)


def agreement(mujoco: Run, other: Run) -> dict[str, Any]:
    """Of two runs on the same seeds: success in each, how many end alike, McNemar's p, and why
    those failed that did in one of them alone."""
    there, here = ({row["seed"]: row for row in run.finished} for run in (mujoco, other))
    seeds = sorted(set(there) & set(here))
    ends = [np.array([rows[seed]["success"] for seed in seeds]) for rows in (there, here)]

    def alone(failed: Mapping[int, Any], succeeded: Mapping[int, Any]) -> dict[str, int]:
        causes = (
            failed[seed]["failure_cause"]
            for seed in seeds
            if succeeded[seed]["success"] and not failed[seed]["success"]
        )
        return dict(collections.Counter(causes).most_common())

    causes = {"failed_in_mujoco": alone(there, here), "failed_in_other": alone(here, there)}
    return {**_counts(*ends), **causes}


def _counts(mujoco: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    return {
        "n": len(mujoco),
        "mujoco": int(mujoco.sum()),
        "other": int(other.sum()),
        "alike": int((mujoco == other).sum()),
        "p": mcnemar(mujoco, other),
    }


@dataclasses.dataclass(frozen=True)
class Played:
    """What the expert did in MuJoCo.

    Attributes:
        seeds: of its episodes.
        actions: of each step; zeros after the end.
        stones: where the goal stone was after each step, in metres; NaN after the end.
        success: how each ended.
    """

    seeds: range
    actions: Float[np.ndarray, "steps e 4"]
    stones: Float[np.ndarray, "steps e 3"]
    success: Bool[np.ndarray, " e"]


def expert(config: Config) -> Played:
    """Lets the expert act in MuJoCo."""
    env, steps = BoardEnv(image_size=16), FunctionalBoard().max_steps
    seeds = range(config.first_seed, config.first_seed + config.expert)
    actions = np.zeros((steps, len(seeds), 4), np.float32)
    stones = np.full((steps, len(seeds), 3), np.nan)
    success = np.zeros(len(seeds), bool)
    for i, seed in enumerate(seeds):
        env.reset(seed=seed)
        done = False
        for t in range(steps):
            actions[t, i] = expert_action(env.world, env.episode.task)
            *_, done, truncated, _ = env.step(actions[t, i])
            stones[t, i] = env.world.stones[env.goal]
            if done or truncated:
                break
        success[i] = done
    return Played(seeds, actions, stones, success)


def replayed(expert: Played, physics: str) -> dict[str, Any]:
    """The expert's actions under other physics: outcomes, how far the stone is from where it was
    in MuJoCo (millimetres), and what it costs."""
    board = FunctionalBoard(image_size=16, physics=physics)

    @jax.jit
    def replay(start, actions):
        def step(state, action):
            state = jax.vmap(board.step)(state, action)
            goal = jax.nn.one_hot(state.start.task.goal, len(state.body.stones[0][0]))
            return state, jax.numpy.stack([(c * goal).sum(1) for c in state.body.stones], -1)

        return jax.lax.scan(step, jax.vmap(board.reset)(start), actions)

    start, began = board.draw_starts(expert.seeds).start, time.perf_counter()
    program = replay.lower(start, expert.actions).compile()
    compiling, began = time.perf_counter() - began, time.process_time()
    last, moved = jax.block_until_ready(program(start, expert.actions))
    spent = time.process_time() - began
    apart = 1e3 * np.linalg.norm(np.asarray(moved) - expert.stones, axis=-1)
    return {
        **_counts(expert.success, np.asarray(last.success)),
        "stone_mm": {
            "median": float(np.nanmedian(apart)),
            "p95": float(np.nanquantile(apart, 0.95)),
        },
        "compiling_s": compiling,
        "cpu_ms_a_step": 1e3 * spent / expert.actions[..., 0].size,
    }


def main(config: Config) -> None:
    """Plays, and prints a line each."""
    policy = load_policy(config.policy)
    rows: list[dict[str, Any]] = []

    def add(condition: str, against: str, found: dict[str, Any]) -> None:
        rows.append({"condition": condition, "against": against, **found})
        n = found["n"]
        print(
            f"{condition}: MuJoCo {Rate(found['mujoco'], n)}, {against} {Rate(found['other'], n)}, "
            f"alike {Rate(found['alike'], n)}, p = {found['p']:.2g}",
            flush=True,
        )
        if config.results is not None:
            played = ("policy", "episodes", "expert", "first_seed")
            report = {"config": {k: getattr(config, k) for k in played}, "rows": rows}
            write_results(config.results, report)

    expert_did = expert(config)
    for physics in config.physics:
        add("expert", physics, replayed(expert_did, physics))
    plan = EpisodePlan(config.episodes, config.first_seed)
    for condition in config.conditions:
        options, folder = CONDITIONS[condition], config.out / condition.replace(" ", "_")
        host = collect(policy, folder / "mujoco", plan, num_envs=16, **options)
        for physics in config.physics:
            settings = {**options, "compiled": True, "physics": physics}
            add(
                condition,
                physics,
                agreement(host, collect(policy, folder / physics, plan, **settings)),
            )
        if condition == "nominal":
            for size in config.floors:
                moved = Jittered(policy, size)
                again = collect(moved, folder / f"moved_{size:g}", plan, num_envs=16)
                add(condition, f"MuJoCo, actions moved by {size:g}", agreement(host, again))


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

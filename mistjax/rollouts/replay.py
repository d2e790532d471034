"""A recorded episode played again in its environment: what was to be seen that nobody recorded."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from mistjax.envs.faults.make import make_faulty
from mistjax.policies.protocol import RawObs
from mistjax.rollouts.collect import make_env
from mistjax.rollouts.plan import BOARD_ENV
from mistjax.rollouts.run import Run

TOLERANCE = 1e-4
"""How far a state may be from the recorded one, in its own units."""


def replay(run: Run, seed: int) -> Iterator[tuple[int, RawObs, gym.Env]]:
    """The inferences of an episode: number, raw observation, and the environment at that moment.

    Args:
        run: its run, on the board.
        seed: the episode.

    Raises:
        ValueError: another environment, or an episode that does not come out as it was recorded.
    """
    if run.config["env_id"] != BOARD_ENV:
        raise ValueError(
            f"{run.path} is of {run.config['env_id']}: only episodes of {BOARD_ENV} are played "
            "again from their actions."
        )
    trace = run.trace(seed)
    make: Any = functools.partial(make_env, BOARD_ENV)
    if faults := run.config.get("faults"):
        looks = int(run.config["execute_steps"])
        make = functools.partial(make_faulty, BOARD_ENV, faults, looks)
    options = dict(run.config.get("task_options") or {})
    if run.config["perturbation"]:
        options["perturbation"] = dict(run.config["perturbation"])
    env = make()
    try:
        raw, _ = env.reset(seed=seed, options=options or None)
        due = {int(step): i for i, step in enumerate(trace.inference_step)}
        for step, action in enumerate(trace.actions):
            away = float(np.abs(np.asarray(raw["observation/state"]) - trace.state[step]).max())
            if not away <= TOLERANCE:
                raise ValueError(
                    f"episode {seed} of {run.path} does not play again: at step {step} the state "
                    f"is {away:.1e} from the recorded one. Record it with this release."
                )
            if step in due:
                yield due[step], raw, env
            raw, *_ = env.step(action)
    finally:
        env.close()

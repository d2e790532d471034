"""An environment by gymnasium id, with faults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from mistjax.envs.faults.battery import Mixture
from mistjax.envs.faults.wrapper import Faulty, Rig


def rig_of(env: gym.Env) -> Rig:
    """Where the inputs of an environment are; ValueError for one that the battery does not know."""
    from mistjax.envs.board.env import BoardEnv
    from mistjax.envs.board.sensor_faults import BOARD

    if isinstance(env.unwrapped, BoardEnv):
        return BOARD
    from mistjax.envs.libero.env import LiberoEnv
    from mistjax.envs.libero.sensor_faults import LIBERO

    if isinstance(env.unwrapped, LiberoEnv):
        return LIBERO
    raise ValueError(
        f"{type(env.unwrapped).__name__} has no fault battery: wrap it in `Faulty` with a `Rig` "
        "that says where its inputs are."
    )


def make_faulty(env: str, faults: Mapping[str, Any], look_every: int, **options: Any) -> gym.Env:
    """One environment under a mixture; a function that worker processes can import.

    Args:
        env: gymnasium id.
        faults: the mixture, as `Mixture.to_json` writes it.
        look_every: control steps between two looks of the policy.
        **options: of the environment.
    """
    import mistjax.envs  # noqa: F401 (registers the environments)

    made = gym.make(env, **options)
    return Faulty(made, rig_of(made), Mixture.from_json(faults), look_every)

"""One board environment for all tests here: its ray-caster compiles once."""

import gymnasium as gym
import numpy as np
import pytest

import mistjax.envs  # noqa: F401 (registers the environment)
from mistjax.envs.board.env import BoardEnv


class BlindBoard(BoardEnv):
    """A board whose pictures are black, for tests about motion."""

    def pictures(self):
        return np.zeros((2, self.image_size, self.image_size, 3), np.uint8)


@pytest.fixture(scope="session")
def board() -> BoardEnv:
    return gym.make("mistjax/Board-v0").unwrapped  # type: ignore[return-value]


@pytest.fixture(scope="session")
def blind() -> BoardEnv:
    return BlindBoard()

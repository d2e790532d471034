"""An environment that a worker process can import, and that can die there as simulators do."""

import os
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np


class Fragile(gym.Env):
    """Counts steps; the seed and the actions decide what is seen, and success after 7 steps.

    `kill`, `hang` and `crash` name seeds that do so at step 3. A killing seed does it only once
    when there is a folder `once` to leave a mark in.
    """

    metadata = {"render_fps": 5}  # noqa: RUF012
    observation_space = gym.spaces.Dict()
    action_space = gym.spaces.Box(-1, 1, (2,))

    def __init__(self, kill=(), hang=(), crash=(), once=None):
        self.kill, self.hang, self.crash, self.once = kill, hang, crash, once

    def _raw(self):
        rng = np.random.default_rng([self.seed, self.steps])
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return {
            "observation/image": image,
            "observation/wrist_image": image[:, ::-1],
            "observation/state": self.point.astype(np.float32),
            "prompt": "count",
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.point = self.np_random.uniform(-2.5, 2.5, 2)
        return self._raw(), {"task": {"wanted": seed % 3}, "process": os.getpid()}

    def step(self, action):
        self.steps += 1
        self.point = self.point + 0.1 * np.asarray(action)
        if self.steps == 3:
            self._break()
        done = self.steps >= 7 + self.seed % 4
        info = {
            "success": done and self.seed % 2 == 0,
            "failure_cause": "odd" if done and self.seed % 2 else None,
            "unsendable": lambda: None,
        }
        return self._raw(), 0.0, done, False, info

    def _break(self):
        if self.seed in self.crash:
            raise OSError("the simulator lost its display")
        if self.seed in self.hang:
            time.sleep(1000)
        if self.seed in self.kill:
            if self.once is not None:
                mark = Path(self.once) / str(self.seed)
                if mark.exists():
                    return
                mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def make(**kwargs):
    return Fragile(**kwargs)


def refuse():
    raise ImportError("the simulator is not installed: make simulator.")


class Strange(Exception):
    """Whoever unpickles it leaves a mark."""

    def __reduce__(self):
        return Path(self.args[0]).touch, ()


def refuse_strangely(mark):
    raise Strange(str(mark))

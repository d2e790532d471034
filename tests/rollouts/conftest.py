"""A point that must reach the origin, and a policy that walks there: both small enough to read."""

import contextlib
import dataclasses
import threading
import time

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies import BOARD
from mistjax.policies.protocol import Policy, PolicySpec, Sample

TAP = Tap("vlm.resid", (0,), "all", "mean")
STEP_TAP = Tap("action.resid", None, "all", "mean")


class PointEnv(gym.Env):
    """Success within 0.3 of the origin, failure beyond 3; `crash_on` seeds raise at step 1."""

    metadata = {"render_fps": 5}  # noqa: RUF012
    observation_space = gym.spaces.Dict()
    action_space = gym.spaces.Box(-1, 1, (2,))

    def __init__(self, crash_on=()):
        self.crash_on = crash_on
        self.resets = []

    def _raw(self):
        image = np.full((16, 16, 3), 40, np.uint8)
        x, y = np.clip((self.point * 2 + 8).astype(int), 0, 15)
        image[y, x] = 255
        return {
            "observation/image": image,
            "observation/wrist_image": image[:, ::-1],
            "observation/state": self.point.astype(np.float32),
            "prompt": "go to the middle",
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.drift = (options or {}).get("perturbation", {}).get("drift", 0.0)
        self.point = self.np_random.uniform(-2.5, 2.5, 2)
        self.resets.append(seed)
        return self._raw(), {"task": "middle"}

    def step(self, action):
        if self.seed in self.crash_on and self.steps == 1:
            raise OSError("the simulator lost its display")
        self.steps += 1
        self.point = self.point + 0.5 * np.asarray(action) + self.drift
        success = bool(np.linalg.norm(self.point) < 0.3)
        lost = bool(np.linalg.norm(self.point) > 3)
        cause = "left the field" if lost else None
        info = {"success": success, "failure_cause": cause, "distance": np.linalg.norm(self.point)}
        return self._raw(), 0.0, success or lost, self.steps >= 20, info


class PointPolicy(Policy):
    """Walks towards the origin with noise; its memory and its score count the inferences."""

    preset, patch, num_parameters = BOARD, (8, 8), 0

    def __init__(self):
        self.spec = PolicySpec(
            name="point",
            fingerprint="abc",
            action_dim=2,
            action_horizon=4,
            execute_steps=2,
            action_names=("dx", "dy"),
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            gripper_index=None,
            action_scale=(1.0, 1.0),
            cameras={"base": "observation/image", "wrist": "observation/wrist_image"},
            stacks={},
            num_steps=3,
        )
        self.compiles = 0
        self.calls = 0
        self._jitted = jax.jit(self._sample)

    def initial_state(self, batch):
        return {"count": np.zeros((batch, 1), np.float32)}

    def prepare(self, raw):
        state = jnp.stack([r["observation/state"] for r in raw])
        ones = jnp.ones((len(raw), 1), jnp.int32)
        return Observation({}, {}, state, ones, ones.astype(bool))

    def _sample(self, state, key, memory):
        self.compiles += 1
        batch = state.shape[0]
        keys = jax.random.split(key, batch) if key.ndim == 0 else key
        noise = jax.vmap(lambda k: jax.random.normal(k, (4, 2)))(keys)
        actions = -0.6 * state[:, None] + 0.3 * noise
        count = memory["count"] + 1
        return Sample(
            actions=actions,
            taps={str(TAP): state[None], str(STEP_TAP): jnp.stack([state[None]] * 3)},
            aux={
                "score": count[:, 0] / 5,
                "threshold": jnp.full((batch,), 0.7),
                "alarm": count[:, 0] / 5 > 0.7,
                "edited": count[:, 0] > 4,
                "noise": noise,
            },
            state={"count": count},
        )

    def sample(self, obs, key, *, state=(), edits=(), taps=(), prefix=None):
        self.calls += 1
        return self._jitted(obs.state, key, state)

    def finish(self, sample, raw):
        return np.clip(np.asarray(sample.actions), -1, 1)


@pytest.fixture
def policy():
    return PointPolicy()


@pytest.fixture
def make_env():
    return PointEnv


@pytest.fixture
def tap():
    return TAP


@pytest.fixture
def step_tap():
    return STEP_TAP


@pytest.fixture
def same():
    """Asserts that two traces hold the same episode; wall times aside."""

    def check(one, two):
        for name, value in one.tensors().items():
            if name != "timings_ms":
                np.testing.assert_array_equal(value, two.tensors()[name], err_msg=name)
        for field in dataclasses.fields(one):
            if isinstance(getattr(one, field.name), str | bool | int | dict | None) and (
                field.name not in ("features", "aux", "images")
            ):
                assert getattr(one, field.name) == getattr(two, field.name), field.name

    return check


@pytest.fixture
def cluster(monkeypatch):
    """Two machines of one CPU each; the second is the one to kill."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's processes are as busy as this one
    rays = pytest.importorskip("ray", reason="needs Ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.victim = cluster.add_node(num_cpus=1)
    rays.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    rays.shutdown()
    cluster.shutdown()


@pytest.fixture
def kill_once(cluster):
    """Kills the second machine as soon as the first episode stands in a run folder."""

    @contextlib.contextmanager
    def killing(folder):
        def kill():
            while not list(folder.glob("traces/*.safetensors")):
                time.sleep(0.05)
            cluster.remove_node(cluster.victim, allow_graceful=False)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        yield
        killer.join(timeout=60)
        assert not killer.is_alive()

    return killing

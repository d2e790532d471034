"""A policy of a few lines, and a server around it whose policies can be broken."""

import contextlib
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.models.observation import Observation
from mistjax.models.transforms import Cameras
from mistjax.policies import BOARD
from mistjax.policies.protocol import Policy, PolicySpec, Sample
from mistjax.serve.breakable import Breakable
from mistjax.serve.client import Client
from mistjax.serve.promises import Stage, played
from mistjax.serve.server import serving
from mistjax.serve.service import Service
from mistjax.serve.settings import Settings


class Toy(Policy):
    """Acts on its state and counts the inferences of the episode; the score is the count."""

    preset, patch, num_parameters = BOARD, (8, 8), 0

    def __init__(self, watched=False):
        self.spec = PolicySpec(
            name="watched" if watched else "toy",
            fingerprint="abc",
            action_dim=4,
            action_horizon=8,
            execute_steps=4,
            action_names=BOARD.action_names,
            action_low=BOARD.action_low,
            action_high=BOARD.action_high,
            gripper_index=3,
            action_scale=(1.0,) * 4,
            cameras=BOARD.cameras,
            stacks={},
            num_steps=1,
            inputs=("front", "wrist", "state", "instruction") if watched else (),
        )
        self.watched, self.sizes = watched, []

    def initial_state(self, batch):
        return {"count": np.zeros((batch, 1), np.float32)}

    def prepare(self, raw):
        for one in raw:
            if one.get("prompt") == "poison":
                continue
            self.preset.prompt(one)
        images = {}
        for name, key in self.preset.cameras.items():
            images[name] = np.stack([Cameras({name: key}, 8)(one)[0][name] for one in raw])
        state = np.stack([self.preset.state(one) for one in raw])
        ones = np.ones((len(raw), 1), np.int32)
        poison = np.array([[one.get("prompt") == "poison"] for one in raw])
        return Observation(images, {}, state, ones * poison, ones > 0)

    def sample(self, obs, key, *, state=(), edits=(), taps=(), prefix=None):
        self.sizes.append(len(obs.state))
        if np.any(obs.tokenized_prompt):
            raise RuntimeError("a poisoned row")
        noise = jax.vmap(lambda k: jax.random.normal(k, (8, 4)))(key)
        actions = 0.1 * jnp.asarray(obs.state)[:, None, :4] + 0.01 * noise
        count = jnp.asarray(state["count"]) + 1
        aux = {}
        if self.watched:
            alarm = count[:, 0] > 3
            aux = {
                "score": count[:, 0],
                "threshold": jnp.full(len(count), 3.0),
                "alarm": alarm,
                "edited": jnp.zeros_like(alarm),
            }
        return Sample(actions, {}, aux, {"count": count})

    def finish(self, sample, raw):
        return self.preset.bounded(np.asarray(sample.actions), np.asarray(sample.broken), raw)


def look(x=0.0, **more):
    """An observation of the board's robot."""
    picture = np.zeros((8, 8, 3), np.uint8)
    state = np.array([x, 0.2, 0.3, 0.0, 1.0], np.float32)
    return {
        "observation/image": picture,
        "observation/wrist_image": picture,
        "observation/state": state,
        "prompt": "go",
        **more,
    }


@dataclasses.dataclass
class Running:
    """A server, and the two policies in it."""

    server: object
    service: Service
    bare: Breakable
    watched: Breakable

    @property
    def port(self):
        return self.server.port

    def client(self, **options):
        return Client(self.port, **options)

    def stage(self):
        """The server as promises are tried on it."""
        looks = played(self.bare, [look(0.1 * i) for i in range(6)], 3)
        return Stage(self.service, self.bare, self.watched, self.port, looks, 3, slack_ms=1000.0)


@pytest.fixture
def run(tmp_path):
    """`with run(**settings) as running`: a server with a monitored toy policy."""

    @contextlib.contextmanager
    def start(**settings):
        settings = {"port": 0, "out": tmp_path / "out", "max_batch": 4, "max_connections": 8,
                    "deadline_ms": 400.0, "watchdog_ms": 800.0, **settings}  # fmt: skip
        bare, watched = Breakable(Toy()), Breakable(Toy(watched=True))
        service = Service(bare, watched, Settings(**settings))
        service.start()
        with serving(service) as server:
            try:
                yield Running(server, service, bare, watched)
            finally:
                bare.release.set()
                watched.release.set()

    return start


def until(true, seconds=5.0):
    """Waits for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def toy():
    return Toy()


@pytest.fixture
def make_toy():
    return Toy


@pytest.fixture(name="until")
def until_fixture():
    return until


@pytest.fixture(name="look")
def look_fixture():
    return look

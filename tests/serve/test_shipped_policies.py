"""Every kind of shipped policy through the server: a client gets what it gives in process."""

import contextlib

import numpy as np
import pytest

from mistjax.demo import SHIPPED
from mistjax.envs.faults.make import make_faulty
from mistjax.models.transforms import flatten
from mistjax.policies import load_policy
from mistjax.rollouts.plan import LIBERO_ENV, EpisodePlan
from mistjax.serve.certify import SEED, ordinary
from mistjax.serve.client import Client
from mistjax.serve.promises import infer
from mistjax.serve.server import serving
from mistjax.serve.service import Service
from mistjax.serve.settings import Settings
from tests.libero_found import FOUND

pytestmark = pytest.mark.slow
SLOW = {"max_batch": 1, "deadline_ms": 60_000.0, "watchdog_ms": 90_000.0}


@contextlib.contextmanager
def served(policy, out):
    """A client of a server of a policy."""
    service = Service(policy, None, Settings(port=0, out=out, **SLOW))
    service.start()
    with serving(service) as server, Client(server.port, timeout_s=90.0) as client:
        yield client


def same(policy, looks, out):
    """Asks the server and the policy for every observation of an episode."""
    with served(policy, out) as client:
        assert client.metadata["action_horizon"] == policy.spec.action_horizon
        first, state = {"mist/reset": True, "mist/seed": SEED}, policy.initial_state(1)
        for i, raw in enumerate(looks):
            wanted, state = infer(policy, raw, SEED, i, state)
            reply = client.infer({**raw, **(first if i == 0 else {})})
            assert reply["actions"].tobytes() == wanted.tobytes()
            assert (reply["mist/decision"], reply["mist/alarm"]) == ("bare", False)


def test_pi0_fast(tmp_path):
    policy = load_policy(SHIPPED / "board_fast")
    same(policy, ordinary(policy), tmp_path)


def test_openvla(tmp_path):
    pytest.importorskip("torch")
    policy = load_policy(SHIPPED / "board_openvla")
    same(policy, ordinary(policy)[:4], tmp_path)


@pytest.mark.skipif(not FOUND, reason="needs LIBERO and its assets")
def test_a_libero_policy(tmp_path):
    policy = load_policy(SHIPPED / "libero_pi0")
    env = make_faulty(LIBERO_ENV, EpisodePlan(sensor_noise=True).mixture().to_json(), 5,
                      suite="libero_object", image_size=64)  # fmt: skip
    raw, _ = env.reset(seed=3)
    looks = []
    for _ in range(4):
        looks.append({k: v for k, v in flatten(raw).items() if isinstance(v, np.ndarray | str)})
        raw, *_ = env.step(np.zeros(7))
    env.close()
    same(policy, looks, tmp_path)

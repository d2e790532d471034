"""Every kind of policy and robot through the server: a client gets what it gives in process."""

import contextlib
import dataclasses

import numpy as np
import pytest

from mistjax.demo import SHIPPED
from mistjax.envs.faults.make import make_faulty
from mistjax.models.config import IMAGE_KEYS, TINY
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.models.transforms import flatten
from mistjax.policies import PRESETS, load_policy, random_policy
from mistjax.rollouts.plan import LIBERO_ENV, EpisodePlan
from mistjax.serve.certify import SEED, ordinary
from mistjax.serve.client import Client
from mistjax.serve.lane import blank
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


@pytest.mark.parametrize("name", ["pi0_droid", "pi0_aloha", "pi0_libero"])
def test_robots_of_openpi(name, tmp_path):
    train_word_tokenizer(["warm up"], [], tmp_path / "words")
    preset = dataclasses.replace(PRESETS[name], model=None)
    width, horizon = max(preset.state_dim, preset.action_dim), preset.execute_steps
    sizes = {"action_dim": width, "action_horizon": horizon, "max_token_len": 20}
    config = dataclasses.replace(TINY, **sizes, num_steps=2, image_keys=IMAGE_KEYS)
    tokenizer = PromptTokenizer.from_file(tmp_path / "words", 20)
    policy = random_policy(config, tokenizer, preset)
    same(policy, [blank(policy.preset)] * 2, tmp_path / "out")


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

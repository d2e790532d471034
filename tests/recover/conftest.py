"""A tiny random policy, observations of it, and a monitor whose threshold a test chooses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.inputs import Input
from mistjax.detect.methods.safe.heads import SafeMLP
from mistjax.detect.monitor import Monitor
from mistjax.hooks import Add, Tap
from mistjax.models.config import TINY
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import BOARD, random_policy
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.mist import MistPolicy, Remedy
from mistjax.steer.schedules import constant
from mistjax.steer.table import CauseTable

TAP = Tap("action.resid", (-1,), "action", "mean")
PROMPT = "place the black stone at row 2 column 3"


@pytest.fixture(scope="session")
def policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "words.model"
    train_word_tokenizer([PROMPT], ["slowly"], path)
    config = dataclasses.replace(TINY, max_token_len=14)
    return random_policy(config, PromptTokenizer.from_file(path, 14), BOARD)


@pytest.fixture(scope="session")
def obs(policy):
    rng = np.random.default_rng(0)

    def raw():
        return {
            "observation/image": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            "observation/wrist_image": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            "observation/state": rng.normal(size=5).astype(np.float32),
            "prompt": PROMPT,
        }

    return policy.prepare([raw() for _ in range(3)])


@pytest.fixture
def monitor(policy):
    """Never alarms."""
    head = SafeMLP.create(jax.random.key(1), policy.config.action_expert.width, hidden=8)
    threshold = Threshold(jnp.full(10, jnp.inf), 0.1, 9, 10)
    return Monitor(head, threshold, Input.of_taps(TAP))


@pytest.fixture(scope="session")
def blind_monitor():
    """`blind_monitor(policy)`: reads one layer, and alarms only where a number is not finite."""

    def make(policy):
        tap = Tap("vlm.resid", (0,), "image", "mean")
        head = SafeMLP.create(jax.random.key(1), policy.spec.stacks["vlm"].width, hidden=8)
        return Monitor(head, Threshold(jnp.full(10, jnp.inf), 0.1, 9, 10), Input.of_taps(tap))

    return make


@pytest.fixture
def always(monitor):
    """Always alarms."""
    return monitor.replace(threshold=monitor.threshold.replace(upper=jnp.full(10, -jnp.inf)))


@pytest.fixture
def make_mist(policy):
    """(monitor, strength, site, cap) -> MistPolicy with one direction for every cause."""

    def make(monitor, strength=1.0, site="action.mlp_out", cap=0.5):
        stack = policy.spec.stacks[site.split(".")[0]]
        vector = jax.random.normal(jax.random.key(2), (1, stack.depth, stack.width))
        causes = (*policy.config.image_keys, "text", "state")
        table = CauseTable(
            causes=causes,
            names=("any",),
            kind=Add,
            site=site,
            tokens="all",
            arrays={"vector": 3 * vector},
            rows=jnp.zeros(len(causes), int),
            strengths=jnp.full(len(causes), float(strength)),
        )
        limits = FusionLimits.of(policy.spec, cap, policy.config.action_dim)
        return MistPolicy(policy, monitor, Remedy(table, constant(1.0), limits, patch=(8, 8)))

    return make

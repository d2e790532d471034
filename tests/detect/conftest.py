"""A small data set on which failure can be read from the features after its onset, and runs of a
shipped policy that hold everything a detector may read.
"""

import numpy as np
import pytest

from mistjax.demo import SHIPPED
from mistjax.detect import Episodes
from mistjax.detect.inputs import DEFAULT_TAPS
from mistjax.policies.grounding import Grounded
from mistjax.policies.load import load_policy
from mistjax.policies.resampled import Resampled
from mistjax.policies.sensitivity import Sensitive
from mistjax.rollouts.collect import collect


def synthetic_episodes(n=60, dim=8, seed=0, signal=3.0):
    rng = np.random.default_rng(seed)
    success = np.arange(n) % 3 != 0
    lengths = rng.integers(8, 14, n)
    direction = np.random.default_rng(99).normal(size=dim) / np.sqrt(dim)
    features = []
    for ok, t in zip(success, lengths, strict=True):
        x = rng.normal(size=(t, dim))
        features.append(x if ok else x + signal * direction * np.linspace(0, 2, t)[:, None])
    return Episodes.from_sequences(features, success, np.arange(n) % 5, seed=np.arange(n) // 2)


@pytest.fixture(scope="session")
def episodes():
    return synthetic_episodes()


@pytest.fixture(scope="session")
def fresh_episodes():
    return synthetic_episodes(seed=1)


def recorded(folder, policy, **options):
    """16 episodes for training and 24 for calibration, both with some failures."""
    return [
        collect(
            policy,
            folder / name,
            episodes=n,
            first_seed=seed,
            taps=DEFAULT_TAPS,
            num_envs=8,
            **options,
        )
        for name, n, seed in (("train", 16, 0), ("calibration", 24, 100))
    ]


@pytest.fixture(scope="session")
def plain_runs(tmp_path_factory):
    """Of board_pi0."""
    return recorded(tmp_path_factory.mktemp("plain"), load_policy(SHIPPED / "board_pi0"))


@pytest.fixture(scope="session")
def board_runs(tmp_path_factory):
    """Of board_pi0, with all that a detector may read."""
    policy = Resampled(Grounded(Sensitive(load_policy(SHIPPED / "board_pi0"))), 3)
    return recorded(tmp_path_factory.mktemp("board"), policy, aux=("velocity",))

"""A small data set on which failure can be read from the features after its onset."""

import numpy as np
import pytest

from mistjax.detect import Episodes


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

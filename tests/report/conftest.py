import dataclasses

import numpy as np
import pytest

from mistjax.rollouts.run import memory_run
from mistjax.rollouts.store import RunWriter
from mistjax.rollouts.trace import Trace


def make_trace(seed=0, succeeded=False, monitored=True, **changes):
    """Four inferences of two steps; a monitored one crosses its threshold at the third."""
    trace = Trace(
        seed=seed,
        env_id="Toy-v0",
        task="t",
        prompt="put the <black> stone & wait",
        policy="toy",
        policy_fingerprint="0123456789abcdef",
        success=succeeded,
        failure_cause=None if succeeded else "wrong_cell",
        state=np.zeros((8, 3)),
        actions=np.zeros((8, 2)),
        chunks=np.zeros((4, 5, 2)),
        inference_step=np.arange(4) * 2,
        timings_ms=np.array([3.0, 4.0, 5.0, 4.0]),
        images={"observation/image": np.full((4, 16, 16, 3), 90, np.uint8)},
        frames=np.full((9, 16, 32, 3), 90, np.uint8),
    )
    if monitored:
        monitor = {
            "score": np.array([0.1, 0.2, 0.6, 0.7]),
            "threshold": np.full(4, 0.5),
            "alarm": np.array([False, False, True, True]),
            "edited": np.array([False, False, False, True]),
        }
        trace = dataclasses.replace(trace, **monitor)
    return dataclasses.replace(trace, **changes)


CONFIG = {
    "policy": "toy",
    "policy_fingerprint": "0123456789abcdef",
    "env_id": "Toy-v0",
    "perturbation": {"brightness": 0.5},
    "taps": ["vlm.resid@0/all/mean"],
}


@pytest.fixture(scope="session")
def trace():
    return make_trace


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """Writes an arm of some episodes and a crash, the first one on video."""

    def write(name, successes, monitored):
        folder = tmp_path_factory.mktemp(name)
        with RunWriter.open(folder, CONFIG) as writer:
            for seed, success in enumerate(successes):
                episode = make_trace(seed, success, monitored)
                if seed > 0:
                    episode = dataclasses.replace(episode, frames=None, images={})
                writer.add(episode)
            crash = {"success": None, "failure_cause": None, "error": "Traceback\nOSError: no <GL>"}
            writer.add(make_trace(99, monitored=monitored, frames=None, images={}, **crash))
        return folder

    return write


@pytest.fixture
def memory():
    def build(*traces):
        return memory_run(CONFIG, {trace.seed: trace for trace in traces})

    return build

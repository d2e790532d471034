"""What a server recorded of the shipped policy on the board, and what is made of it."""

import contextlib

import numpy as np
import pytest

from mistjax.cli import main
from mistjax.demo import POLICY
from mistjax.detect.inputs import DEFAULT_TAPS
from mistjax.envs.faults.make import make_faulty
from mistjax.rollouts import load_run
from mistjax.rollouts.plan import BOARD_ENV, EpisodePlan
from mistjax.serve.client import Client
from mistjax.serve.load import load_policies
from mistjax.serve.server import serving
from mistjax.serve.service import Service
from mistjax.serve.settings import Settings

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def served(out, mist=None, **settings):
    """A client of a server of the shipped policy."""
    slow = {"port": 0, "max_batch": 1, "deadline_ms": 20_000.0, "watchdog_ms": 30_000.0}
    policies = load_policies(POLICY, mist, shadow=mist is not None)
    service = Service(*policies, Settings(out=out, **slow, **settings))
    service.start()
    with serving(service) as server, Client(server.port) as client:
        yield client


def play(client, seed, fault=None):
    """(replies, whether the robot succeeded) of one episode; the server is told."""
    plan = EpisodePlan(fault=fault, fault_onset=fault and (0, 0), sensor_noise=True)
    env = make_faulty(BOARD_ENV, plan.mixture().to_json(), 4)
    raw, _ = env.reset(seed=seed)
    replies, ended, info, first = [], False, {}, {"mist/reset": True, "mist/seed": seed}
    while not ended:
        request = {k: v for k, v in raw.items() if isinstance(v, np.ndarray | str)}
        replies.append(client.infer({**request, **first}))
        first = {}
        for action in replies[-1]["actions"][:4]:
            raw, _, terminated, truncated, info = env.step(action)
            if ended := terminated or truncated:
                break
    env.close()
    assert client.infer({"mist/success": bool(info["success"])})["mist/ok"]
    return replies, bool(info["success"])


def test_what_a_robot_did_trains_and_calibrates_the_monitor_of_tomorrow(tmp_path):
    with served(tmp_path / "today", record=True) as client:
        played = [play(client, 7_100_000 + i) for i in range(6)]
        played += [play(client, 7_100_100 + i, ("front_frozen", 1.0)) for i in range(4)]
    with served(tmp_path / "later", record=True) as client:
        others = [play(client, 7_100_200 + i) for i in range(6)]
    run = load_run(tmp_path / "today")
    assert [row["success"] for row in run.finished] == [done for _, done in played]
    assert len({done for _, done in played}) == 2 and sum(done for _, done in others) >= 3
    trace = run.trace(run.finished[0]["seed"])
    assert {str(tap) for tap in DEFAULT_TAPS} <= set(trace.features)
    np.testing.assert_array_equal(trace.chunks, [reply["actions"] for reply in played[0][0]])
    detector = tmp_path / "detector"
    words = ["--detector", "linear_probe", "--out", str(detector), "--folds", "0"]
    assert main(["train-detector", str(tmp_path / "today"), *words]) == 0
    words = [str(tmp_path / "later"), "--detector", str(detector), "--alpha", "0.4"]
    assert main(["calibrate", *words]) == 0
    with served(tmp_path / "watched", detector) as client:
        replies, _ = play(client, 7_100_300)
    scores = [reply["mist/score"] for reply in replies]
    assert np.isfinite(scores).all() and len(set(scores)) > 1
    assert all(np.isfinite(reply["mist/threshold"]) for reply in replies)

"""`mistjax serve` with the client that openpi publishes, in an environment of its own."""

import os
import signal

import numpy as np
import pytest

from experiments.served import play, seen, server, stock_client
from mistjax.demo import MIST, POLICY
from mistjax.envs.faults.make import make_faulty
from mistjax.policies import load_policy
from mistjax.rollouts.plan import BOARD_ENV, EpisodePlan
from mistjax.serve.promises import infer

PYTHON = os.environ.get("MISTJAX_CLIENT")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="needs openpi-client"),
]
PICTURE = np.zeros((64, 64, 3), np.uint8)
LOOK = {
    "observation/image": PICTURE,
    "observation/wrist_image": PICTURE,
    "observation/state": np.zeros(5, np.float32),
    "prompt": "place the black stone at row 2 column 3",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The command's process and its port."""
    out = tmp_path_factory.mktemp("served")
    words = [POLICY, "--mist", MIST, "--max-batch", 1, "--out", out, "--record"]
    with server(*words, "--deadline-ms", 20_000, "--watchdog-ms", 30_000) as found:
        yield found


@pytest.fixture
def ask(running):
    """`ask(what, observation)`: what the stock client says."""
    with stock_client(PYTHON, running[1], 4) as found:
        yield found


def board(fault=None):
    """The board with ordinary sensor noise; a fault begins at step 8."""
    plan = EpisodePlan(fault=fault, fault_onset=fault and (8, 8), sensor_noise=True)
    return make_faulty(BOARD_ENV, plan.mixture().to_json(), 4)


def test_the_stock_client_s_metadata(ask):
    said = ask("metadata")
    assert said["action_horizon"] == 8 and said["policy_fingerprint"]


def test_a_fault_alarms_in_the_reply_that_the_chunk_broker_gives(ask):
    replies, _ = play(ask, env := board(("front_frozen", 1.0)), 7_000_000)
    env.close()
    assert all(reply["actions"].shape == (4,) for reply in replies)
    before, after = replies[:8], replies[8:]
    assert not any(reply["mist/unsound"] for reply in before)
    alarms = [reply for reply in after if reply["mist/unsound"]]
    assert alarms and alarms[0]["mist/input"] == "front"
    assert "camera front" in alarms[0]["mist/explanation"]


def test_a_clean_episode_gets_the_bare_policy_s_bytes(ask):
    bare, env = load_policy(POLICY), board()
    raw, state = env.reset(seed=7_000_003)[0], bare.initial_state(1)
    for i in range(6):
        look = seen(raw)
        reply = ask("infer", {**look, **({"mist/reset": True, "mist/seed": 5} if i == 0 else {})})
        wanted, state = infer(bare, look, 5, i, state)
        assert not reply["mist/alarm"] and reply["actions"].tobytes() == wanted.tobytes()
        for action in wanted[:4]:
            raw, *_ = env.step(action)
    env.close()


def test_a_wrong_observation_raises_in_the_client_and_the_next_one_is_answered(ask):
    wrong = {**LOOK, "observation/state": np.full(5, np.nan, np.float32)}
    with pytest.raises(RuntimeError, match=r"is a sensor dead\?"):
        ask("infer", wrong)
    assert ask("infer", LOOK)["actions"].shape == (8, 4)


def test_the_signal_is_a_kill_switch(running, ask):
    assert ask("infer", LOOK)["mist/decision"] == "monitored"
    running[0].send_signal(signal.SIGUSR1)
    for _ in range(50):
        if (said := ask("infer", LOOK)["mist/decision"]) == "pass_through":
            break
    running[0].send_signal(signal.SIGUSR2)
    assert said == "pass_through"

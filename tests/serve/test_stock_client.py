"""`mistjax serve` with the client that openpi publishes, in an environment of its own."""

import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mistjax.demo import MIST, POLICY
from mistjax.envs.faults.make import make_faulty
from mistjax.policies import load_policy
from mistjax.rollouts.loop import episode_keys
from mistjax.rollouts.plan import BOARD_ENV, EpisodePlan
from mistjax.serve.frames import pack, unpack

PYTHON = os.environ.get("MISTJAX_CLIENT")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="needs openpi-client"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The command's process and its port."""
    out = tmp_path_factory.mktemp("served")
    words = ["serve", POLICY, "--mist", MIST, "--port", "0", "--max-batch", "1", "--out", out]
    words += ["--deadline-ms", "20000", "--watchdog-ms", "30000", "--record"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mistjax.cli", *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    found = re.search(r"ws://127\.0\.0\.1:(\d+)", line)
    assert found, line
    yield process, int(found[1]), out
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    process.stdout.close()


@pytest.fixture
def ask(server):
    """`ask(what, observation)`: what the stock client says."""
    script = Path(__file__).parents[2] / "experiments/studies/stock_client.py"
    process = subprocess.Popen(
        [PYTHON, str(script), str(server[1]), "4"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def send(what, observation=None):
        body = pack({"what": what, "observation": observation})
        process.stdin.write(struct.pack("<I", len(body)) + body)
        process.stdin.flush()
        (size,) = struct.unpack("<I", process.stdout.read(4))
        return unpack(process.stdout.read(size))

    yield send
    process.stdin.close()
    assert process.wait(20) == 0
    process.stdout.close()


def play(ask, seed, fault):
    """The replies of an episode on the board, one a step, and the last `info`."""
    plan = EpisodePlan(fault=fault, fault_onset=(8, 8), sensor_noise=True)
    env = make_faulty(BOARD_ENV, plan.mixture().to_json(), 4)
    raw, _ = env.reset(seed=seed)
    replies, ended, info = [], False, {}
    first = {"mist/reset": True, "mist/seed": seed}
    while not ended:
        request = {k: v for k, v in raw.items() if isinstance(v, np.ndarray | str)}
        replies.append(ask("act", {**request, **(first if not replies else {})}))
        raw, _, terminated, truncated, info = env.step(replies[-1]["actions"])
        ended = terminated or truncated
    env.close()
    return replies, info


def test_the_stock_client_s_metadata(ask):
    said = ask("metadata")
    assert said["action_horizon"] == 8 and said["policy_fingerprint"]


def test_a_fault_alarms_in_the_reply_that_the_chunk_broker_gives(ask):
    replies, _ = play(ask, 7_000_000, ("front_frozen", 1.0))
    assert all(reply["actions"].shape == (4,) for reply in replies)
    before, after = replies[:8], replies[8:]
    assert not any(reply["mist/unsound"] for reply in before)
    alarms = [reply for reply in after if reply["mist/unsound"]]
    assert alarms and alarms[0]["mist/input"] == "front"
    assert "camera front" in alarms[0]["mist/explanation"]


def test_a_clean_episode_gets_the_bare_policy_s_bytes_while_nothing_alarms(ask):
    bare = load_policy(POLICY)
    env = make_faulty(BOARD_ENV, EpisodePlan(sensor_noise=True).mixture().to_json(), 4)
    raw, _ = env.reset(seed=7_000_003)
    raw = {k: v for k, v in raw.items() if isinstance(v, np.ndarray | str)}
    reply = ask("infer", {**raw, "mist/reset": True, "mist/seed": 5})
    keys = episode_keys(np.array([5]), np.array([0]))
    wanted = bare.finish(bare.sample(bare.prepare([raw]), keys), [raw])[0]
    assert not reply["mist/alarm"] and reply["actions"].tobytes() == wanted.tobytes()
    env.close()


def test_a_wrong_observation_raises_in_the_client_and_the_next_one_is_answered(ask):
    env_picture = np.zeros((64, 64, 3), np.uint8)
    right = {
        "observation/image": env_picture,
        "observation/wrist_image": env_picture,
        "observation/state": np.zeros(5, np.float32),
        "prompt": "place the black stone at row 2 column 3",
    }
    wrong = {**right, "observation/state": np.full(5, np.nan, np.float32)}
    assert "is a sensor dead?" in ask("infer", wrong)["error"]
    assert ask("infer", right)["actions"].shape == (8, 4)


def test_the_signal_is_a_kill_switch(server, ask):
    picture = np.zeros((64, 64, 3), np.uint8)
    raw = {
        "observation/image": picture,
        "observation/wrist_image": picture,
        "observation/state": np.zeros(5, np.float32),
        "prompt": "place the black stone at row 2 column 3",
    }
    assert ask("infer", raw)["mist/decision"] == "monitored"
    server[0].send_signal(signal.SIGUSR1)
    for _ in range(50):
        if (said := ask("infer", raw)["mist/decision"]) == "pass_through":
            break
    server[0].send_signal(signal.SIGUSR2)
    assert said == "pass_through"

"""The trained board policy on four devices, and on those of two processes."""

import json
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
SCRIPT = "tests/rollouts/devices.py"


def start(*arguments):
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def told(process):
    lines = process.communicate(timeout=1200)[0].splitlines()
    assert process.returncode == 0
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture(scope="module")
def four():
    """On one device, on four, and on four in groups of two that hold the policy together."""
    return told(start("1:1", "4:1", "4:2"))


def test_episodes_are_the_same_on_one_device_and_on_four(four):
    alone, apart, together = four
    assert {**apart, "talking": []} == alone
    assert True in alone["success"]
    for name in ("success", "cause"):
        assert together[name] == alone[name], name
    # sums over parts of a matrix are rounded otherwise, and a stone may be let go a chunk later
    alike = [a == b for a, b in zip(together["steps"], alone["steps"], strict=True)]
    assert sum(alike) >= 0.75 * len(alike)


def test_only_devices_that_hold_the_policy_together_talk(four):
    assert [found["talking"] for found in four] == [[], [], [[0, 1], [2, 3]]]


def test_two_processes_have_the_devices_together(four):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = [start("4:2", "--process", str(i), "--port", port) for i in range(2)]
    try:
        for found in map(told, both):
            assert found == [four[2]]
    finally:
        for process in both:
            process.kill()
            process.wait()

"""The robot's side against the real server over loopback, with jitter, drops and reconnects."""

import time

import numpy as np
import pytest

from mistjax.realtime.runner import Runner

STILL = np.array([0, 0, 0, 1.0], np.float32)


class Line:
    """A client whose line is bad: it waits, and breaks."""

    def __init__(self, client, made):
        self.client, self._ws = client, client.socket
        self.wait_s, self.breaks = 0.0, False
        made.append(self)

    def infer(self, observation):
        time.sleep(self.wait_s)
        if self.breaks:
            raise ConnectionError("the line broke")
        reply = self.client.infer(observation)
        if isinstance(reply, str):
            raise RuntimeError(reply)
        return reply


@pytest.fixture
def robot(run, look):
    """`robot(steps, then)`: actions of a robot at 50 Hz; `then(step, line)` spoils the line. On a
    busy machine it goes on, for at most ten seconds, until the server's actions are back.
    """
    lines = []

    def drive(steps, then=lambda step, line: None, deadline=8, observe=look):
        with run() as up, Runner(
            lambda: Line(up.client(), lines), lambda raw: STILL, every=2, deadline=deadline,
            retry_s=0.02,
        ) as runner:  # fmt: skip
            actions = []
            while len(actions) < steps or (actions[-1].fallback and len(actions) < steps + 500):
                step = len(actions)
                if lines:
                    then(step, lines[-1])
                start = time.monotonic()
                actions.append(runner.act(observe(float(step))))
                drive.slowest_s = max(drive.slowest_s, time.monotonic() - start)
                time.sleep(0.02)
            return actions, runner, lines

    drive.slowest_s = 0.0
    return drive


def test_actions_are_of_the_step_that_they_are_executed_at(robot):
    actions, runner, _ = robot(20)
    assert actions[0].fallback and not actions[-1].fallback
    for action in actions:
        if not action.fallback:
            assert 0 <= action.age < 8
            seen = action.step - action.age
            wanted = np.clip(0.1 * seen, -1, 1)
            assert action.values[0] == pytest.approx(wanted, abs=0.06)
    assert 0 < runner.latency_s[0] <= runner.latency_s[1]


def test_it_never_waits_and_falls_back_when_chunks_are_too_old(robot):
    def stall(step, line):
        line.wait_s = 0.5 if 8 <= step < 16 else 0.0

    actions, _, _ = robot(40, stall)
    assert robot.slowest_s < 0.4
    late = [action for action in actions[10:] if action.fallback]
    assert late and all((action.values == STILL).all() for action in late)
    assert not actions[-1].fallback


def test_a_broken_line_is_made_anew_as_another_episode(robot):
    first = []

    def cut(step, line):
        first.append(line)
        line.breaks = step >= 10 and line is first[0]

    actions, runner, lines = robot(50, cut)
    assert runner.errors >= 1 and len(lines) >= 2 and not actions[-1].fallback
    scores = [a.reply["mist/score"] for a in actions if not a.fallback]
    assert 1.0 in scores[5:]  # the server's count of the episode began anew


def test_a_refused_observation_costs_nothing_but_itself(robot, look):
    def observe(x):
        return look(float("nan") if x == 6 else x)

    actions, _, lines = robot(30, observe=observe)
    assert len(lines) == 1 and not actions[-1].fallback


def test_a_deadline_shorter_than_the_round_is_refused():
    with pytest.raises(ValueError, match="deadline"):
        Runner(lambda: None, lambda raw: STILL, every=4, deadline=2)

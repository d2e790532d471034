"""Replies to clients: openpi's keys, and the monitor's beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mistjax.attribute.naming import sentence
from mistjax.policies.protocol import Policy
from mistjax.policies.wrapper import Wrapper
from mistjax.recover.mist import MistPolicy
from mistjax.report.unsound import NOBODY, STATE_NAMES
from mistjax.serve.lane import Answer
from mistjax.serve.session import Episode


def reply_of(
    policy: Policy,
    episode: Episode,
    answer: Answer | None,
    actions: np.ndarray,
    fallen: bool,
    now: str,
) -> dict[str, Any]:
    """The reply, without `mist/late`, `mist/decision` and `mist/sequence`.

    Args:
        policy: the served policy, with its monitor.
        episode: the episode of the observation.
        answer: the policy's answer; None without one.
        actions: the chunk that goes out, in the robot's units [H,A].
        fallen: whether it is the fallback.
        now: the instruction in the observation.
    """
    said: Mapping[str, Any] = {} if answer is None else answer.said
    named = int(said.get("named", -1))
    failing, unsound = bool(said.get("alarm", False)), bool(said.get("unsound", False))
    inputs = policy.spec.inputs
    named_input = "" if named < 0 else [*inputs, NOBODY][named]
    queued = 0.0 if answer is None else answer.queue_ms
    return {
        "actions": actions,
        "policy_timing": {"infer_ms": 0.0 if answer is None else answer.infer_ms},
        "mist/score": _number(said, "score"),
        "mist/threshold": _number(said, "threshold"),
        "mist/alarm": failing or unsound or fallen,
        "mist/unsound": unsound,
        "mist/input": named_input,
        "mist/input_score": _number(said, "input_score"),
        "mist/input_threshold": _number(said, "input_threshold"),
        "mist/explanation": _explanation(policy, episode, said, fallen, now),
        "mist/edited": bool(said.get("edited", False)),
        "mist/fallback": fallen,
        "mist/queue_ms": queued,
    }


def _explanation(
    policy: Policy, episode: Episode, said: Mapping[str, Any], fallen: bool, now: str
) -> str:
    """Why there is an alarm, in a sentence or two; "" without one."""
    parts = []
    if fallen:
        parts.append("The policy gave no action, so the fallback goes out.")
    if said.get("unsound", False) and int(said.get("named", -1)) >= 0:
        at = {
            name.removeprefix("evidence/"): value
            for name, value in said.items()
            if name.startswith("evidence/")
        }
        at |= {"named": said["named"], "threshold": said["input_threshold"]}
        states = STATE_NAMES.get(policy.preset.name, ())
        prompts = (episode.prompt, now)
        parts.append(sentence(at, policy.spec.inputs, states, prompts))
    if said.get("alarm", False) and not fallen:
        score, limit = _number(said, "score"), _number(said, "threshold")
        cause = _cause(policy, int(said.get("cause", -1)))
        because = f"; it relies most on the {cause}" if cause else ""
        parts.append(f"The failure score is {score:.3g}, above {limit:.3g}{because}.")
    return " ".join(parts)


def _cause(policy: Any, row: int) -> str:
    while isinstance(policy, Wrapper) and not isinstance(policy, MistPolicy):
        policy = policy.policy
    if row < 0 or not isinstance(policy, MistPolicy) or policy.remedy is None:
        return ""
    return policy.remedy.table.causes[row]


def _number(said: Mapping[str, Any], name: str) -> float | None:
    return float(said[name]) if name in said else None

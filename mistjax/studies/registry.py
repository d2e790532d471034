"""The studies by name."""

from __future__ import annotations

import dataclasses

from mistjax.studies.conditions import CHOSEN
from mistjax.studies.table import Target

CONDITIONS = ("mixture", "nominal", "unseen_strengths", "unseen_kinds", *CHOSEN)


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, and where.

    Attributes:
        question: what it answers.
        arms: keys of `ARMS`, or families of them; `bare` first. `always_best` is the single remedy
            that does best when always on, chosen on episodes of its own (tuning seeds).
        conditions: see `condition`.
        targets: differences aimed at, fixed before anything was measured.
    """

    question: str
    arms: tuple[str, ...]
    conditions: tuple[str, ...] = CONDITIONS
    targets: tuple[Target, ...] = ()


STUDIES: dict[str, Study] = {
    "full_mist": Study(
        "Does a loop that names the unsound input and repairs it do better than the policy alone, "
        "than the same remedies always on, and than repairing without a name?",
        (
            "bare",
            "monitor",
            "mist",
            "always_best",
            "all_at_alarm",
            "random_input",
            "oracle",
            "always_all",
            "oracle_input",
            "wrong_input",
            "random_time",
            "random_direction",
            "no_op",
        ),
        targets=(
            Target("mixture", "mist", "bare", 25, 0.001),
            Target("mixture", "mist", "always_best", 10, 0.001),
            Target("mixture", "mist", "all_at_alarm", 8, 0.001),
            Target("mixture", "mist", "random_input", 20, 0.001),
            Target("nominal", "mist", "bare", -1),
            *(
                Target(condition, "mist", other, 0, 0.01)
                for condition in ("unseen_strengths", "unseen_kinds")
                for other in ("bare", "always_best")
            ),
        ),
    ),
    "baselines": Study(
        "What do a monitor of failures and the usual answers to its alarm do about a bad input?",
        ("bare", "monitor", "detect_only", "retreat", "steer", "always_best", "mist"),
        ("mixture", "nominal"),
    ),
    "steering_only": Study(
        "Does steering hidden states repair a bad input?",
        ("bare", "monitor", "steer", "steer_random", "steer_always", "mist"),
        ("mixture", "nominal"),
    ),
    "ablations": Study(
        "Which part of the loop is needed?",
        (
            "bare",
            "monitor",
            "mist",
            "level_only",
            "change_only",
            "without_front",
            "without_wrist",
            "without_state",
            "cap_0.5",
            "cap_0.25",
            "never_ends",
            "oracle",
        ),
        ("mixture", "nominal"),
    ),
}

"""Policies: what acts, behind one protocol."""

from mistjax.policies.families import Family
from mistjax.policies.fast import FastPolicy
from mistjax.policies.load import load_policy
from mistjax.policies.pi import PiPolicy, random_policy
from mistjax.policies.presets import BOARD, BOARD_FAST, LIBERO_TINY, PRESETS, RobotPreset
from mistjax.policies.protocol import (
    LanguagePolicy,
    Policy,
    PolicySpec,
    Sample,
    SeeingPolicy,
    StackSpec,
    StatePromptPolicy,
    TraceablePolicy,
    WritingPolicy,
)

__all__ = [
    "BOARD",
    "BOARD_FAST",
    "LIBERO_TINY",
    "PRESETS",
    "Family",
    "FastPolicy",
    "LanguagePolicy",
    "PiPolicy",
    "Policy",
    "PolicySpec",
    "RobotPreset",
    "Sample",
    "SeeingPolicy",
    "StackSpec",
    "StatePromptPolicy",
    "TraceablePolicy",
    "WritingPolicy",
    "load_policy",
    "random_policy",
]

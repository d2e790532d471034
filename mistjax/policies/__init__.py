"""Policies: what acts, behind one protocol."""

from mistjax.policies.fast import FastPolicy
from mistjax.policies.pi import PiPolicy, random_policy
from mistjax.policies.presets import BOARD, BOARD_FAST, LIBERO_TINY, PRESETS, RobotPreset
from mistjax.policies.protocol import LanguagePolicy, Policy, PolicySpec, Sample, StackSpec

__all__ = [
    "BOARD",
    "BOARD_FAST",
    "LIBERO_TINY",
    "PRESETS",
    "FastPolicy",
    "LanguagePolicy",
    "PiPolicy",
    "Policy",
    "PolicySpec",
    "RobotPreset",
    "Sample",
    "StackSpec",
    "random_policy",
]

"""Clean episodes that a monitor of the inputs and an imputer are fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mistjax.detect.novelty.reading import FIELDS, Reads
from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy
from mistjax.policies.resampled import Resampled
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run


def record_clean(policy: Policy, out: Path, plan: EpisodePlan, taps: Sequence[Tap]) -> Run:
    """Episodes as `mistjax collect --inputs` records them.

    Args:
        policy: what acts.
        out: run folder; what is in it already is kept.
        plan: which episodes.
        taps: activations to record.
    """
    return collect(
        Reads(Resampled(policy, samples=1)),
        out,
        plan,
        env_options=policy.preset.env_options,
        taps=taps,
        aux=FIELDS,
    )

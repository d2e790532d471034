"""The arms of a paired study: the bare policy and its monitored versions on the same seeds.

Arms: `bare`; `monitor` watches only, so its actions must equal the bare ones; `random` steers at
the same alarms along random directions of the same length, the control for steering at all; `mist`.
Beside them, `without_WORDS`: the bare policy, which cannot read these words.
`mistjax.report.study` makes tables and a page of them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mistjax.attribute.masked import MaskedWords
from mistjax.policies.protocol import Policy
from mistjax.recover.artifact import ARMS, LOADABLE, load_mist
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run

ALL_ARMS = ("bare", *ARMS)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """What is compared, where and how often.

    Attributes:
        policy: checkpoint of the bare policy.
        mist: folder of its monitor and remedy; needed by every arm but `bare`.
        out: each arm's run goes into a folder of its name, the page is `report.html` beside them.
        arms: some of `ALL_ARMS`; the others are compared with the first.
        plan: the episodes of each arm.
        stratum: which threshold of the monitor, where it has several.
        preset: robot preset of the policy; None is the checkpoint's own.
        unnorm_key: see `load_policy`.
        delay: actions executed while an inference runs.
        strategy: what is executed meanwhile, see `mistjax.realtime.strategies`; None executes
            chunks without a delay.
        title: of the report.
        mask_words: further arms, each a bare policy that cannot read these words, comma-separated;
            see `MaskedWords`.
    """

    policy: str | Path
    mist: Path | None
    out: Path
    arms: tuple[str, ...] = ALL_ARMS
    plan: EpisodePlan = dataclasses.field(default_factory=lambda: EpisodePlan(videos=3))
    stratum: str | None = None
    preset: str | None = None
    unnorm_key: str | None = None
    delay: int = 0
    strategy: str | None = None
    title: str = "Paired study"
    mask_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mask_words and self.plan.compiled:
            raise ValueError("compiled episodes are played with all words: leave compiled out.")


def load_arms(bare: Policy, config: StudyConfig) -> dict[str, Policy]:
    """The policy of every arm.

    Raises:
        ValueError: an unknown arm, no `mist` for an arm that needs it, or see `MaskedWords`.
        FileNotFoundError, FingerprintError: see `load_mist`.
    """
    known = ("bare", *LOADABLE)
    unknown = sorted(set(config.arms) - set(known))
    if unknown or not config.arms or len(set(config.arms)) < len(config.arms):
        raise ValueError(f"arms are {config.arms}: choose some of {', '.join(known)}.")
    masked = [MaskedWords.parse(bare, words) for words in config.mask_words]
    names = [policy.name for policy in masked]
    if len(set(names)) < len(names):
        raise ValueError(f"words to mask are {list(config.mask_words)}: expected each once.")
    arms = {arm: _arm(bare, arm, config) for arm in config.arms}
    return arms | dict(zip(names, masked, strict=True))


def play(bare: Policy, policies: dict[str, Policy], config: StudyConfig) -> dict[str, Run]:
    """Runs every arm; resumes where it was interrupted.

    Returns:
        arm -> run.

    Raises:
        ValueError: `out` holds runs of another study.
    """
    runs = {}
    for arm, policy in policies.items():
        print(f"{arm}:", flush=True)
        runs[arm] = collect(
            policy,
            config.out / arm,
            config.plan,
            env_options=bare.preset.env_options,
            aux=_why(bare) if arm in config.arms and arm not in ("bare", "monitor") else (),
        )
    return runs


def _arm(bare: Policy, arm: str, config: StudyConfig) -> Policy:
    if arm == "bare":
        return bare
    if config.mist is None:
        raise ValueError(f"arm {arm!r} needs a monitor: give the folder of one (`--mist`).")
    return load_mist(config.mist, bare, arm, stratum=config.stratum)


def _why(policy: Policy) -> tuple[str, ...]:
    """The outputs that explain an alarm."""
    cameras = tuple(f"why/{name}" for name in policy.spec.cameras)
    return ("cause", *cameras, "why/text", "why/state")

"""The arms of paired studies by name: which policy acts, and what it is told.

Every arm has the same preparation (`LatchedPrompt`), bare too. What an arm is told about an episode
(an oracle the truth, a control a random input) follows from the episode's seed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mistjax.detect.novelty.artifact import load_inputs
from mistjax.envs.faults.battery import Mixture
from mistjax.policies.corrected import CorrectedPrompt
from mistjax.policies.latched import LatchedPrompt
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.recover.artifact import load_mist, load_remedy
from mistjax.recover.decision import DECISIONS, NEVER, Decision, Scripted, Told, always
from mistjax.recover.elites import load_elites
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.gate import ActionGate
from mistjax.recover.redraw import BestOf, Elite, Guided, Redraw, Steered
from mistjax.recover.redrawn import Redrawn
from mistjax.recover.repaired import Repaired
from mistjax.recover.retreat import Retreat
from mistjax.recover.watched import Watched
from mistjax.steer.artifact import load_steering
from mistjax.steer.feedback import CONTROL, FEEDBACK
from mistjax.steer.policy import load_steered
from mistjax.steer.remedies.artifact import RepairConfig, load_repairs
from mistjax.steer.remedies.clean import Clean, load_clean
from mistjax.steer.remedies.first_sound import FirstSound
from mistjax.steer.remedies.mask import Mask
from mistjax.steer.remedies.sighted import SightedReckoning

RANDOM_TIME = (1, 20)
"""First and last inference at which the arm `random_time` begins."""
CHANCE = 0.1
"""How often it begins without an unsound input: the rate of false alarms that the monitor
promises.
"""

GATE = 0.1
"""Share of an action's range within which a gated arm takes two actions for the same."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a study is about.

    Attributes:
        bare: the policy.
        mist: folder of its monitors and remedies.
        robust: a policy trained to cope without a camera, or None.
        robust_mist: folder of its monitor and remedies, or None.
    """

    bare: Policy
    mist: Path
    robust: str | Path | None = None
    robust_mist: Path | None = None

    @functools.cached_property
    def kit(self) -> Kit:
        return Kit.load(self.bare, self.mist)

    @functools.cached_property
    def robust_policy(self) -> Policy:
        """ValueError without one."""
        if self.robust is None:
            raise ValueError(
                "the arms robust and robust_mist need a policy trained to cope without a camera: "
                "give its checkpoint (--robust), or name the other arms (--arms)."
            )
        return load_policy(self.robust)

    @functools.cached_property
    def robust_kit(self) -> Kit:
        """ValueError without one."""
        if self.robust_mist is None:
            raise ValueError(
                "the arm robust_mist needs the folder of a monitor and remedies made with the "
                "robust policy: give it (--robust-mist), or name the other arms (--arms)."
            )
        return Kit.load(self.robust_policy, self.robust_mist)

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs whose remedy is not already part of the preparation."""
        kept = LatchedPrompt.around(self.bare, self.bare) is not self.bare
        names = Watched(self.bare, self.kit.inputs).spec.inputs
        return tuple(n for n in names if not (kept and n == "instruction"))


@dataclasses.dataclass(frozen=True)
class Kit:
    """A policy with what watches and repairs its inputs.

    Attributes:
        bare: the policy.
        inputs: the monitor.
        remedies: of each input.
        config: how far and how long to repair.
        folder: where they are from.
    """

    bare: Any
    inputs: Any
    remedies: Mapping[str, Any]
    config: RepairConfig
    folder: Path

    @classmethod
    def load(cls, bare: Policy, folder: Path) -> Kit:
        """FileNotFoundError, FingerprintError or ValueError: see `load_inputs`, `load_repairs`."""
        inputs = load_inputs(folder, bare.spec.fingerprint)
        return cls(bare, inputs, *load_repairs(folder, bare.spec.fingerprint, inputs), folder)

    @functools.cached_property
    def clean(self) -> Clean:
        """FileNotFoundError or FingerprintError: see `load_clean`."""
        return load_clean(self.folder, self.bare.spec.fingerprint)

    def repaired(self, decision: Decision, name: str) -> Repaired:
        """The policy with a decision about its repair."""
        limits = FusionLimits.of(self.bare.spec, self.config.cap, self.bare.chunk_width)
        return Repaired(self.bare, self.inputs, self.remedies, limits, self.config, decision, name)

    def replace_inputs(self, **fields: Any) -> Kit:
        """With fields of the monitor changed."""
        return dataclasses.replace(self, inputs=dataclasses.replace(self.inputs, **fields))

    def masking(self) -> Kit:
        """With a mask as each camera's remedy."""
        return self.replace_remedies({name: Mask() for name in self.inputs.cameras})

    def replace_remedies(self, remedies: Mapping[str, Any]) -> Kit:
        """With other remedies of some inputs."""
        return dataclasses.replace(self, remedies={**self.remedies, **remedies})

    def picturing(self, which: str) -> Kit:
        """With a remedy of pictures for each camera.

        Args:
            which: "gain", "paste", or "first_sound" for both of them before the imputer.
        """
        first = self.inputs.cameras[0]
        start, stop = self.bare.spec.stacks["vision"].layout.segments[first]
        size = tuple(math.isqrt(stop - start) * length for length in self.bare.patch)
        gain, paste = self.clean.gain, self.clean.paste(self.inputs, size)
        one = {"gain": gain, "paste": paste}
        return self.replace_remedies(
            {
                name: one.get(which) or FirstSound((gain, paste), self.remedies[name])
                for name in self.inputs.cameras
            }
        )

    def place(self, name: str) -> str:
        """The monitor's name of an input as the battery names it."""
        known = dict(
            zip(Watched(self.bare, self.inputs).spec.inputs, self.inputs.inputs, strict=True)
        )
        if name not in known:
            raise ValueError(f"no input is called {name!r}: the policy has {', '.join(known)}.")
        return known[name]


Make = Callable[[Subject, Mixture], Policy]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One policy of a study.

    Attributes:
        says: what it does, for the page.
        make: the policy, without its preparation.
        robust: whether it is built from the robust policy.
        decision: when it differs from the policy alone; None where that is not known beforehand.
        told: what it is told about the episodes.
    """

    says: str
    make: Make
    robust: bool = False
    decision: Decision | None = None
    told: Callable[[Subject, Mixture], Told] | None = None

    def idle(self, subject: Subject, faults: Mixture, seed: int, alarmed: bool) -> bool:
        """Whether the actions of an episode are those of the policy alone, bit for bit: no alarm
        that the arm waits for, or no input that it is told to repair.

        Args:
            subject, faults: see `make_arm`.
            seed: of the episode.
            alarmed: whether the monitor of inputs alarms while nothing is repaired.
        """
        if self.decision is None:
            return False
        if self.decision.when == "alarm" and not alarmed:
            return True
        if self.told is None or not self.decision.scripted:
            return False
        where, at = self.told(subject, faults)(seed)
        return where is None or (self.decision.when == "script" and at >= NEVER)


def make_arm(name: str, subject: Subject, faults: Mixture) -> Policy:
    """The policy of an arm with its preparation.

    Args:
        name: key of `ARMS`, `always_INPUT` or `without_INPUT`.
        subject: what the study is about.
        faults: which fault happens in which episode.

    Raises:
        ValueError: an unknown arm, or one that lacks what it is built from.
        FileNotFoundError, FingerprintError: see `Kit.load`.
    """
    arm = find_arm(name)
    bare = subject.robust_policy if arm.robust else subject.bare
    return LatchedPrompt.around(arm.make(subject, faults), bare)


def find_arm(name: str) -> Arm:
    """The arm of that name; ValueError, listing all of them, for an unknown one."""
    if name in ARMS:
        return ARMS[name]
    for prefix, family in (("always_", _always), ("without_", _without)):
        if name.startswith(prefix):
            return family(name.removeprefix(prefix))
    raise ValueError(
        f"no arm is called {name!r}: expected one of {', '.join(ARMS)}, always_INPUT, "
        "without_INPUT."
    )


def _always(where: str) -> Arm:
    def make(subject: Subject, faults: Mixture) -> Policy:
        kit = subject.kit
        return kit.repaired(always(kit.place(where)), f"always_{where}")

    return Arm(f"the remedy of {where} alone, always on", make)


def _decided(name: str, says: str, told: Callable[[Subject, Mixture], Told] | None = None) -> Arm:
    """A policy that is repaired as `DECISIONS[name]` says."""

    def make(subject: Subject, faults: Mixture) -> Policy:
        repaired = subject.kit.repaired(DECISIONS[name], name)
        return repaired if told is None else Scripted(repaired, told(subject, faults))

    return Arm(says, make, decision=DECISIONS[name], told=told)


def _ablated(
    name: str,
    says: str,
    change: Callable[[Kit], Kit],
    decision: Decision = DECISIONS["mist"],
    *,
    watches: bool = True,
) -> Arm:
    """MIST with one part changed; `watches`: whether it alarms as the arm `monitor` does."""
    return Arm(
        says,
        lambda subject, faults: change(subject.kit).repaired(decision, name),
        decision=decision if watches else None,
    )


def _pictured(which: str, says: str) -> Arm:
    """MIST with another remedy of the cameras."""
    return _ablated(which, says, lambda kit: kit.picturing(which))


def _pictured_always(which: str, says: str) -> Arm:
    """That remedy of all cameras from the start on, and nothing else."""

    def make(subject: Subject, faults: Mixture) -> Policy:
        kit = subject.kit.picturing(which)
        return kit.repaired(always(*kit.inputs.cameras), f"always_{which}")

    return Arm(says, make)


def _without_sight(kit: Kit) -> Kit:
    sighted = kit.remedies["state"]
    if not isinstance(sighted, SightedReckoning):
        raise ValueError(
            f"the arm commands_only needs a state that is reckoned by sight, and {kit.folder} has "
            "none: fit it with `mistjax fit-reckoning`, or name the other arms (--arms)."
        )
    blind = dataclasses.replace(sighted, noise=jnp.full_like(sighted.noise, jnp.inf))
    return kit.replace_remedies({"state": blind})


def _capped(share: float) -> Callable[[Kit], Kit]:
    return lambda kit: dataclasses.replace(kit, config=dataclasses.replace(kit.config, cap=share))


def _without(where: str) -> Arm:
    def change(kit: Kit) -> Kit:
        place = kit.place(where)
        left = {name: remedy for name, remedy in kit.remedies.items() if name != place}
        return dataclasses.replace(kit, remedies=left)

    return _ablated(f"without_{where}", f"the loop without the remedy of {where}", change)


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, 0x57D, stream])


def truth(seed: int, subject: Subject, faults: Mixture) -> tuple[str | None, int]:
    """The unsound input of an episode, and the first inference that can show it."""
    fault = faults.draw(seed)
    if fault is None or fault.input not in subject.inputs:
        return None, NEVER
    return fault.input, -(-fault.onset // subject.bare.spec.execute_steps)


def _oracle(subject: Subject, faults: Mixture) -> Told:
    return lambda seed: truth(seed, subject, faults)


def _random_input(subject: Subject, faults: Mixture) -> Told:
    return lambda seed: (str(_generator(seed, 0).choice(subject.inputs)), 0)


def _wrong_input(subject: Subject, faults: Mixture) -> Told:
    def told(seed: int) -> tuple[str, int]:
        right = truth(seed, subject, faults)[0]
        wrong = [name for name in subject.inputs if name != right]
        return str(_generator(seed, 1).choice(wrong)), 0

    return told


def _random_time(subject: Subject, faults: Mixture) -> Told:
    def told(seed: int) -> tuple[str | None, int]:
        rng, right = _generator(seed, 2), truth(seed, subject, faults)[0]
        at = int(rng.integers(RANDOM_TIME[0], RANDOM_TIME[1] + 1))
        if right is None and rng.random() >= CHANCE:
            return None, NEVER
        return right or str(rng.choice(subject.inputs)), at

    return told


def _failures(arm: str) -> Make:
    """The monitor of failures alone, and its steering."""
    return lambda subject, faults: _failure_loop(subject, arm)


def _failure_loop(subject: Subject, arm: str) -> Any:
    found = load_mist(subject.mist, subject.bare, arm)
    return found.policy if isinstance(found, Watched) else found


def _redrawn(name: str, says: str, redraw: Callable[[Subject, bool], Redraw]) -> dict[str, Arm]:
    """Another chunk at an alarm of the monitor of failures, always, and by chance at an alarm.

    Args:
        name: of the first of these arms.
        says: what it does.
        redraw: of a subject, and whether it is the control.
    """

    def arm(suffix: str, says: str) -> Arm:
        def make(subject: Subject, faults: Mixture) -> Policy:
            return Redrawn.of(
                _failure_loop(subject, "monitor"),
                redraw(subject, suffix == "_random"),
                load_remedy(subject.mist).cap,
                when="always" if suffix == "_always" else "alarm",
                name=name + suffix,
            )

        return Arm(says, make)

    return {
        name: arm("", f"{says}, at an alarm of that monitor"),
        f"{name}_always": arm("_always", "the same, always"),
        f"{name}_random": arm("_random", "the same at an alarm, by chance"),
    }


def _elite(subject: Subject, blind: bool) -> Elite:
    return Elite(load_elites(subject.mist, subject.bare.spec.fingerprint), blind=blind)


def _feedback(subject: Subject, blind: bool) -> Steered:
    name, found = CONTROL if blind else FEEDBACK, load_steering(subject.mist, subject.bare.spec)
    if name not in found.directions:
        raise ValueError(
            f"{subject.mist} has no direction {name!r}: solve for it with `mistjax fit-feedback`, "
            "or name the other arms (--arms)."
        )
    return Steered(found.directions[name].to_edit())


def _gate(subject: Subject) -> ActionGate:
    return ActionGate.of(subject.bare.spec, GATE, subject.bare.chunk_width)


def _steer_always(subject: Subject, faults: Mixture) -> Policy:
    """Steers from the first inference; ValueError unless the folder's causes share one
    direction.
    """
    steering = load_steering(subject.mist, subject.bare.spec)
    used = {cause for cause in steering.causes.values() if cause is not None}
    if len(used) != 1:
        raise ValueError(
            f"the arm steer_always needs one direction that {subject.mist} steers along, but its "
            f"causes use {sorted(used)}: name the other arms (--arms)."
        )
    ((name, strength),) = used
    return load_steered(subject.bare, subject.mist, name, strength)


ARMS: dict[str, Arm] = {
    "bare": Arm("the policy as it is", lambda subject, faults: subject.bare),
    "mist": _decided("mist", "the input that is named is repaired, from the alarm on"),
    "always_all": _decided("always_all", "every remedy, always on"),
    "all_at_alarm": _decided("all_at_alarm", "every remedy, from the alarm on"),
    "random_input": _decided(
        "random_input", "the remedy of a random input, from the alarm on", _random_input
    ),
    "oracle": _decided(
        "oracle", "the remedy of the unsound input, from the onset on: both are told", _oracle
    ),
    "oracle_input": _decided(
        "oracle_input", "the remedy of the unsound input, which is told, from the alarm on", _oracle
    ),
    "wrong_input": _decided(
        "wrong_input", "the remedy of an input that is sound, from the alarm on", _wrong_input
    ),
    "random_time": _decided(
        "random_time", "the remedy of the unsound input from a random moment on", _random_time
    ),
    "random_direction": _decided(
        "random_direction", "a random change as large as the repair, where it would be"
    ),
    "no_op": _decided("no_op", "the whole loop, with no change"),
    "monitor": Arm(
        "watches its inputs, changes nothing",
        lambda subject, faults: Watched(
            subject.bare, load_inputs(subject.mist, subject.bare.spec.fingerprint)
        ),
    ),
    "robust": Arm(
        "another policy, trained to cope without a camera",
        lambda subject, faults: subject.robust_policy,
        robust=True,
    ),
    "robust_mist": Arm(
        "the loop around that policy",
        lambda subject, faults: subject.robust_kit.repaired(DECISIONS["mist"], "robust_mist"),
        robust=True,
    ),
    "robust_masks": Arm(
        "the same, but a camera that is named is masked instead of imputed",
        lambda subject, faults: subject.robust_kit.masking().repaired(
            DECISIONS["mist"], "robust_masks"
        ),
        robust=True,
    ),
    "robust_random": Arm(
        "the same for a random input, from the alarm on",
        lambda subject, faults: Scripted(
            subject.robust_kit.masking().repaired(DECISIONS["random_input"], "robust_random"),
            _random_input(subject, faults),
        ),
        robust=True,
    ),
    "level_only": _ablated(
        "level_only",
        "the loop without changes: only how unusual each input is decides",
        lambda kit: kit.replace_inputs(scale=kit.inputs.scale.at[:, 1:].set(jnp.inf)),
        watches=False,
    ),
    "change_only": _ablated(
        "change_only",
        "the loop without how unusual an input is: only changes decide",
        lambda kit: kit.replace_inputs(scale=kit.inputs.scale.at[:, 0].set(jnp.inf)),
        watches=False,
    ),
    "cap_0.5": _ablated(
        "cap_0.5", "actions at most half of their range from the bare ones", _capped(0.5)
    ),
    "cap_0.25": _ablated("cap_0.25", "at most a quarter of it", _capped(0.25)),
    "never_ends": _ablated(
        "never_ends",
        "what was named once is repaired to the end of the episode",
        lambda kit: kit,
        Decision(ends=False),
    ),
    "commands_only": _ablated(
        "commands_only",
        "the loop, but a state that is named is reckoned from the commands alone",
        _without_sight,
    ),
    "gain": _pictured("gain", "the loop, but a camera that is named gets its own light back"),
    "gain_always": _pictured_always("gain", "both cameras get their own light back, always on"),
    "paste": _pictured(
        "paste", "the loop, but strange parts of a camera that is named are pasted over"
    ),
    "paste_always": _pictured_always("paste", "strange parts are pasted over, always on"),
    "first_sound": _pictured(
        "first_sound", "the loop with gain, else paste, else imputation, as the imputer judges"
    ),
    "corrected": Arm(
        "unknown words become the nearest known ones, always on",
        lambda subject, faults: CorrectedPrompt(subject.bare, subject.kit.clean.words),
    ),
    "detect_only": Arm("the monitor of failures (SAFE), changes nothing", _failures("monitor")),
    "retreat": Arm(
        "the robot undoes its last moves at an alarm of that monitor, then tries again",
        lambda subject, faults: Retreat.of(_failures("monitor")(subject, faults)),
    ),
    "steer": Arm("hidden states are steered at an alarm of that monitor", _failures("mist")),
    "steer_random": Arm("the same, in random directions of the same length", _failures("random")),
    "steer_always": Arm("the same edit, always on", _steer_always),
    **_redrawn(
        "best_of",
        "of 8 chunks the one with the lowest failure score",
        lambda subject, blind: BestOf(8, blind),
    ),
    **_redrawn(
        "guided",
        "the flow goes down the failure score's gradient",
        lambda subject, blind: Guided(0.3, blind),
    ),
    **_redrawn("elite", "the flow starts half-way from what worked before", _elite),
    **_redrawn(
        "feedback",
        "a linear regulator holds the action expert to its clean mean along failure",
        _feedback,
    ),
    "mist_gated": Arm(
        "the loop, which remembers what was seen only where it changed the action",
        lambda subject, faults: dataclasses.replace(
            subject.kit.repaired(DECISIONS["mist"], "mist_gated"), gate=_gate(subject)
        ),
    ),
    "steer_gated": Arm(
        "steered like steer, but explained only where the observation changed the action",
        lambda subject, faults: dataclasses.replace(
            _failure_loop(subject, "mist"), gate=_gate(subject), name="steer_gated"
        ),
    ),
}
"""Arms by name, the most telling ones first."""

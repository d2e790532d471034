"""When a repair begins, and of which inputs: separate from what a repair is, so that a study can
hold one of them and change the other.

MIST repairs the input that its monitor names. The other decisions are its controls; `DECISIONS` has
them by name. Some of them need to be told something about the episode: a `Script` is an input and
an inference, known from the episode's seed, and enters through the policy's state (`Scripted`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from mistjax.detect.novelty.monitor import InputEvidence
from mistjax.policies.wrapper import Briefed

NEVER = 2**30
"""An inference that no episode reaches."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """A rule.

    Attributes:
        when: a repair begins at the "alarm", at the "start" (the second inference: before it there
            is nothing good to remember), or at the inference of the "script".
        which: the "named" input, "all" inputs, that of the "script", or these, by name.
        effect: "repair"; a change of the same size in a "random" direction; or "none", with
            everything else unchanged.
        ends: whether an input is trusted again once it agrees with what stands in for it.
    """

    when: Literal["alarm", "start", "script"] = "alarm"
    which: Literal["named", "all", "script"] | tuple[str, ...] = "named"
    effect: Literal["repair", "random", "none"] = "repair"
    ends: bool = False

    def __post_init__(self):
        if self.which == "named" and self.when != "alarm":
            raise ValueError(f"when is {self.when!r}: an input is named at the alarm only.")

    @property
    def scripted(self) -> bool:
        """Whether an episode needs a script."""
        return "script" in (self.when, self.which)


DECISIONS: dict[str, Decision] = {
    "mist": Decision(ends=True),
    "always_all": Decision("start", "all"),
    "all_at_alarm": Decision("alarm", "all"),
    "random_input": Decision("alarm", "script"),
    "wrong_input": Decision("alarm", "script"),
    "random_time": Decision("script", "script"),
    "oracle_input": Decision("alarm", "script"),
    "oracle": Decision("script", "script"),
    "random_direction": Decision(effect="random", ends=True),
    "no_op": Decision(effect="none", ends=True),
}
"""Arms of a study. Those that share a rule differ in their scripts."""


def always(*inputs: str) -> Decision:
    """These inputs from the start on."""
    return Decision("start", inputs)


@flax.struct.dataclass
class Script:
    """What a decision is told about each element's episode.

    Attributes:
        input: by its place in `InputMonitor.inputs`; -1 for none of them.
        inference: from which one on; `NEVER`.
    """

    input: Int[Array, " b"]
    inference: Int[Array, " b"]

    @classmethod
    def none(cls, batch: int) -> Script:
        return cls(jnp.full(batch, -1, jnp.int32), jnp.full(batch, NEVER, jnp.int32))


def begins(
    decision: Decision,
    inputs: Sequence[str],
    evidence: InputEvidence,
    alarmed: Bool[Array, " b"],
    looks: Int[Array, " b"],
    script: Script,
) -> Bool[Array, "b i"]:
    """Which inputs are to be repaired from now on.

    Args:
        decision: the rule.
        inputs: names, in the monitor's order.
        evidence: what the monitor says now.
        alarmed: whether it has ever alarmed in the episode, now included.
        looks: inferences before this one.
        script: what is known of the episode.
    """
    places = jnp.arange(len(inputs))[None]
    rows = {"alarm": alarmed, "start": looks > 0, "script": looks >= script.inference}
    if decision.which == "named":
        return places == evidence.blamed[:, None]
    if decision.which == "all":
        chosen = jnp.ones(len(inputs), bool)[None]
    elif decision.which == "script":
        chosen = places == script.input[:, None]
    else:
        if unknown := sorted(set(decision.which) - set(inputs)):
            raise ValueError(f"no inputs are called {unknown}: the monitor has {list(inputs)}.")
        chosen = jnp.array([name in decision.which for name in inputs])[None]
    return rows[decision.when][:, None] & chosen


Told = Callable[[int], tuple[str | None, int]]
"""Seed of an episode -> (input or None, from which inference on)."""


@flax.struct.dataclass
class Scripted(Briefed):
    """A `Repaired` policy that is told about each episode what its decision needs.

    Attributes:
        policy: a `Repaired`.
        script: of a seed; inputs by the names of `policy.spec.inputs` ("front") or of the monitor.
    """

    policy: Any
    script: Told = flax.struct.field(pytree_node=False)

    def brief(self, seeds: Sequence[int]) -> Script:
        """See `Briefed`.

        Raises:
            ValueError: an input that the policy does not have.
        """
        places = {name: i for i, name in enumerate(self.policy.inputs.inputs)}
        places |= {name: i for i, name in enumerate(self.policy.spec.inputs)}
        scripts = [self.script(int(seed)) for seed in seeds]
        if unknown := sorted({name for name, _ in scripts if name not in (None, *places)}):
            raise ValueError(f"no inputs are called {unknown}: the policy has {[*places]}.")
        return Script(
            jnp.asarray(np.array([places.get(name, -1) for name, _ in scripts], np.int32)),
            jnp.asarray(np.array([min(at, NEVER) for _, at in scripts], np.int32)),
        )

    def told(self, state: Any, brief: Script) -> Any:
        """See `Briefed`."""
        return dataclasses.replace(state, repair=dataclasses.replace(state.repair, script=brief))

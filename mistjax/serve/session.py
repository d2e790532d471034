"""`Session`: the state of one connection, and of the episode in it.

It is never shared and does not outlive the connection: a client that reconnects gets a new one. An
episode ends on `mist/reset`, on another `mist/episode`, and with the connection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mistjax.policies.protocol import PolicySpec, RawObs
from mistjax.rollouts.recorder import Inference, Recorder, robot_state
from mistjax.rollouts.trace import Trace
from mistjax.serve.gate import GateMemory

ENV = "served"
"""The environment's name in recorded episodes."""


@dataclasses.dataclass
class Episode:
    """One attempt at a task, as the server sees it.

    Attributes:
        number: counts episodes over all connections; the seed of a recorded episode.
        seed: of the policy's noise: the client's `mist/seed`, otherwise `number`.
        name: the client's `mist/episode`, if it gave one.
        prompt: the first instruction; "" before it.
        inferences: observations so far.
        gate: the gate's memory.
        recorder: of the episode, where the server records.
        success: the client's `mist/success`; None until it is known.
        incomplete: why inferences are missing from the recording; None where none are.
    """

    number: int
    seed: int
    name: Any = None
    prompt: str = ""
    inferences: int = 0
    gate: GateMemory | None = None
    recorder: Recorder | None = None
    success: bool | None = None
    incomplete: str | None = None

    def record(
        self,
        raw: RawObs,
        actions: np.ndarray,
        found: tuple[Inference, int] | None,
    ) -> None:
        """Records the actions that went out, and the inference behind them where there was one.

        Args:
            raw: the observation.
            actions: executed until the next observation [R,A].
            found: the batched inference, and this connection's element of it.
        """
        if self.recorder is None:
            self.recorder = Recorder(self.number, raw, {}, ())
        if found is not None:
            self.recorder.inference(*found, raw)
        state = robot_state(raw)
        for action in actions:
            self.recorder.step(state, action, raw, self.info)

    @property
    def info(self) -> dict[str, Any]:
        """The `info` of its recording."""
        named = {} if self.name is None else {"episode": str(self.name)[:200]}
        ended = {} if self.success is None else {"success": self.success}
        return {"noise_seed": self.seed, **named, **ended}

    def trace(self, spec: PolicySpec) -> Trace | None:
        """The finished episode; None if it had no observation, or is not recorded.

        An episode of unknown outcome, or with missing inferences, gets an `error`: it counts
        neither as a success nor as a failure.
        """
        if self.recorder is None:
            return None
        error = self.incomplete
        if error is None and self.success is None:
            error = "the client did not say how the episode ended (mist/success)"
        self.recorder.end(self.info)
        return self.recorder.trace(ENV, spec, {}, error)


@dataclasses.dataclass
class Session:
    """One connection.

    Attributes:
        number: of the connection.
        slot: its row in the policies' memory.
        episode: the one under way.
        requests: answered observations so far.
        pass_through: whether the client has switched the monitor off.
    """

    number: int
    slot: int
    episode: Episode
    requests: int = 0
    pass_through: bool = False


CONTROL = ("reset", "episode", "success", "seed", "pass_through")
"""What a client may send beside an observation, each as `mist/NAME`."""


@dataclasses.dataclass(frozen=True)
class Control:
    """What a request says beside its observation; None for what it does not say."""

    reset: bool | None = None
    episode: str | int | None = None
    success: bool | None = None
    seed: int | None = None
    pass_through: bool | None = None

    @classmethod
    def split(cls, request: Any) -> tuple[Control, dict[str, Any]]:
        """(what the `mist/` keys say, the observation without them).

        Raises:
            ValueError: not a map, an unknown `mist/` key, or a value of the wrong type.
        """
        if not isinstance(request, Mapping):
            raise ValueError(f"a request is a {type(request).__name__}: expected an observation.")
        raw, said = {}, {}
        for key, value in request.items():
            if isinstance(key, str) and key.startswith("mist/"):
                said[key.removeprefix("mist/")] = value
            else:
                raw[key] = value
        if unknown := sorted(set(said) - set(CONTROL)):
            raise ValueError(
                f"{'mist/' + unknown[0]!r:.48} is not known: expected some of "
                f"{', '.join('mist/' + name for name in CONTROL)}."
            )
        for name in ("reset", "success", "pass_through"):
            value = said.get(name)
            if isinstance(value, np.bool_):
                said[name] = value = bool(value)
            if not isinstance(value, bool | None):
                raise ValueError(
                    f"mist/{name} is a {type(value).__name__}: expected true or false."
                )
        if "seed" in said:
            seed = said["seed"].item() if isinstance(said["seed"], np.integer) else said["seed"]
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
                raise ValueError(f"mist/seed is {seed!r:.40}: expected 0 to 2**31 - 1.")
            said["seed"] = seed
        if not isinstance(said.get("episode"), str | int | None):
            raise ValueError("mist/episode is neither text nor a whole number.")
        return cls(**said), raw

"""`Settings` of a server, checked before a policy is loaded."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from pathlib import Path
from typing import Literal

from mistjax.ranges import whole

Stop = Literal["hold", "zero", "stop"]
_WHOLE = {"port": 0, "max_batch": 1, "max_connections": 1}
_VIEWER, _NAME = re.compile(r"rerun(\+https?)?://[^/]+/proxy$"), re.compile(r"\s*\S")
_POSITIVE = ("deadline_ms", "watchdog_ms", "send_timeout_s")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a server listens, how long it waits, and what goes out where there is no action.

    Attributes:
        host: address to listen on; the default is reached from this machine only.
        port: to listen on; 0 takes a free one and prints it.
        api_key: key that clients must send as `Authorization: Api-Key KEY`; None asks for none.
        max_batch: most observations in one inference; simultaneous requests are batched.
        batch_wait_ms: how long an observation waits for those of other clients.
        deadline_ms: from an observation to its reply. If monitor, attribution or remedy take
            longer, the bare policy's chunk goes out, tagged `mist/late`.
        watchdog_ms: from an observation to the fallback, if the bare policy has not answered
            either.
        fallback: what goes out then: hold is the robot's own (`RobotPreset.fallback`), zero is
            zero velocity, stop is an error and the end of the connection.
        max_connections: most clients at a time; others are turned away.
        send_timeout_s: how long a client may take to read a reply before it is disconnected.
        gate: JSON file with kinematic limits, see `mistjax.serve.gate`.
        out: folder for the event log, and for the run with `record`.
        record: store every episode, with the activations that detectors read, as a run folder.
        rerun: stream every episode to a Rerun viewer, such as rerun+http://127.0.0.1:9876/proxy,
            or into a folder of .rrd files.

    Raises:
        ValueError: a setting out of range; says which, and what was expected.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_batch: int = 8
    batch_wait_ms: float = 2.0
    deadline_ms: float = 500.0
    watchdog_ms: float = 2000.0
    fallback: Stop = "hold"
    max_connections: int = 64
    send_timeout_s: float = 5.0
    gate: Path | None = None
    out: Path = Path("runs/serve")
    record: bool = False
    rerun: str | None = None

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        if self.port > 65535:
            raise ValueError(f"port is {self.port}: expected 0 to 65535.")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a number above 0.")
        if not 0 <= self.batch_wait_ms <= self.deadline_ms:
            raise ValueError(
                f"batch_wait_ms is {self.batch_wait_ms}: expected 0 to deadline_ms, which is "
                f"{self.deadline_ms:g}."
            )
        if self.watchdog_ms < self.deadline_ms:
            raise ValueError(
                f"watchdog_ms is {self.watchdog_ms:g}: expected at least deadline_ms, which is "
                f"{self.deadline_ms:g}."
            )
        if self.fallback not in typing.get_args(Stop):
            raise ValueError(f"fallback is {self.fallback!r}: expected hold, zero or stop.")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip()):
            raise ValueError("api_key is empty or not ASCII: expected a secret of letters.")
        if self.rerun is not None and not (_VIEWER if "://" in self.rerun else _NAME).match(
            self.rerun
        ):
            raise ValueError(
                f"rerun is {self.rerun!r}: expected a viewer's address, such as "
                "rerun+http://127.0.0.1:9876/proxy, or a folder."
            )
        if not self.host.strip():
            raise ValueError("host is empty: expected an address, e.g. 127.0.0.1 or 0.0.0.0.")

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes to compile, ascending: 1, 4, 16, ... and `max_batch`."""
        powers = [4**i for i in range(16) if 4**i < self.max_batch]
        return (*powers, self.max_batch)


typing.no_type_check(Settings.__init__)  # its own messages are clearer than a type checker's

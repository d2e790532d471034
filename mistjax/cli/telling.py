"""What a command tells a machine: `--json` and `--quiet`, which every command has.

`--json` prints one line, a JSON object: `command`, `exit_code`, `seconds`, `said` (the lines that a
reader would see), `error` if it was refused or failed, and what the command itself tells.
Progress stays on stderr. `--quiet` prints only errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any

JSON, QUIET = "--json", "--quiet"

_told: dict[str, Any] = {}


def tell(**data: Any) -> None:
    """Adds to the JSON object: paths, numbers, dataclasses, and lists and mappings of these."""
    _told.update(data)


class Said:
    """What a command says, for its JSON object."""

    def __init__(self):
        self._text, self._began = io.StringIO(), time.monotonic()
        _told.clear()

    def captured(self) -> contextlib.redirect_stdout[io.StringIO]:
        """Keeps what is printed inside the block."""
        return contextlib.redirect_stdout(self._text)

    def document(self, command: str, code: int, error: str) -> str:
        """The JSON object in one line.

        Args:
            command: its name.
            code: its exit code.
            error: the sentence of an error; "" without one.
        """
        document = {
            "command": command,
            "exit_code": code,
            "seconds": round(time.monotonic() - self._began, 3),
            "said": self._text.getvalue().splitlines(),
            **({"error": error} if error else {}),
            **{name: plain(value) for name, value in _told.items()},
        }
        return json.dumps(document, allow_nan=False)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Shows nothing of what is written inside the block, progress and warnings included."""
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield


def plain(value: Any) -> Any:
    """A JSON value; numbers that are not finite become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)

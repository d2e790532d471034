"""What an experiment writes about its run: the command and the results file."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistjax.files import atomic


def command(module: str) -> str:
    """The command line of this process, which ran that module."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def write_results(path: Path | None, results: Mapping[str, Any]) -> None:
    """Writes a results file, whole or not at all, and makes its folder; None writes nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")

"""Converts files by others in a separate process that can do little else.

It is Python with `-I` in an empty folder, so that nothing beside the files is imported. Memory (on
Linux only), processor time and the size of what it writes are limited by the size of its input.
What it refuses comes back as a ValueError in one sentence.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REFUSED = 3  # exit code: one sentence on standard error says why
MEMORY, WRITTEN, SECONDS = 2 << 30, 1 << 28, 120  # bytes, bytes of a file, s; for any input
EXPANSION, SPEED = 16, 1 << 20  # and bytes for each byte of input, bytes of input for each second
MOST_MEMORY = 32 << 30

# Our packages are found by their path, and everything else that is installed comes after the
# standard library, so no folder is searched that could hold a download.
_START = """
import json, sys
from importlib.util import module_from_spec, spec_from_file_location
plan = json.loads(sys.argv[1])
sys.path += plan["installed"]
for name, place in plan["packages"].items():
    spec = spec_from_file_location(name, place)
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
from mistjax.isolation import obey
sys.exit(obey(plan))
"""


def call(function: str, source: str | Path, **arguments: Any) -> None:
    """Calls a function of this project in a separate process.

    Args:
        function: `package.module:name`.
        source: the file or folder that it reads, given to it first, as an absolute path.
        arguments: further ones, of JSON types.

    Raises:
        ValueError: what the function refused, or it needed more than the limits.
        RuntimeError: the function failed in another way; has its traceback.
    """
    size = _size(Path(source))
    plan = {
        "packages": {name: _place(name) for name in ("mistjax", function.split(".")[0])},
        "installed": [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")],
        "function": function,
        "arguments": {"source": os.path.abspath(source), **arguments},
        "memory": min(MEMORY + EXPANSION * size, MOST_MEMORY),
        "written": WRITTEN + EXPANSION * size,
        "seconds": SECONDS + size // SPEED,
    }
    quiet = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    with tempfile.TemporaryDirectory() as nothing:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _START, json.dumps(plan)],
            cwd=nothing,
            env={**os.environ, **quiet},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    said = done.stderr.strip()
    if done.returncode == REFUSED:
        raise ValueError(said.splitlines()[-1])
    if done.returncode < 0:
        raise ValueError(
            f"reading {source} was ended by {signal.Signals(-done.returncode).name}: it needs more "
            f"than {plan['seconds']} s or {plan['memory'] >> 20} MiB, or crashes its reader. Read "
            "it no other way, unless you know who wrote it."
        )
    if done.returncode:
        raise RuntimeError(f"the converter ended with code {done.returncode}:\n{said}")


def obey(plan: dict[str, Any]) -> int:
    """The other side of `call`: limits itself, then calls the function; returns the exit code."""
    module, name = plan["function"].split(":")
    function = getattr(importlib.import_module(module), name)
    _limit(plan["memory"], plan["written"], plan["seconds"])
    try:
        function(**plan["arguments"])
    except MemoryError:
        return _refuse(f"{plan['arguments']['source']} needs more memory than its size explains.")
    except (ValueError, OSError, RecursionError) as error:
        return _refuse(str(error))
    return 0


def _refuse(message: str) -> int:
    print(" ".join(message.split()) or "refused without a reason", file=sys.stderr)
    return REFUSED


def _limit(memory: int, written: int, seconds: int) -> None:
    import resource

    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: written,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # beyond what the imports have taken
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits[resource.RLIMIT_AS] = memory + pages * resource.getpagesize()
    for kind, value in limits.items():
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, most))
    sys.setrecursionlimit(1000)


def _place(package: str) -> str:
    """The `__init__.py` of a package of ours."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed: it converts files by others.")
    return str(Path(spec.origin).resolve())


def _size(source: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count as nothing."""
    if not source.is_dir():
        return source.lstat().st_size if source.exists() else 0
    folders = os.walk(source, followlinks=False)
    return sum(os.lstat(Path(root, name)).st_size for root, _, names in folders for name in names)

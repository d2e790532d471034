"""The converters' process imports nothing from where it is called, and stays within its limits."""

import json
import signal
import subprocess
import sys

import pytest

from mistjax import isolation

PROGRAM = """
import sys, types
from mistjax import isolation

def recurse():
    return recurse()

functions = {
    "memory": lambda source: bytearray(1 << 30),
    "written": lambda source: open(source, "wb").write(bytes(2 << 20)),
    "recursion": lambda source: recurse(),
    "time": lambda source: sum(1 for _ in iter(int, 1)),
    "nothing": lambda source: None,
}
sys.modules["hostile"] = types.SimpleNamespace(**functions)
plan = {"arguments": {"source": sys.argv[2]}, "memory": 64 << 20, "written": 1 << 20, "seconds": 1}
sys.exit(isolation.obey(plan | {"function": "hostile:" + sys.argv[1]}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits on memory")
@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("memory", isolation.REFUSED, "more memory than its size explains"),
        ("written", isolation.REFUSED, "File too large"),
        ("recursion", isolation.REFUSED, "recursion"),
        ("time", -signal.SIGXCPU, ""),
        ("nothing", 0, ""),
    ],
)
def test_what_goes_beyond_a_limit_ends(what, code, said, tmp_path):
    command = [sys.executable, "-c", PROGRAM, what, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code and said in done.stderr, done.stderr


def test_the_process_searches_no_folder_but_the_installed_ones(monkeypatch, tmp_path):
    plans = []

    def run(command, **options):
        plans.append((command, options))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    isolation.call("mistjax.a:c", "folder", out="x")
    ((command, options),) = plans
    plan = json.loads(command[-1])
    assert command[1] == "-I" and str(tmp_path) not in plan["installed"]
    assert plan["arguments"] == {"source": str(tmp_path / "folder"), "out": "x"}
    assert options["cwd"] != str(tmp_path)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (isolation.REFUSED, ValueError, "the last line"),
        (-signal.SIGSEGV, ValueError, "ended by SIGSEGV"),
        (1, RuntimeError, "the last line"),
    ],
)
def test_how_the_process_ends_is_told(monkeypatch, code, kind, said):
    done = subprocess.CompletedProcess([], code, "", "a warning\nthe last line")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(kind, match=said):
        isolation.call("mistjax.a:c", "folder")

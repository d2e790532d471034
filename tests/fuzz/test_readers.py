"""No reader of a file ends in anything but a value or an error that names the file."""

import random
import subprocess
import sys

import pytest

from tests.fuzz.targets import TARGETS

INPUTS = 100
NEED_TORCH = [name for name in TARGETS if name.startswith("openvla")]


@pytest.fixture(params=TARGETS)
def target(request):
    if request.param in NEED_TORCH:
        pytest.importorskip("torch")
    return TARGETS[request.param]


def test_changed_files_come_to_a_value_or_to_an_error_that_names_them(target, tmp_path):
    rng = random.Random(0)
    wholes = target.wholes(tmp_path)
    whole = [target.check(tmp_path, data) for data in wholes]
    assert any(whole)
    changed = [target.check(tmp_path, target.mutated(wholes, rng)) for _ in range(INPUTS)]
    assert not all(changed)


@pytest.mark.slow
def test_100_000_changed_frames_are_read_or_refused(tmp_path):
    target, rng = TARGETS["frames"], random.Random(1)
    wholes = target.wholes(tmp_path)
    read = sum(target.check(tmp_path, target.mutated(wholes, rng)) for _ in range(100_000))
    assert 1_000 < read < 99_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pickle", "bddl", "init_states", "json", "safetensors", "frames"])
def test_200_000_inputs_that_follow_the_code_find_nothing(name):
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz", name, "--runs", "200000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr[-3000:]

import sys
from pathlib import Path

import numpy as np
import pytest

from mistjax import cli
from mistjax.conformance.rows import Row, table
from mistjax.conformance.safe import GROUPS, conformance_safe

GOLDENS = Path(__file__).parents[1] / "goldens" / "safe"


SLOW = {"density", "forward"}  # many small programs to compile


def groups():
    for files, compare in GROUPS.items():
        name = compare.__name__
        yield pytest.param(files, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("files", list(groups()))
def test_the_originals_numbers_are_reproduced(files):
    assert all((GOLDENS / name).is_file() for name in files)
    rows = GROUPS[files](GOLDENS)
    assert rows
    assert not [row for row in rows if not row.passed]


def test_a_folder_without_recordings_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="none of"):
        conformance_safe(tmp_path)


@pytest.mark.parametrize("scale", [1.0, 1.001])
def test_the_command_fails_exactly_when_a_quantity_is_off(scale, tmp_path, capsys):
    with np.load(GOLDENS / "index_ops.npz") as recorded:
        arrays = {k: v * scale if k == "cmd:mean" else v for k, v in recorded.items()}
    np.savez(tmp_path / "index_ops.npz", **arrays)
    assert cli.main(["conformance", "--safe", str(tmp_path)]) == int(scale != 1)
    shown = capsys.readouterr().out
    assert ("pooling: mean  beyond tolerance" in shown) == (scale != 1)
    assert f"{int(scale != 1)} of 12 quantities" in shown


def test_a_table_shows_the_largest_error_of_a_group_and_a_nan_is_larger_still():
    rows = [Row("a", "small", 1e-9, 1e-6), Row("a", "large", 1e-7, 1e-6)]
    assert "a: large  (of 2)" in table(rows) and "small" not in table(rows)
    assert "a: lost  (of 3)" in table([*rows, Row("a", "lost", float("nan"), 1e-6)])


@pytest.mark.parametrize("given", [[], ["x.npz", "--safe", "y"], ["--safe", "y", "--openvla", "z"]])
def test_none_or_several_recordings_are_refused(given, capsys):
    assert cli.main(["conformance", *given]) == 2
    assert "give exactly one of FILE, --safe, --openvla" in capsys.readouterr().err


def test_without_pytorch_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mistjax.conformance.openvla", None)
    assert cli.main(["conformance", "--openvla", str(GOLDENS)]) == 2
    assert "mistjax[openvla]" in capsys.readouterr().err

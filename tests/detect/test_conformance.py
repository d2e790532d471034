from pathlib import Path

import pytest

from mistjax.detect.conformance import GROUPS, conformance_safe

GOLDENS = Path(__file__).parents[1] / "goldens" / "safe"


SLOW = {"density", "forward"}  # many small programs to compile


def groups():
    for files, compare in GROUPS.items():
        name = compare.__name__
        yield pytest.param(files, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("files", list(groups()))
def test_the_originals_numbers_are_reproduced(files):
    assert all((GOLDENS / name).is_file() for name in files)
    rows = GROUPS[files](GOLDENS)
    assert rows
    assert not [row for row in rows if not row.passed]


def test_a_folder_without_recordings_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="none of"):
        conformance_safe(tmp_path)

"""`import mistjax` is quick, and gives the names of docs/api.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mistjax

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()


def fresh(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_it_imports_nothing_heavy():
    heavy = "jax", "flax", "numpy", "gymnasium", "mujoco", "pyarrow", "tyro"
    code = f"import sys, mistjax; print([m for m in {heavy} if m in sys.modules])"
    assert fresh(code) == "[]\n"


def test_the_command_line_is_read_before_anything_heavy_is_imported():
    heavy = "jax", "flax", "scipy", "mujoco", "pyarrow"
    code = f"import sys, mistjax.cli; print([m for m in {heavy} if m in sys.modules])"
    assert fresh(code) == "[]\n"


@pytest.mark.parametrize("name", mistjax.__all__)
def test_every_name_is_there(name):
    assert getattr(mistjax, name)


def test_the_page_lists_exactly_these_names():
    assert sorted(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == dir(mistjax)


def test_it_fits_one_screen():
    assert dir(mistjax) == sorted(mistjax.__all__)
    assert len(mistjax.__all__) <= 24 and len(PAGE.splitlines()) <= 45


def test_a_name_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(AttributeError, match=r"no attribute 'atribute'; it has .*attribute"):
        mistjax.atribute  # noqa: B018


def test_an_old_name_works_and_says_the_new_one():
    with pytest.warns(DeprecationWarning, match=r"price is now called mistjax\.memory"):
        assert mistjax.price is mistjax.memory


def test_attribution_can_be_called_before_and_after_its_package_is_imported():
    said = fresh(
        "import mistjax; first = mistjax.attribute; import mistjax.attribute as package; "
        "print(first is package.attribute is package.__call__, callable(mistjax.attribute))"
    )
    assert said == "True True\n"


def test_types_are_marked_as_shipped():
    assert (Path(mistjax.__file__).parent / "py.typed").exists()

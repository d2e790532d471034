"""The committed notebooks: small, run to their end, without a trace of the machine they ran on.

`make test-all` runs them (nbmake).
"""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells(notebook, kind):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def test_they_are_numbered():
    numbers = [int(notebook.name[:2]) for notebook in NOTEBOOKS]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) == 4


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_small_and_was_run_from_its_first_cell_to_its_last(notebook):
    assert notebook.stat().st_size < 1_000_000
    code = cells(notebook, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in kinds and "display_data" in kinds and "stream" in kinds
    names = [o.get("name") for cell in code for o in cell["outputs"]]
    assert "stderr" not in names, "a warning or a progress bar is among the outputs"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_parses_names_no_path_of_a_machine_and_says_what_is_simulated(notebook):
    for cell in cells(notebook, "code"):
        ast.parse("".join(cell["source"]))
    text = notebook.read_text()
    assert "/tmp/" not in text and "/home/" not in text and "/root/" not in text
    assert "simulated and tiny" in "".join(cells(notebook, "markdown")[0]["source"])

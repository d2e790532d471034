"""The tables of docs/results.md are what the results files say."""

import json

from experiments.build.results_page import BLOCK, PAGE, TABLES, filled


def test_every_table_is_what_its_file_says():
    text = PAGE.read_text()
    assert filled(text) == text, "run: python -m experiments.build.results_page"
    assert {match[2] for match in BLOCK.finditer(text)} == set(TABLES)


def test_a_changed_number_is_found(tmp_path):
    for file, _ in TABLES.values():
        source = PAGE.parents[1] / "experiments" / "results" / f"{file}.json"
        (tmp_path / source.name).write_text(source.read_text())
    study = json.loads((tmp_path / "full_mist.json").read_text())
    study["table"][0]["errors"] = "7"
    (tmp_path / "full_mist.json").write_text(json.dumps(study))
    assert filled(PAGE.read_text(), tmp_path) != PAGE.read_text()

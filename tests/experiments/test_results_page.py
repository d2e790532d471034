"""The tables of docs/results.md and of the README are what the results files say."""

import json

from experiments.build.results_page import BLOCK, PAGES, ROOT, TABLES, filled


def test_every_table_is_what_its_file_says():
    texts = [page.read_text() for page in PAGES]
    for text in texts:
        assert filled(text) == text, "run: python -m experiments.build.results_page"
    assert {match[2] for text in texts for match in BLOCK.finditer(text)} == set(TABLES)


def test_a_changed_number_is_found(tmp_path):
    for file, _ in TABLES.values():
        source = ROOT / "experiments" / "results" / f"{file}.json"
        (tmp_path / source.name).write_text(source.read_text())
    study = json.loads((tmp_path / "known_change.json").read_text())
    study["table"][0]["errors"] = "7"
    (tmp_path / "known_change.json").write_text(json.dumps(study))
    text = PAGES[0].read_text()
    assert filled(text, tmp_path) != text

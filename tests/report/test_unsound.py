"""The shipped monitor on real faults: what it says stands in the terminal and on the page."""

import dataclasses
import re

import numpy as np
import pytest

from mistjax.attribute.naming import changed_words
from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.report.unsound import alarm_sentence, said, unsound
from mistjax.rollouts.run import load_run

POLICY, MIST = str(SHIPPED / "board_pi0"), str(SHIPPED / "board_mist")


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ("place the zzz stone", ["“zzz” in place of “black”"]),
        ("place the stone", ["without “black”"]),
        ("place the very black stone", ["with “very” added"]),
        ("place the black stone", []),
    ],
)
def test_a_changed_instruction_is_told_in_words(now, says):
    assert changed_words("place the black stone", now) == says


INPUTS = ["front", "wrist", "state", "instruction"]


def watched(trace, seed, named, ratios, info):
    """An episode whose inputs are watched: the alarm is at the third of four inferences."""
    late = np.array([0, 0, 1, 1])[:, None, None]
    cells = np.zeros((4, 2, 8, 8), np.float32)
    cells[2, 0, 2:4, 5:7] = 9
    return trace(
        seed,
        monitored=False,
        named=np.array([-1, -1, named, named]),
        unsound=np.array([False, False, True, True]),
        input_score=np.array([0.3, 0.3, 4.0, 4.0]),
        input_threshold=np.full(4, 1.2),
        aux={
            "evidence/ratios": 0.3 + late * np.array(ratios)[:, None] * np.array([1.0, 0.5, 0.0]),
            "evidence/sides": np.array([0, 0, 2.5, 0]),
            "evidence/cells": cells,
            "evidence/entries": np.zeros((4, 5)),
            "evidence/words": np.zeros((4, 6), bool),
        },
        info={"fault_strength": 1.0, "fault_onset": 3, "named_step": 4, **info},
    )


@pytest.fixture
def run(trace, memory):
    front = {"fault": "front_patch", "fault_input": "front", "named_input": "front"}
    words = {"fault": "instruction_typos", "fault_input": "instruction"}
    words |= {"named_input": "instruction", "named_prompt": "put the zzz stone & wait"}
    push = {"fault": "push", "fault_input": "push", "named_input": "state"}
    episodes = [
        watched(trace, 0, 0, [4, 0, 0, 0], front),
        watched(trace, 1, 3, [0, 0, 0, 4], words),
        watched(trace, 2, 2, [0, 0, 4, 0], push),
    ]
    found = memory(*episodes)
    return dataclasses.replace(found, config={**found.config, "inputs": INPUTS})


def test_the_sentence_names_the_input_the_evidence_and_the_place(run):
    sentences = [alarm_sentence(run.trace(seed), INPUTS) for seed in run.seeds]
    assert sentences[0] == (
        "Unsound: camera front (level 4.3 times its 95% limit in clean episodes, alarm "
        "above 1.2; next camera wrist with 0.3), most in 4 of 64 cells: rows 3 to 4, columns 6 "
        "to 7."
    )
    assert sentences[1].endswith("“zzz” in place of “<black>”.")
    assert "by 2.5 standard deviations" in sentences[2]
    assert "3/3" in said(run) and str(sentences[0]) in said(run)
    assert "Every episode" not in said(run)


def test_a_monitor_of_other_conditions_is_told_apart(run):
    rows = tuple({**row, "named_step": 0} for row in run.rows)
    assert "--sensor-noise True" in said(dataclasses.replace(run, rows=rows))


def test_the_section_counts_who_was_named_rightly(run):
    (section,) = unsound({"bare": dataclasses.replace(run, config={}), "monitor": run})
    page = "".join(block.html(f"s{i}") for i, block in enumerate(section.blocks))
    rows = {row["fault in"]: row for row in section.blocks[1].rows}
    assert {place: row["named rightly"].split()[-1] for place, row in rows.items()} == {
        "front": "(1/1)",
        "instruction": "(1/1)",
        "push": "(0/1)",
    }
    assert rows["push"]["named"] == "state 1" and rows["front"]["delay, steps"] == "1"
    assert page.count("<blockquote>") == 3
    assert "front: cells up to 9 standard deviations" in page
    assert "<code>front_patch</code> at strength 1 from step 3 on" in page


def play(out, fault, strength, episodes="1"):
    arms = ["--mist", MIST, "--arms", "monitor", "--episodes", episodes]
    faults = ["--fault", fault, strength, "--first-seed", "23970000"]
    assert main(["eval", POLICY, *arms, *faults, "--videos", "1", "--out", str(out)]) == 0
    return load_run(out / "monitor")


@pytest.mark.slow
def test_the_sentence_stands_in_the_terminal_and_on_the_page(tmp_path, capsys):
    run = play(tmp_path, "front_patch", "0.875")
    printed = capsys.readouterr().out
    trace = run.trace(run.seeds[0])
    words = alarm_sentence(trace, run.config["inputs"])
    assert words is not None and words in printed
    assert re.match(r"Unsound: camera front \(\w+.* \d+\.\d times its 95% limit", words)
    assert "of 64 cells: rows" in words
    page = (tmp_path / "report.html").read_text()
    assert "Which input" in page and "camera front" in page
    assert "<code>front_patch</code> at strength 0.875" in page
    assert run.rows[0]["named_input"] == "front"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "strength", "says"),
    [
        ("state_offset", "0.6", r"Unsound: the state .*most in [xyz]: [+-]\d.*cameras agree"),
        ("instruction_unknown_word", "1.0", r"Unsound: the instruction .*“zzz” in place of “"),
        ("push", "1.0", r"None of the inputs: the robot did not go where it was told"),
    ],
)
def test_every_place_has_its_sentence(fault, strength, says, tmp_path):
    run = play(tmp_path, fault, strength, "4")
    sentences = [alarm_sentence(trace, run.config["inputs"]) for trace in run.traces()]
    assert any(words and re.match(says, words) for words in sentences), sentences


def test_a_run_that_nobody_watched_has_no_such_section(run_folder):
    assert unsound({"bare": load_run(run_folder("bare", [True], False))}) == []

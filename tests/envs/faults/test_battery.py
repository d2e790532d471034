"""Names, mixtures and splits."""

import itertools
import json

import numpy as np
import pytest

from mistjax.envs.board.faults import FAULTS as ACTIONS
from mistjax.envs.board.perturbations import PERTURBATIONS
from mistjax.envs.faults import battery, inputs, words
from mistjax.envs.faults.battery import (
    FAULTS,
    INPUTS,
    MIXTURES,
    Injection,
    Mixture,
    Part,
    read_mixture,
)
from mistjax.envs.faults.splits import SEEDS, SEEN_KINDS, UNSEEN_KINDS, mixtures, strengths


def mixture(source="board"):
    return read_mixture(source)


def test_the_headline_mixture_has_the_stated_shares_and_onsets():
    shipped = mixture()
    drawn = [shipped.draw(seed) for seed in range(2000)]
    where = np.array([fault.input if fault else "none" for fault in drawn])
    share = {"none": 0.3, "push": 0.1, **dict.fromkeys(INPUTS, 0.15)}
    assert {name: np.mean(where == name) for name in share} == pytest.approx(share, abs=0.03)
    onsets = {fault.onset for fault in drawn if fault}
    assert onsets == set(range(4, 21))
    assert mixture().sensor_noise


def test_every_kind_has_its_function():
    assert tuple(inputs.PICTURES) == battery.PICTURES
    assert tuple(inputs.STATES) == battery.STATES
    assert tuple(words.WORDS) == battery.WORDS
    assert tuple(ACTIONS) == battery.ACTIONS
    assert set(battery.SCENES) < set(PERTURBATIONS)


def test_a_seed_decides_its_fault():
    assert mixture().draw(7) == mixture().draw(7)
    assert Mixture().draw(7) is None
    assert Mixture.single("push", 0.5).draw(3).strength == 0.5


def test_shipped_mixtures_are_those_of_the_splits():
    assert {file.stem: mixture(file.stem) for file in MIXTURES.glob("*.json")} == mixtures()


def test_mixtures_are_read_back(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(mixture().to_json()))
    assert mixture(tmp_path / "mine.json") == mixture()


def test_seeds_of_different_purposes_are_disjoint():
    for a, b in itertools.combinations(SEEDS.values(), 2):
        assert a.stop <= b.start or b.stop <= a.start
    assert max(seeds.stop for seeds in SEEDS.values()) < 2**31


def test_what_is_unseen_is_in_no_seen_mixture():
    inputs = {FAULTS[name][0] for name in UNSEEN_KINDS}
    assert inputs >= {"front", "wrist", "state", "instruction", "scene"}
    assert not set(SEEN_KINDS) & set(UNSEEN_KINDS)
    assert set(SEEN_KINDS) | set(UNSEEN_KINDS) == set(FAULTS)
    seen, other = mixtures()["board"], mixtures()["board_unseen_strengths"]
    assert not {part.name for part in seen.parts} & set(UNSEEN_KINDS)
    pairs = [{(p.name, s) for p in m.parts[2:] for s in p.strengths} for m in (seen, other)]
    assert not pairs[0] & pairs[1]
    for name in SEEN_KINDS:
        assert not set(strengths(name)) & set(strengths(name, unseen=True))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Injection("front_melted", 1.0, 4), "unknown fault 'front_melted'"),
        (lambda: Injection("push", 1.2, 4), "expected 0 to 1"),
        (lambda: Injection("push", float("nan"), 4), "expected 0 to 1"),
        (lambda: Mixture((Part(0.4),)), "expected to sum to 1"),
        (lambda: Mixture(onset=(9, 4)), "the first and the last step"),
        (lambda: Mixture((Part(1.0, "push", ()),)), "at least one"),
        (lambda: Mixture.from_json({"parts": [{"share": 1.0, "nmae": "push"}]}), "not a mixture"),
        (lambda: Mixture.from_json({}), "not a mixture"),
    ],
)
def test_what_no_mixture_can_have_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_an_unknown_mixture_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="board, board_unseen_kinds"):
        mixture("boart")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json"):
        mixture(tmp_path / "x.json")

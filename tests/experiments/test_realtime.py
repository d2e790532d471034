"""The delay study keeps what it is not asked to play again, and pairs with it."""

import json

import pytest

from experiments.studies.realtime import Config, against_naive, alike, kept
from mistjax.realtime.strategies import NAMES


def test_cells_of_other_delays_stay_where_the_seeds_are_the_same(tmp_path):
    config = Config(results=tmp_path / "realtime.json", episodes=3)
    assert kept(config)[1] == {} and not any(kept(config)[0].values())
    found = {"first_seed": config.first_seed, "episodes": 3, "p": {"2": {"rtc": 0.5}}}
    config.results.write_text(json.dumps({**found, "cells": {"rtc": {"2": {"k": 1}}}}))
    cells, p = kept(config)
    assert cells["rtc"] == {"2": {"k": 1}} and cells["naive"] == {} and p == {"2": {"rtc": 0.5}}
    assert kept(Config(results=config.results, episodes=4))[1] == {}


def test_p_is_of_the_pairs_and_corrected_over_all_that_were_played():
    cells = {
        "naive": {"2": {"outcomes": "11110000"}, "4": {}},
        "rtc": {"2": {"outcomes": "11110000"}, "4": {"outcomes": "1"}, "6": {"outcomes": "1"}},
        "rail": {"2": {"outcomes": "00000000"}},
    }
    # Exact: 2 * (1/2)**4, times two comparisons. Nothing is said where outcomes are missing.
    assert against_naive(cells) == {"2": {"rtc": 1.0, "rail": pytest.approx(0.25)}}


def test_what_does_the_same_as_naive_is_not_played():
    assert [name for name in NAMES if alike(name, 0, 8)] == ["wait", "vlash", "rail"]
    assert not any(alike(name, delay, 8) for name in NAMES for delay in range(1, 8))
    assert [name for name in NAMES if not alike(name, 8, 8)] == ["wait", "naive", "vlash"]

"""The delay study keeps what it is not asked to play again, and pairs with it."""

import json

import pytest

from experiments.studies.realtime import Config, against_naive, kept


def test_cells_of_other_delays_stay_where_the_seeds_are_the_same(tmp_path):
    config = Config(results=tmp_path / "realtime.json", episodes=3)
    assert not any(kept(config).values())
    found = {"first_seed": config.first_seed, "episodes": 3, "cells": {"rtc": {"2": {"k": 1}}}}
    config.results.write_text(json.dumps(found))
    assert kept(config)["rtc"] == {"2": {"k": 1}} and kept(config)["naive"] == {}
    assert not any(kept(Config(results=config.results, episodes=4)).values())


def test_p_is_of_the_pairs_and_corrected_over_all_that_were_played():
    cells = {
        "naive": {"2": {"outcomes": "11110000"}},
        "rtc": {"2": {"outcomes": "11110000"}, "4": {"outcomes": "1"}},
        "rail": {"2": {"outcomes": "00000000"}},
    }
    p = against_naive(cells, "2")  # exact: 2 * (1/2)**4, times two comparisons
    assert p == {"rtc": 1.0, "rail": pytest.approx(0.25)}
    assert against_naive(cells, "4") == {}

"""The delay study keeps what it is not asked to play again."""

import json

from experiments.studies.realtime import Config, kept


def test_cells_of_other_delays_stay_where_the_seeds_are_the_same(tmp_path):
    config = Config(results=tmp_path / "realtime.json", episodes=3)
    assert kept(config)[1] == {} and not any(kept(config)[0].values())
    found = {"first_seed": config.first_seed, "episodes": 3, "p": {"2": {"rtc": 0.5}}}
    config.results.write_text(json.dumps({**found, "cells": {"rtc": {"2": {"k": 1}}}}))
    cells, p = kept(config)
    assert cells["rtc"] == {"2": {"k": 1}} and cells["naive"] == {} and p == {"2": {"rtc": 0.5}}
    assert kept(Config(results=config.results, episodes=4))[1] == {}

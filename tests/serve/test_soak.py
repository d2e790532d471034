"""Hostile clients are nobody else's matter: a few seconds of the bench that lasts five minutes."""

import pytest

from experiments.bench.soak_serve import Config, main


@pytest.mark.slow
def test_hostile_clients_change_nothing_for_the_others(tmp_path):
    found = main(Config(seconds=12, clients=8, results=tmp_path / "soak.json"))
    said = found["said"]
    assert found["alive"] and "honest refused" not in said and found["requests"] > 20
    assert said["honest: monitored"] == found["requests"] and not said["honest: alarms"]
    assert said["fuzzer: refused in a sentence"] > 10 and said["vanishing: cut off"] > 0
    assert abs(found["growth_mb"]) < 20

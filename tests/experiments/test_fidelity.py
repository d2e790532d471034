"""Changes stay in their part, and a map that knows how far an action moves correlates with it."""

import numpy as np
import pytest

from experiments.studies import nmr
from experiments.studies.fidelity import KINDS, Seen, changed, correlations


@pytest.mark.parametrize("kind", ["patch", "texture"])
def test_a_change_stays_in_its_part(kind):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    parts = np.zeros((32, 32), int)
    parts[8:20, 8:20] = 1
    raw, where = changed(Seen({"image": picture}, {"image": parts}), kind, 1, rng)
    moved = (raw["image"] != picture).any(-1)
    assert moved.any() and not moved[parts == 0].any()
    np.testing.assert_array_equal(where["image"], moved)


def test_the_map_that_knows_beats_the_one_that_does_not():
    rng = np.random.default_rng(1)
    touching = rng.random((20, len(KINDS) * 4, 10))
    true = rng.random((20, 10))
    distance = (touching * true[:, None]).sum(-1) / true.sum(1)[:, None]
    distance = distance.reshape(20, len(KINDS), -1)
    known = correlations("true", true, touching, distance)
    other = correlations("other", rng.random((20, 10)), touching, distance)
    for kind in KINDS:
        assert known[kind][0] == pytest.approx(1)
        assert other[kind][0] < 0.9
    assert "0 everywhere" in correlations("none", 0 * true, touching, distance)["refused"]


def test_conditions_are_compared_within_policies():
    def row(policy, ratio, k):
        return {"policy": policy, "kind": "visual", "nmr": ratio, "k": k, "n": 10}

    # Each policy falls; together they rise.
    rows = [row("a", 0.1, 2), row("a", 0.2, 1), row("b", 0.8, 9), row("b", 0.9, 8)]
    assert nmr.correlated(*nmr.raw(rows))["pearson"] > 0.9
    assert nmr.correlated(*nmr.within(rows))["pearson"] == pytest.approx(-1)


def test_each_map_has_correlations_of_its_own_over_conditions_and_along_a_training(tmp_path):
    def row(name, ratio, k, **at):
        return {"map": name, "nmr": ratio, "k": k, "n": 10, **at}

    numbers = [(0.1, 1), (0.2, 3), (0.3, 4), (0.4, 8)]
    plain = {"policy": "a", "kind": "visual"}
    found = {
        "conditions": [row("iss", *pair, **plain) for pair in numbers],
        "training": [row("iss", 1 - ratio, k, step=k) for ratio, k in numbers],
    }
    found["training"] += [row("other", ratio, k, step=k) for ratio, k in numbers]
    written = nmr.write(found, tmp_path / "nmr.json")["correlations"]
    signs = {(c["map"], c["over"]): c["pearson"] > 0 for c in written}
    assert signs["iss", "all conditions"] and signs["other", "along a training"]
    assert not signs["iss", "along a training"] and ("other", "all conditions") not in signs
    with pytest.raises(FileNotFoundError, match="train with --keep-every"):
        nmr.along(nmr.Config(), tmp_path / "none", found)

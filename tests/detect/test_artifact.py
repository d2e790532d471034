import dataclasses
import json

import jax
import numpy as np
import pytest

from mistjax.detect import (
    Provenance,
    calibrate,
    fit_detector,
    load_detector,
    save_detector,
    score_episodes,
)
from mistjax.detect.artifact import FingerprintError, read_card
from mistjax.detect.methods.combinators import Windowed

PROVENANCE = Provenance(policy="ab12", tap="vlm.mlp_out[8] text mean", pooling="mean")


@pytest.fixture
def saved(tmp_path, episodes):
    detector = Windowed(fit_detector("mahalanobis", episodes, standardised=True), window=3)
    scores = score_episodes(detector, episodes.features, episodes.mask)
    threshold = calibrate(scores, episodes.mask, episodes.success, 0.2)
    save_detector(
        tmp_path / "d", detector, PROVENANCE, threshold=threshold, notes={"episodes": len(episodes)}
    )
    return tmp_path / "d", detector, threshold


def test_a_detector_comes_back_bit_identical_with_its_threshold(saved):
    folder, detector, threshold = saved
    loaded, loaded_threshold = load_detector(folder, PROVENANCE)
    for a, b in ((detector, loaded), (threshold, loaded_threshold)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert read_card(folder)["notes"] == {"episodes": 60}


@pytest.mark.parametrize("field", ["policy", "tap", "pooling"])
def test_an_artifact_made_with_something_else_is_refused_by_name(saved, field):
    with pytest.raises(FingerprintError, match=field):
        load_detector(saved[0], dataclasses.replace(PROVENANCE, **{field: "other"}))


def test_a_save_that_dies_leaves_the_old_detector_or_the_new_one(saved, kill_at_every_call):
    folder, detector, threshold = saved
    changed, seen = jax.tree.map(lambda leaf: leaf + 1, detector), set()

    def save(detector, threshold):
        save_detector(folder, detector, PROVENANCE, threshold=threshold)

    for _ in kill_at_every_call(lambda: save(changed, None)):
        loaded, its_threshold = load_detector(folder, PROVENANCE)
        expected = changed if its_threshold is None else detector
        jax.tree.map(np.testing.assert_array_equal, loaded, expected)
        seen.add(its_threshold is None)
        save(detector, threshold)
    assert seen == {True, False}
    assert len(list(folder.iterdir())) == 2


def test_a_file_cannot_name_a_class_of_its_own(saved):
    path = saved[0] / "detector.json"
    document = json.loads(path.read_text())
    document["detector"]["class"] = "Popen"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="Popen"):
        load_detector(saved[0], PROVENANCE)


def test_a_missing_artifact_and_another_version_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="save_detector"):
        load_detector(tmp_path / "none", PROVENANCE)
    path = saved[0] / "detector.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(ValueError, match="99"):
        load_detector(saved[0], PROVENANCE)

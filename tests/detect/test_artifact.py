import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.demo import SHIPPED
from mistjax.detect import (
    Artifact,
    Input,
    calibrate,
    fit_detector,
    load_detector,
    save_detector,
    score_episodes,
)
from mistjax.detect.artifact import FingerprintError, load_calibrated, read_card
from mistjax.detect.inputs import ChunkLayout
from mistjax.detect.methods.combinators import Windowed
from mistjax.detect.methods.samples.action_samples import ActionVariance
from mistjax.hooks import Tap

GOLDENS = Path(__file__).parents[1] / "goldens"
POLICY = "ab12"
READS = Input.of_taps(Tap("vlm.mlp_out", (8,), "text", "mean"))


@pytest.fixture
def saved(tmp_path, episodes):
    detector = Windowed(fit_detector("mahalanobis", episodes, standardised=True), window=3)
    scores = score_episodes(detector, episodes.features, episodes.mask)
    threshold = calibrate(scores, episodes.mask, episodes.success, 0.2)
    made = Artifact(
        detector,
        POLICY,
        READS,
        "mahalanobis",
        threshold,
        {"episodes": len(episodes)},
        notes={"by": "me"},
    )
    save_detector(tmp_path / "d", made)
    return tmp_path / "d", made


def edit(folder, change):
    path = folder / "detector.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_detector_comes_back_bit_identical_with_its_threshold(saved):
    folder, made = saved
    found = load_detector(folder, POLICY)
    for name in ("detector", "threshold"):
        a, b = getattr(made, name), getattr(found, name)
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    for name in ("policy", "reads", "name", "training", "calibration", "notes"):
        assert getattr(found, name) == getattr(made, name)


def test_the_card_says_once_what_is_read_and_nothing_is_needed_of_its_notes(saved):
    folder, _ = saved
    text = (folder / "detector.json").read_text()
    assert text.count("vlm.mlp_out") == 1
    edit(folder, lambda card: card.update(notes={}))
    assert load_calibrated(folder, POLICY)[0].reads == READS


def test_an_artifact_made_with_something_else_is_refused_by_name(saved):
    with pytest.raises(FingerprintError, match=r"policy 'ab12' \(expected 'other'\)"):
        load_detector(saved[0], "other")
    with pytest.raises(FingerprintError, match="reads"):
        load_detector(saved[0], POLICY, dataclasses.replace(READS, pool="1.0"))


def test_a_save_that_dies_leaves_the_old_detector_or_the_new_one(saved, kill_at_every_call):
    folder, made = saved
    changed = dataclasses.replace(
        made, detector=jax.tree.map(lambda leaf: leaf + 1, made.detector), threshold=None
    )
    seen = set()
    for _ in kill_at_every_call(lambda: save_detector(folder, changed)):
        found = load_detector(folder, POLICY)
        expected = changed if found.threshold is None else made
        jax.tree.map(np.testing.assert_array_equal, found.detector, expected.detector)
        seen.add(found.threshold is None)
        save_detector(folder, made)
    assert seen == {True, False}
    assert len(list(folder.iterdir())) == 2


def test_a_file_cannot_name_a_class_of_its_own(saved):
    edit(saved[0], lambda card: card["detector"].update({"class": "Popen"}))
    with pytest.raises(ValueError, match="Popen"):
        load_detector(saved[0], POLICY)


def test_a_missing_artifact_and_another_version_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="save_detector"):
        load_detector(tmp_path / "none", POLICY)
    edit(saved[0], lambda card: card.update(version=99))
    with pytest.raises(ValueError, match=r"99.*mistjax train-detector"):
        load_detector(saved[0], POLICY)


def test_a_detector_without_a_threshold_says_what_to_run(saved):
    folder, made = saved
    save_detector(folder, dataclasses.replace(made, threshold=None))
    with pytest.raises(ValueError, match=r"d: .*run `mistjax calibrate`"):
        load_calibrated(folder, POLICY)
    with pytest.raises(ValueError, match="stratum 'x'"):
        made.threshold_of("x")


@pytest.mark.parametrize("where", ["detector", "threshold"])
def test_an_array_with_nan_is_refused_by_name(saved, where):
    folder, made = saved
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, getattr(made, where))
    save_detector(folder, dataclasses.replace(made, **{where: broken}))
    with pytest.raises(ValueError, match=rf"{where}\..* not finite"):
        load_detector(folder, POLICY)


@pytest.fixture
def older(tmp_path):
    """The shipped monitor with the card that it had in a release before."""
    shutil.copytree(SHIPPED / "board_mist", tmp_path / "d")
    shutil.copy(GOLDENS / "board_mist_v1" / "detector.json", tmp_path / "d")
    return tmp_path / "d"


def test_the_shipped_monitor_of_an_older_release_still_loads(older):
    card = json.loads((older / "detector.json").read_text())
    assert card["version"] == 1
    found, threshold = load_calibrated(older, card["provenance"]["policy"])
    assert found.name == "safe_mlp" and threshold.n_calibration == 120
    assert found.reads.features == tuple(card["notes"]["features"]["taps"])
    assert found.training["episodes"] == 400 and found.calibration["excess"][""]


@pytest.mark.parametrize(("steps", "pool"), [("first", "0.0"), ("last", "1.0"), ("concat",) * 2])
def test_an_older_way_to_pool_is_read_as_todays(older, steps, pool):
    edit(older, lambda card: card["notes"]["features"].update(steps=steps))
    assert Input.from_json(read_card(older)["reads"]).pool == pool


def test_an_older_card_that_does_not_say_what_is_read_names_the_remedy(older):
    def forget(card):
        del card["notes"]["features"]
        card["provenance"]["tap"] = "my own"

    edit(older, forget)
    with pytest.raises(ValueError, match="mistjax train-detector"):
        read_card(older)


def test_a_field_that_is_gone_is_dropped_where_it_changed_nothing(tmp_path):
    reads = Input(("samples",), layout=ChunkLayout(2, 3, 4))
    made = Artifact(ActionVariance(ChunkLayout(2, 3, 4)), POLICY, reads)
    for official in (False, True):
        save_detector(tmp_path, made)
        edit(tmp_path, lambda c, o=official: c["detector"]["fields"].update(official=o))
        if official:
            with pytest.raises(ValueError, match="official"):
                load_detector(tmp_path, POLICY)
        else:
            assert load_detector(tmp_path, POLICY).detector == made.detector

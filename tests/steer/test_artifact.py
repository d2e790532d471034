"""What is saved comes back, for the policy that it was made with and no other."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mistjax.detect.artifact import FingerprintError
from mistjax.steer import (
    AffineMap,
    Provenance,
    build_vectors,
    load_steering,
    overwrite_concept,
    save_steering,
)
from mistjax.steer.concepts import find_concept
from mistjax.steer.value_vectors import top_names, value_vectors


@pytest.fixture(scope="module")
def artifact(planted):
    built = build_vectors(
        planted,
        {"slow": ["slow*"], "quick": ["quick*"]},
        opposites=[("slow", "quick")],
        top=3,
        causes={"text": ("slow-quick", 1.5), "state": None},
    )
    values = value_vectors(planted)
    concept = find_concept(values, top_names(values, 2), "high", ["high"])
    width = planted.spec.stacks["vision"].width
    light = AffineMap(
        weight=jnp.ones((2, width, width)),
        bias=jnp.ones((2, width)),
        gate=jnp.array([1.0, 0.0]),
        site="vision.resid",
        tokens="image",
        provenance=Provenance(planted.spec.fingerprint, "affine_map", {"pairs": 3}),
    )
    overwrite = overwrite_concept(values, concept, 7.0)
    directions = {**built.directions, "set high": overwrite, "light": light}
    return dataclasses.replace(built, directions=directions)


def test_an_artifact_comes_back_as_it_was(artifact, planted, tmp_path):
    save_steering(tmp_path, artifact)
    save_steering(tmp_path, artifact)
    loaded = load_steering(tmp_path, planted.spec)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["steering.json", "steering.safetensors"]
    assert loaded.causes == artifact.causes and loaded.notes == artifact.notes
    assert list(loaded.directions) == list(artifact.directions)
    for name, direction in artifact.directions.items():
        other = loaded.directions[name]
        assert other.provenance == direction.provenance
        ours, theirs = direction.to_edit(0.5), other.to_edit(0.5)
        assert (ours.site, ours.tokens) == (theirs.site, theirs.tokens)
        for field in ("vector", "mask", "value", "weight", "bias", "gate"):
            if hasattr(ours, field):
                np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    cause = loaded.table().index("text")
    np.testing.assert_allclose(loaded.table().select(cause).strength, 1.5)


def test_a_save_that_dies_leaves_the_old_directions_or_the_new_ones(
    artifact, planted, tmp_path, kill_at_every_call
):
    slow = artifact.directions["slow"]
    old, new = slow, dataclasses.replace(slow, direction=-slow.direction)
    other = dataclasses.replace(
        artifact, directions={**artifact.directions, "slow": new}, notes={"turned": True}
    )
    save_steering(tmp_path, artifact)
    seen = set()
    for _ in kill_at_every_call(lambda: save_steering(tmp_path, other)):
        loaded = load_steering(tmp_path, planted.spec)
        expected = new if "turned" in loaded.notes else old
        np.testing.assert_array_equal(loaded.directions["slow"].direction, expected.direction)
        seen.add("turned" in loaded.notes)
        save_steering(tmp_path, artifact)
    assert seen == {True, False}
    assert len(list(tmp_path.iterdir())) == 2


def test_another_policy_is_refused_in_one_sentence(artifact, policy, tmp_path):
    save_steering(tmp_path, artifact)
    with pytest.raises(
        FingerprintError, match=r"holds steering vectors of policy .* not of 'random'"
    ):
        load_steering(tmp_path, policy.spec)


def test_a_direction_of_another_policy_is_not_saved(artifact, tmp_path):
    with pytest.raises(ValueError, match="one artifact per policy"):
        save_steering(tmp_path, dataclasses.replace(artifact, policy="0" * 64))
    assert not list(tmp_path.iterdir())


def test_damaged_or_missing_files_are_named(artifact, planted, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no steering\.json"):
        load_steering(tmp_path, planted.spec)
    save_steering(tmp_path, artifact)
    document = json.loads((tmp_path / "steering.json").read_text())
    document["directions"]["slow"]["site"] = "action.mlp_out"
    (tmp_path / "steering.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"'slow' has shape \(3, 32\).* needs \(3, 16\)"):
        load_steering(tmp_path, planted.spec)
    document["version"] = 99
    (tmp_path / "steering.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="steering format 99"):
        load_steering(tmp_path, planted.spec)


def test_the_random_artifact_keeps_causes_and_lengths_but_not_directions(artifact):
    vectors = {n: d for n, d in artifact.directions.items() if n != "set high"}
    plain = dataclasses.replace(artifact, directions=vectors)
    control = plain.random(seed=2)
    assert control.causes == plain.causes
    assert control.directions["light"].provenance.maker == "control"
    for name in ("slow", "quick", "slow-quick"):
        vector = vectors[name]
        np.testing.assert_allclose(control.directions[name].scale, vector.scale)
        assert (
            jnp.abs(jnp.sum(control.directions[name].direction * vector.direction, -1)).max() < 0.8
        )
    with pytest.raises(ValueError, match="control_neurons"):
        artifact.random()


def change(path, keys, value):
    """A file with one entry of its JSON replaced; without `value`, removed."""
    document = json.loads(path.read_text())
    document.pop("files")
    *outer, last = keys
    inner = document
    for key in outer:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("version",), None, "steering format None"),
        (("directions",), None, "lacks 'directions'"),
        (("directions", "slow"), [1], "steering.json"),
        (("directions", "slow", "kind"), "Sum", "is a 'Sum'"),
        (("directions", "slow", "kind"), "NeuronOverwrite", "NeuronOverwrite for 'vlm.mlp_out'"),
        (("directions", "slow", "site"), "dino.resid", "the policy has"),
        (("directions", "slow", "site"), "vlm.nowhere", "is not a site"),
        (("directions", "slow", "site"), "vlm.attn_heads", "expected one of"),
        (("directions", "slow", "site"), "action.resid", "in 'direction'"),
        (("directions", "slow", "tokens"), "wrod", "no segment 'wrod'"),
        (("directions", "slow", "provenance"), {"maker": "x"}, "policy"),
        (("directions", "slow", "provenance", "policy"), "f" * 64, "was made with policy ffff"),
        (("directions", "quick", "tokens"), None, "lacks 'tokens'"),
        (("causes", "text"), ["slwo", 1.0], "names direction 'slwo'"),
        (("causes", "text"), ["slow", "1"], "expected a finite number"),
        (("causes", "text"), ["slow", True], "expected a finite number"),
        (("causes", "text"), ["slow", 1e39], "expected a finite number"),
        (("causes", "text"), ["slow"], "steering.json"),
        (("causes",), [], "steering.json"),
    ],
)
def test_a_card_that_fits_no_policy_is_refused_by_its_name(
    artifact, planted, tmp_path, keys, value, message
):
    save_steering(tmp_path, artifact)
    change(tmp_path / "steering.json", keys, value)
    with pytest.raises(ValueError, match=message):
        load_steering(tmp_path, planted.spec)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_strength_that_is_not_finite_is_refused(artifact, planted, tmp_path, number):
    save_steering(tmp_path, artifact)
    path = tmp_path / "steering.json"
    path.write_text(path.read_text().replace("1.5", number))
    with pytest.raises(ValueError, match=r"steering\.json"):
        load_steering(tmp_path, planted.spec)


ARRAYS = {
    "slow": ("direction", "scale", "gate"),
    "light": ("weight", "bias", "gate"),
    "set high": ("mask", "value", "gate"),
}


@pytest.mark.parametrize("name,field", [(n, f) for n, fields in ARRAYS.items() for f in fields])
def test_every_array_is_finite_numbers_of_the_stacks_size(artifact, planted, tmp_path, name, field):
    save_steering(tmp_path, artifact)
    path = tmp_path / "steering.safetensors"
    good = load_file(path)
    change(tmp_path / "steering.json", ("notes",), {})  # no digests, as in an older artifact
    key = f"{name}/{field}"
    wrong = {
        "finite": np.full_like(good[key], np.nan),
        "not finite": good[key].astype(np.int32),
        "has shape": good[key][:1],
        "in '": good[key][..., None],
    }
    for message, array in wrong.items():
        save_file({**good, key: array}, path)
        with pytest.raises(ValueError, match=message):
            load_steering(tmp_path, planted.spec)
    save_file({k: v for k, v in good.items() if k != key}, path)
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        load_steering(tmp_path, planted.spec)
    save_file({**good, "surplus": np.zeros(1, np.float32)}, path)
    load_steering(tmp_path, planted.spec)


def test_what_could_not_be_loaded_is_not_saved(artifact, tmp_path):
    slow = artifact.directions["slow"]
    broken = dataclasses.replace(slow, scale=slow.scale * np.nan)
    for wrong in (
        dataclasses.replace(artifact, directions={**artifact.directions, "slow": broken}),
        dataclasses.replace(artifact, causes={"text": ("slwo", 1.0)}),
        dataclasses.replace(artifact, causes={"text": ("slow", np.nan)}),
    ):
        with pytest.raises(ValueError, match=r"slow|slwo|strength"):
            save_steering(tmp_path, wrong)
    assert not list(tmp_path.iterdir())

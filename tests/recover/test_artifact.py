"""A remedy on disk: what is refused, by its name, before anything moves."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from mistjax.cli import main
from mistjax.recover.artifact import RemedyConfig, load_remedy, make_remedy, save_remedy
from mistjax.steer import Provenance, SteeringArtifact, SteeringVector, save_steering


@pytest.fixture
def steering(policy):
    stack = policy.spec.stacks["vlm"]
    push = SteeringVector(
        direction=jnp.ones((stack.depth, stack.width)) / stack.width**0.5,
        scale=jnp.ones(stack.depth),
        gate=jnp.ones(stack.depth),
        site="vlm.resid",
        tokens="all",
        provenance=Provenance(policy.spec.fingerprint, "test"),
    )
    return SteeringArtifact(policy.spec.fingerprint, {"push": push}, {"text": ("push", 1.0)})


@pytest.fixture
def folder(steering, tmp_path):
    save_steering(tmp_path, steering)
    save_remedy(tmp_path, RemedyConfig(strengths=(1.0, 0.0), cap=0.5))
    return tmp_path


def test_a_remedy_comes_back_as_it_was(folder):
    assert load_remedy(folder) == RemedyConfig(strengths=(1.0, 0.0), cap=0.5)


def test_an_attribution_by_its_old_name_still_finds_the_cause(folder, capsys):
    with pytest.warns(DeprecationWarning, match="'iss_masked_mean' is now called 'iss'"):
        RemedyConfig(method="iss_masked_mean")
    assert main(["remedy", str(folder), "--method", "iss_masked_mean"]) == 0
    assert "--method iss_masked_mean is now --method iss" in capsys.readouterr().err
    assert load_remedy(folder).method == "iss"


def test_a_save_that_dies_leaves_the_old_remedy_or_the_new_one(folder, kill_at_every_call):
    old, new, seen = load_remedy(folder), RemedyConfig((0.25, 0.0), cap=0.125), set()
    for _ in kill_at_every_call(lambda: save_remedy(folder, new)):
        seen.add(load_remedy(folder))
        save_remedy(folder, old)
    assert seen == {old, new} and load_remedy(folder) == new
    assert len(list(folder.iterdir())) == 3


WRONG = [
    ("cap", "NaN"),
    ("cap", "Infinity"),
    ("cap", "1.5"),
    ("cap", "-0.1"),
    ("cap", '"0.5"'),
    ("cap", "true"),
    ("cap", "null"),
    ("weight", "NaN"),
    ("weight", "-1"),
    ("weight", "2"),
    ("strengths", "[]"),
    ("strengths", "[NaN]"),
    ("strengths", "[1e39]"),
    ("strengths", "[1.0, -1.0]"),
    ("strengths", '["1"]'),
    ("strengths", "1.0"),
    ("method", '"gradient"'),
    ("method", "null"),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_setting_that_no_remedy_can_have_is_refused_at_load(folder, key, value):
    path = folder / "remedy.json"
    settings = json.loads(path.read_text())
    others = "".join(f', "{k}": {json.dumps(v)}' for k, v in settings.items() if k != key)
    path.write_text(f'{{"{key}": {value}{others}}}')
    with pytest.raises(ValueError, match=r"remedy\.json"):
        load_remedy(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cap": 0.5}', '{"caps": 1}', "null"])
def test_a_damaged_remedy_is_refused_by_its_name(folder, text):
    (folder / "remedy.json").write_text(text)
    with pytest.raises(ValueError, match=r"remedy\.json"):
        load_remedy(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"cap": float("nan")},
        {"weight": float("inf")},
        {"strengths": ()},
        {"strengths": (1.0, float("nan"))},
        {"method": "guess"},
    ],
)
def test_no_such_remedy_can_be_made(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RemedyConfig(**settings)


def test_a_remedy_without_directions_is_not_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="mistjax vectors"):
        save_remedy(tmp_path / "misspelt", RemedyConfig())
    assert not (tmp_path / "misspelt").exists()


def test_a_cause_that_is_no_input_of_the_policy_is_refused(policy, steering):
    make_remedy(policy, steering, RemedyConfig())
    misspelt = dataclasses.replace(steering, causes={"txet": ("push", 1.0)})
    with pytest.raises(ValueError, match=r"\['txet'\] are not inputs"):
        make_remedy(policy, misspelt, RemedyConfig())


def test_another_method_strength_cap_or_weight_is_another_policy(policy, steering, monitor):
    from mistjax.recover.mist import MistPolicy

    settings = [{}, {"method": "saliency"}, {"strengths": (0.5,)}, {"cap": 0.1}, {"weight": 0.9}]
    remedies = [make_remedy(policy, steering, RemedyConfig(**s)) for s in settings]
    prints = {MistPolicy(policy, monitor, remedy).spec.fingerprint for remedy in remedies}
    assert len(prints) == len(settings)

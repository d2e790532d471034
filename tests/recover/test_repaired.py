"""A repair touches the input that is named, in its own row, and ends. On the shipped policy."""

import dataclasses
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.monitor import InputEvidence
from mistjax.policies import load_policy
from mistjax.recover.artifact import load_mist
from mistjax.recover.decision import (
    DECISIONS,
    NEVER,
    Decision,
    Script,
    Scripted,
    always,
    begins,
)
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.mist import MistPolicy
from mistjax.recover.recovery import RepairMemory, recovered
from mistjax.recover.repaired import Repaired, _sample
from mistjax.rollouts.loop import beside
from mistjax.steer.remedies.artifact import RepairConfig, load_repairs, make_remedies, save_repairs
from mistjax.steer.remedies.imputer import Imputer
from mistjax.steer.remedies.mask import Mask
from mistjax.steer.remedies.remedy import Seen

KEYS = jax.random.split(jax.random.key(0), 3)
FRONT, WRIST, STATE, TEXT = range(4)
SCRIPT = Decision("script", "script")


@pytest.fixture(scope="module")
def policy():
    return load_policy("checkpoints/board_pi0")


@pytest.fixture(scope="module")
def obs(policy, observation):
    return observation(policy.config, batch=3)


@pytest.fixture(scope="module")
def bare(policy, obs):
    return policy.sample(obs, KEYS).actions


@pytest.fixture(scope="module")
def monitor(policy):
    """Never alarms."""
    found = load_inputs("checkpoints/board_mist", policy.spec.fingerprint)
    upper = jnp.array([1e9], jnp.float32)
    return dataclasses.replace(found, threshold=dataclasses.replace(found.threshold, upper=upper))


def imputer(monitor, familiar=1e9):
    """Random numbers; it knows where `familiar` is large."""
    rng, (c, t, k, s, f, h) = np.random.default_rng(0), (2, 16 * 96, 4, 5, 3, 8)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-2]), jnp.float32)

    sizes = (c * k + 2 * (s + f), h, h, k + 1)
    layers = [(normal(c, *io), jnp.zeros((c, io[1]))) for io in itertools.pairwise(sizes)]
    weights, bias = layers[-1]
    layers[-1] = weights.at[:, :, -1].set(0.0), bias.at[:, -1].set(-5.0)
    one = jnp.ones(c)
    basis = jnp.asarray(np.linalg.qr(rng.normal(size=(c, t, k)))[0], jnp.float32)
    return Imputer(
        mean=jnp.zeros((c, t)),
        directions=basis,
        scale=one,
        spread=jnp.ones((c, k)),
        rest=one,
        frequencies=normal(s, f),
        phases=jnp.zeros(f),
        layers=tuple(layers),
        usual=one,
        familiar=familiar * one,
        cameras=monitor.cameras,
    )


@pytest.fixture(scope="module")
def make(policy, monitor):
    def build(decision, config=RepairConfig(), familiar=1e9):
        remedies = make_remedies(monitor, imputer(monitor, familiar))
        limits = FusionLimits.of(policy.spec, config.cap, policy.chunk_width)
        mist = Repaired(policy, monitor, remedies, limits, config, decision)
        return Scripted(mist, told) if decision.scripted else mist

    return build


def told(seed):
    return [("front", 1), ("state", 1), (None, NEVER), ("instruction", 1)][seed]


def two_looks(mist, obs, then=None, seeds=(0, 1, 2)):
    first = mist.sample(obs, KEYS, state=beside(mist, mist.begin(seeds)))
    return first, mist.sample(obs if then is None else then, KEYS, state=first.state)


def test_where_nothing_is_repaired_the_actions_are_the_bare_ones_bit_for_bit(make, obs, bare):
    first, second = two_looks(make(SCRIPT), obs)
    assert np.array_equal(first.actions, bare)
    assert second.aux["repaired"].tolist() == [
        [True, False, False, False],
        [False, False, True, False],
        [False, False, False, False],
    ]
    assert np.array_equal(second.actions[2], bare[2])
    assert not np.array_equal(second.actions[0], bare[0])


def test_what_the_sensor_of_a_repaired_input_says_does_not_matter(make, obs):
    mist, seeds = make(SCRIPT), (0, 1, 3)
    faulty = dataclasses.replace(
        obs,
        images={**obs.images, "base_0_rgb": obs.images["base_0_rgb"].at[0].mul(0.3)},
        state=jnp.asarray(obs.state).at[1, :5].add(7.0),
        tokenized_prompt=jnp.asarray(obs.tokenized_prompt).at[2, 1].set(7),
    )
    sound, repaired = (two_looks(mist, obs, then, seeds)[1] for then in (obs, faulty))
    assert np.array_equal(sound.actions, repaired.actions)
    assert float(repaired.aux["residual"][1, STATE]) > 1
    assert repaired.aux["residual"][2, TEXT] == 2.0 and sound.aux["residual"][2, TEXT] == 0.0


def test_one_program_serves_the_first_inference_and_the_others(make, obs):
    """Arrays that are bound to a device, and those that are not, would be two programs."""
    mist = make(SCRIPT)
    state = beside(mist, mist.begin([0, 1, 2]))
    sample = mist.sample(obs, KEYS, state=state)
    before = _sample._cache_size()
    mist.sample(obs, KEYS, state=sample.state)
    assert _sample._cache_size() == before


def test_an_imputer_that_does_not_know_repairs_nothing(make, obs, bare):
    _, second = two_looks(make(SCRIPT, familiar=0.0), obs)
    assert second.aux["repairing"][0, FRONT]
    assert not second.aux["repaired"][0].any()
    assert np.array_equal(second.actions[0], bare[0])


@pytest.mark.slow
def test_no_effect_is_the_bare_policy_and_a_random_one_moves_the_same_rows(make, obs, bare):
    none, random = (
        two_looks(make(dataclasses.replace(SCRIPT, effect=effect)), obs)[1]
        for effect in ("none", "random")
    )
    assert np.array_equal(none.actions, bare)
    repaired = two_looks(make(SCRIPT), obs)[1]
    for row, moves in enumerate((True, True, False)):
        assert np.array_equal(random.actions[row], bare[row]) != moves
        assert np.array_equal(random.actions[row], repaired.actions[row]) != moves


@pytest.mark.slow
@pytest.mark.parametrize("cap", [0.0, 0.01])
def test_a_repair_stays_within_the_cap(make, obs, bare, cap):
    mist = make(SCRIPT, RepairConfig(cap=cap))
    moved = np.abs(np.asarray(two_looks(mist, obs)[1].actions - bare))
    assert (moved[..., :3] <= np.asarray(mist.policy.limits.cap)[:3] + 1e-5).all()
    assert moved.any() == (cap > 0)


def says(blamed):
    """What the monitor says of one row, in which it blames that input."""
    shapes = {"ratios": (4, 3), "cells": (2, 8, 8), "entries": (5,)}
    values = {
        field.name: jnp.zeros((1, *shapes.get(field.name, ())))
        for field in dataclasses.fields(InputEvidence)
    }
    whole = {"suspect": 0, "blamed": blamed, "named": -1}
    values |= {name: jnp.array([value], jnp.int32) for name, value in whole.items()}
    return InputEvidence(**values | {"unsound": jnp.ones(1, bool), "words": jnp.ones((1, 9), bool)})


def begun(decision, blamed=-1, alarmed=False, looks=1, script=(-1, NEVER)):
    names = ("base_0_rgb", "left_wrist_0_rgb", "state", "text")
    told = Script(jnp.array(script[:1], jnp.int32), jnp.array(script[1:], jnp.int32))
    now = jnp.array([alarmed]), jnp.array([looks])
    return np.flatnonzero(begins(decision, names, says(blamed), *now, told)[0]).tolist()


@pytest.mark.parametrize(
    ("decision", "situation", "chosen"),
    [
        (DECISIONS["mist"], {"blamed": WRIST, "alarmed": True}, [WRIST]),
        (DECISIONS["mist"], {"blamed": 4, "alarmed": True}, []),
        (DECISIONS["mist"], {"alarmed": True}, []),
        (DECISIONS["always_all"], {}, [FRONT, WRIST, STATE, TEXT]),
        (DECISIONS["always_all"], {"looks": 0}, []),
        (always("state", "text"), {}, [STATE, TEXT]),
        (DECISIONS["all_at_alarm"], {"alarmed": True}, [FRONT, WRIST, STATE, TEXT]),
        (DECISIONS["all_at_alarm"], {}, []),
        (DECISIONS["wrong_input"], {"alarmed": True, "script": (TEXT, 0)}, [TEXT]),
        (DECISIONS["wrong_input"], {"script": (TEXT, 0)}, []),
        (DECISIONS["oracle"], {"script": (STATE, 1)}, [STATE]),
        (DECISIONS["oracle"], {"script": (STATE, 2)}, []),
        (DECISIONS["oracle"], {"script": (-1, 0)}, []),
    ],
)
def test_a_decision_says_when_and_which(decision, situation, chosen):
    assert begun(decision, **situation) == chosen


def test_a_name_is_taken_back_when_the_sensor_agrees_and_a_budget_ends_every_repair():
    def lasts(residual, looks):
        counts = (jnp.full((1, 1), value) for value in (True, 0, 0))
        memory = RepairMemory({}, *counts, jnp.array([True]), Script.none(1))
        for _ in range(looks):
            memory = recovered(memory, jnp.full((1, 1), residual), patience=2, budget=9)
        return bool(memory.active[0, 0])

    assert lasts(0.5, 1)
    assert not lasts(0.5, 2)
    assert lasts(1.5, 8)
    assert not lasts(1.5, 9)


def test_a_script_names_inputs_that_there_are(make):
    mist = make(SCRIPT)
    with pytest.raises(ValueError, match="rear"):
        dataclasses.replace(mist, script=lambda seed: ("rear", 1)).begin([0])
    with pytest.raises(ValueError, match="alarm only"):
        Decision("start", "named")


def test_remedies_come_back_from_disk_and_refuse_another_policy(monitor, tmp_path):
    mine = imputer(monitor)
    save_repairs(tmp_path, mine, RepairConfig(cap=0.5), "mine")
    remedies, config = load_repairs(tmp_path, "mine", monitor)
    assert config == RepairConfig(cap=0.5)
    back = remedies["base_0_rgb"]
    assert np.array_equal(back.familiar, mine.familiar)
    np.testing.assert_allclose(back.directions, mine.directions, atol=1e-2)
    with pytest.raises(ValueError, match="not of yours"):
        load_repairs(tmp_path, "yours", monitor)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("left_wrist_0_rgb", "image_masks"),
        ("text", "tokenized_prompt_mask"),
        ("state", "state_mask"),
    ],
)
def test_a_mask_takes_the_input_away_and_nothing_else(obs, name, field):
    proposal = Mask().propose((), Seen(obs, jnp.zeros((3, 4, 4))), name)
    changed = getattr(proposal.obs, field)
    changed = changed[name] if isinstance(changed, dict) else changed
    assert not np.asarray(changed).any()
    assert not (proposal.residual <= 1).any()
    others = {f.name for f in dataclasses.fields(obs)} - {field}
    assert all(getattr(proposal.obs, other) is getattr(obs, other) for other in others)


def test_a_monitor_of_failures_without_directions_only_watches(policy, tmp_path):
    """Its folder's remedies are the inputs'."""
    shutil.copytree("checkpoints/board_mist", tmp_path, dirs_exist_ok=True)
    for name in ("steering.json", "steering.safetensors", "remedy.json"):
        (tmp_path / name).unlink()
    found = load_mist(tmp_path, policy)
    assert isinstance(found, Repaired) and isinstance(found.policy, MistPolicy)
    assert found.policy.remedy is None
    shutil.copy("checkpoints/board_mist/remedy.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no steering\.json"):
        load_mist(tmp_path, policy)

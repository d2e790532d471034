"""Remedies of pictures undo what they are for, in the compiled loop too. On the shipped policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.demo import MIST, POLICY
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.envs.board.env import BoardEnv
from mistjax.envs.faults.inputs import PICTURE_NOISE
from mistjax.policies import load_policy
from mistjax.recover.decision import Decision, Scripted
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.repaired import Repaired, looking
from mistjax.rollouts.loop import beside
from mistjax.steer.remedies.artifact import load_repairs
from mistjax.steer.remedies.clean import load_clean
from mistjax.steer.remedies.first_sound import FirstSound
from mistjax.steer.remedies.remedy import Seen

FRONT, WRIST = "base_0_rgb", "left_wrist_0_rgb"
COMMAND = jnp.zeros((2, 4, 4))


@pytest.fixture(scope="module")
def policy():
    return load_policy(POLICY)


@pytest.fixture(scope="module")
def monitor(policy):
    return load_inputs(MIST, policy.spec.fingerprint)


@pytest.fixture(scope="module")
def clean(policy):
    return load_clean(MIST, policy.spec.fingerprint)


@pytest.fixture(scope="module")
def paste(clean, monitor, policy):
    return clean.paste(monitor, (policy.config.image_size,) * 2)


@pytest.fixture(scope="module")
def imputer(policy, monitor):
    return load_repairs(MIST, policy.spec.fingerprint, monitor)[0][FRONT]


@pytest.fixture(scope="module")
def obs(policy):
    """Two first looks, with ordinary sensor noise."""
    seen = policy.prepare([BoardEnv().reset(seed=seed)[0] for seed in (30, 32)])
    rng = np.random.default_rng(0)

    def noisy(picture):
        return jnp.asarray(picture + rng.normal(0, 2 * PICTURE_NOISE / 255, picture.shape), "f4")

    return dataclasses.replace(seen, images={k: noisy(v) for k, v in seen.images.items()})


def look(policy, obs):
    return Seen(policy.embed_images(obs)[0], COMMAND, looking(policy, obs))


def changed(obs, change, name=FRONT):
    """The same with a picture changed, in light from 0 to 1."""
    light = change((obs.images[name] + 1) / 2)
    return dataclasses.replace(obs, images={**obs.images, name: 2 * jnp.clip(light, 0, 1) - 1})


def dimmed(light):
    return 0.5 * light


def cast(light):
    return light * jnp.array([[[[0.45, 1.0, 1.3]]]])


def patched(light):
    return light.at[:, 20:44, 8:36].set(60 / 255)


def black(light):
    return 0 * light


def speckled(light):
    draw = jax.random.uniform(jax.random.key(0), light.shape[:3])[..., None]
    return jnp.where(draw < 0.3, jnp.round(draw / 0.3), light)


def after(remedy, policy, obs, *later, name=FRONT):
    """What is proposed at the last look, from a note of the first."""
    note = remedy.note(look(policy, obs), name)
    for now in later:
        note = remedy.advance(note, seen := look(policy, now))
    return remedy.propose(note, seen, name)


def left(policy, proposal, sound, faulty):
    """Distance of the tokens from the sound ones, as a share of the faulty ones'."""
    here, there = (look(policy, o).obs.image_embedding for o in (sound, faulty))
    away = np.linalg.norm(proposal.obs.image_embedding - here)
    return away / np.linalg.norm(there - here)


@pytest.mark.parametrize("fault", [dimmed, cast])
@pytest.mark.parametrize("name", [FRONT, WRIST])
def test_a_camera_gets_its_own_light_back(clean, policy, obs, fault, name):
    faulty = changed(obs, fault, name)
    proposal = after(clean.gain, policy, obs, faulty, faulty, name=name)
    assert proposal.known.all() and (proposal.residual > 1).all()
    assert left(policy, proposal, obs, faulty) < 0.3


@pytest.mark.parametrize("fault", [black, lambda light: light])
def test_gain_does_not_know_what_is_no_gain(clean, policy, obs, fault):
    assert not after(clean.gain, policy, obs, changed(obs, fault)).known.any()


def test_light_that_comes_back_is_sound_again(clean, policy, obs):
    proposal = after(clean.gain, policy, obs, changed(obs, dimmed), obs)
    assert not proposal.known.any() and (proposal.residual <= 1).all()


def test_strange_parts_are_pasted_over_and_nothing_else(paste, policy, obs):
    faulty = changed(obs, patched)
    proposal = after(paste, policy, obs, faulty)
    assert proposal.known.all() and (proposal.residual > 1).all()
    assert left(policy, proposal, obs, faulty) < 0.1
    moved = changed(obs, lambda light: light.at[:, :, 60:].mul(0.97))
    pasted = after(paste, policy, moved, faulty)
    assert 0 < left(policy, pasted, obs, faulty) < 0.5


@pytest.mark.parametrize("fault", [black, lambda light: light])
def test_paste_does_not_know_pictures_that_are_strange_everywhere_or_nowhere(
    paste, policy, obs, fault
):
    assert not after(paste, policy, obs, changed(obs, fault)).known.any()


def test_the_imputer_stands_in_where_no_picture_can_be_repaired(clean, paste, imputer, policy, obs):
    remedy = FirstSound((clean.gain, paste), imputer)
    by_itself = after(imputer, policy, obs, speckled_ := changed(obs, speckled))
    both = after(remedy, policy, obs, speckled_)
    np.testing.assert_array_equal(both.obs.image_embedding, by_itself.obs.image_embedding)
    undone = after(remedy, policy, obs, faulty := changed(obs, dimmed))
    alone = after(clean.gain, policy, obs, faulty)
    np.testing.assert_array_equal(undone.obs.image_embedding, alone.obs.image_embedding)


def test_a_remedy_of_pictures_without_a_vision_tower_is_refused(clean, policy, obs):
    seen = Seen(policy.embed_images(obs)[0], COMMAND)
    with pytest.raises(ValueError, match="give Seen a `look`"):
        clean.gain.propose(clean.gain.note(seen, FRONT), seen, FRONT)


@pytest.mark.slow
def test_the_loop_acts_on_the_repaired_picture(clean, monitor, imputer, policy, obs):
    """Row 0 is repaired, row 1 is left to the fault."""
    _, config = load_repairs(MIST, policy.spec.fingerprint, monitor)
    limits = FusionLimits.of(policy.spec, config.cap, policy.chunk_width)
    quiet = dataclasses.replace(monitor.threshold, upper=jnp.array([1e9], jnp.float32))
    mist = Repaired(
        policy,
        dataclasses.replace(monitor, threshold=quiet),
        {FRONT: clean.gain},
        limits,
        config,
        Decision("script", "script"),
    )
    told = Scripted(mist, lambda seed: ("front", 1) if seed == 0 else (None, 2**30))
    keys = jax.random.split(jax.random.key(0), 2)
    first = told.sample(obs, keys, state=beside(told, told.begin([0, 1])))
    faulty = changed(obs, dimmed)
    second = told.sample(faulty, keys, state=first.state)
    assert second.aux["repaired"][:, 0].tolist() == [True, False]
    sound, bare = (policy.sample(o, keys).actions for o in (obs, faulty))
    np.testing.assert_array_equal(second.actions[1], bare[1])
    away = [float(np.linalg.norm(a[0] - sound[0])) for a in (second.actions, bare)]
    assert away[0] < 0.3 * away[1]

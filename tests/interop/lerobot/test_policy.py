"""LeRobot's SmolVLA behind the protocol: what LeRobot computes, to the bit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from interop.arrays import to_torch
from interop.lerobot.policy import LeRobotPolicy
from mistjax.hooks import POINTS, Add, Tap
from mistjax.policies import BOARD, Policy
from mistjax.policies.protocol import LanguagePolicy
from mistjax.policies.wrapper import language

KEY = jax.random.key(7)
EVERY = tuple(Tap(f"{stack}.{point}") for stack in ("vision", "vlm", "action") for point in POINTS)


def lerobots(policy, raw):
    """The chunk that LeRobot itself predicts from the same noise, and in the robot's units."""
    noise = to_torch(policy.noise(KEY, len(raw)))
    policy.policy.reset()
    chunk = policy.policy.predict_action_chunk(policy.batch(raw), noise=noise)
    return chunk.numpy(), policy.postprocessor(chunk).clip(-1, 1).numpy()


@pytest.fixture(scope="module")
def obs(policy, raw):
    return policy.prepare(raw)


@pytest.mark.parametrize("rows", [[0], [1], [0, 1]])
def test_hooked_and_off_the_actions_are_lerobots_own_to_the_bit(policy, raw, rows):
    raw = [raw[row] for row in rows]
    (chunk, actions), obs = lerobots(policy, raw), policy.prepare(raw)
    off = Add("vlm.mlp_out", vector=jnp.ones((3, 48)), strength=0.0)
    none = Add("action.resid", vector=jnp.ones((3, 32)), strength=0.0)
    for hooks in ({}, {"taps": EVERY}, {"edits": (off, none)}):
        sample = policy.sample(obs, KEY, **hooks)
        np.testing.assert_array_equal(sample.actions, chunk)
        np.testing.assert_array_equal(policy.finish(sample, raw), actions)


def test_select_action_gives_the_first_actions_of_the_same_chunk(policy, raw):
    noise = to_torch(policy.noise(KEY, 1))
    policy.policy.reset()
    batch = policy.batch(raw[:1])
    actions = [policy.policy.select_action(dict(batch), noise=noise) for _ in range(4)]
    sample = policy.sample(policy.prepare(raw[:1]), KEY)
    np.testing.assert_array_equal(sample.actions[0, :4], torch.cat(actions).numpy())


@pytest.mark.parametrize("rows", [[0], [0, 1]])
def test_what_lerobot_computes_with_lies_in_memory_as_its_own(policy, raw, rows, monkeypatch):
    """Kernels round otherwise where channels lie last; bits would depend on the machine."""
    given, raw = [], [raw[row] for row in rows]
    own = policy.policy.model.sample_actions

    def spy(*args, noise):
        given.append(jax.tree.leaves((args, noise)))
        return own(*args, noise=noise)

    monkeypatch.setattr(policy.policy.model, "sample_actions", spy)
    lerobots(policy, raw)
    policy.sample(policy.prepare(raw), KEY)
    theirs, ours = given
    assert len(ours) == 8
    for one, other in zip(theirs, ours, strict=True):
        wide = [axis for axis, size in enumerate(one.shape) if size > 1]
        assert [one.stride(i) for i in wide] == [other.stride(i) for i in wide]
        assert not one.data_ptr() % 64 and not other.data_ptr() % 64
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_noise_can_be_given_in_place_of_a_key(policy, obs):
    noise = policy.noise(KEY, 2)
    same = policy.sample(obs, jax.random.key(0), noise=noise)
    np.testing.assert_array_equal(same.actions, policy.sample(obs, KEY).actions)
    other = policy.sample(obs, jax.random.key(0))
    assert not np.allclose(other.actions, same.actions)


def test_it_has_every_member_of_the_protocol(policy, lacking):
    assert not lacking(policy, Policy) and not lacking(policy, LanguagePolicy)
    assert language(policy) is policy
    spec = policy.spec
    assert spec.cameras == BOARD.cameras
    assert (spec.num_steps, spec.action_horizon, spec.execute_steps) == (3, 8, 4)
    np.testing.assert_allclose(spec.action_scale, np.linspace(0.5, 2, 4), rtol=1e-6)
    assert policy.tokenizer.id_to_piece(5) == "▁place"


def test_the_same_under_jit(policy, obs):
    edit = Add("action.mlp_out", vector=jnp.ones((3, 32)), strength=2.0)
    run = jax.jit(lambda o, k, e: policy.sample(o, k, edits=(e,), taps=EVERY[:3]))
    plain, traced = policy.sample(obs, KEY, edits=(edit,), taps=EVERY[:3]), run(obs, KEY, edit)
    jax.tree.map(np.testing.assert_array_equal, plain, traced)


def test_the_objective_reaches_pictures_words_state_and_edits(policy, obs):
    tap = Tap("action.resid", layers=(-1,), reduce="mean")
    worded = policy.embed_prompt(obs)
    np.testing.assert_array_equal(
        policy.sample(worded, KEY).actions, policy.sample(obs, KEY).actions
    )

    def readout(sample):
        return jnp.sum(sample.actions**2, axis=(1, 2)) + sample.taps[str(tap)].sum((0, 1, 3))

    def total(images, state, words, strength):
        seen = worded.replace(images=images, state=state, prompt_embedding=words)
        edit = Add("vlm.attn_out", vector=jnp.ones((3, 48)), strength=strength)
        return policy.objective(seen, KEY, readout, taps=(tap,), edits=(edit,)).sum()

    args = (worded.images, worded.state, worded.prompt_embedding, jnp.float32(0.1))
    grads = jax.grad(total, argnums=(0, 1, 2, 3))(*args)
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
    assert not np.asarray(grads[2])[0, -1].any()  # nothing comes from padding
    up, down = (total(*args[:3], args[3] + d) for d in (1e-2, -1e-2))
    np.testing.assert_allclose((up - down) / 2e-2, grads[3], rtol=5e-3)


def test_a_batch_agrees_with_its_rows(policy, raw, obs):
    keys, means = jax.random.split(KEY, 2), [replace(tap, reduce="mean") for tap in EVERY]
    both = policy.sample(obs, keys, taps=means)
    for i in range(2):
        one = policy.sample(policy.prepare(raw[i : i + 1]), keys[i : i + 1], taps=means)
        np.testing.assert_allclose(both.actions[i], one.actions[0], atol=2e-5)
        for tap in means:
            found, alone = (tap.batch_first(s.taps[str(tap)]) for s in (both, one))
            np.testing.assert_allclose(found[i], alone[0], atol=5e-5, rtol=1e-4, err_msg=str(tap))


def test_the_fingerprint_covers_weights_statistics_and_robot(policy, parts):
    assert LeRobotPolicy(*parts, BOARD).spec.fingerprint == policy.spec.fingerprint
    other = replace(BOARD, action_high=(8.0,) * 4)
    assert LeRobotPolicy(*parts, other).spec.fingerprint != policy.spec.fingerprint
    bias = parts[0].model.action_out_proj.bias
    bias[0] += 1
    try:
        assert LeRobotPolicy(*parts, BOARD).spec.fingerprint != policy.spec.fingerprint
    finally:
        bias[0] -= 1

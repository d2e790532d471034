import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from interop.openvla import checkpoints, processing
from interop.openvla.decoders import TokenDecoder
from interop.openvla.policy import OpenVLAPolicy
from interop.openvla.reader import Reader
from mistjax.hooks import Add, Tap
from mistjax.policies.protocol import LanguagePolicy, Policy
from mistjax.steer import value_vectors

KEY = jax.random.key(0)
TAPS = (
    Tap("vlm.mlp_out", layers=(1,), tokens="text", reduce="mean"),
    Tap("action.resid", layers=(-1,)),
)
NUDGE = (Add("action.mlp_out", vector=jnp.full((4, 64), 2.0)),)


@pytest.fixture(scope="module")
def obs(policy, raw):
    return policy.prepare(raw)


@pytest.fixture(scope="module")
def sample(policy, obs):
    return policy.sample(obs, KEY, taps=TAPS)


def test_it_satisfies_the_protocol(policy, lacking):
    assert isinstance(policy, Policy) and not lacking(policy, Policy)
    assert isinstance(policy, LanguagePolicy) and not lacking(policy, LanguagePolicy)
    assert policy.spec.num_steps == 7
    assert policy.spec.stacks["vision"].depth == 2
    assert policy.spec.action_scale[-1] == 1.0


def test_a_sample_has_actions_taps_and_what_was_announced(policy, obs, sample):
    assert sample.actions.shape == (2, 1, 7)
    assert sample.taps["action.resid@-1/all/tokens"].shape == (7, 1, 2, 1, 64)
    announced = jax.eval_shape(lambda o: policy.sample(o, KEY, taps=TAPS).taps, obs)
    assert jax.tree.map(jnp.shape, sample.taps) == jax.tree.map(lambda s: s.shape, announced)


def test_inside_jit_it_gives_the_very_same_sample(policy, obs, sample):
    jitted = jax.jit(lambda o, p: p.sample(o, KEY, taps=TAPS))(obs, policy)
    jax.tree.map(np.testing.assert_array_equal, jitted, sample)


def test_pictures_reach_the_network_as_the_original_prepares_them(policy, obs, recordings):
    fields = {
        "tokenized_prompt": obs.tokenized_prompt,
        "tokenized_prompt_mask": obs.tokenized_prompt_mask,
        "images": obs.images,
        "image_masks": obs.image_masks,
        "state": obs.state,
    }
    inputs = policy.reader.inputs(policy.model, jax.tree.map(torch.as_tensor, fields))
    for i in (0, 1):
        torch.testing.assert_close(
            inputs.pixel_values[i], recordings.pixels(i)[0], atol=1e-5, rtol=0
        )


def test_finished_actions_are_in_the_datasets_units(policy, sample, raw, recordings):
    finished = policy.finish(sample, raw)
    low, high = (np.array(recordings.stats[name]) for name in ("q01", "q99"))
    expected = np.asarray(sample.actions, np.float64)
    expected[..., :6] = (expected[..., :6] + 1) / 2 * (high - low)[:6] + low[:6]
    np.testing.assert_allclose(finished, expected, atol=1e-6)


def test_a_prefix_can_be_shared_by_a_plain_and_a_steered_sample(policy, obs, sample):
    prefix = policy.prefill(obs, taps=TAPS)
    plain = policy.sample(obs, KEY, taps=TAPS, prefix=prefix)
    jax.tree.map(np.testing.assert_array_equal, plain, sample)
    steered = policy.sample(obs, KEY, edits=NUDGE, prefix=prefix)
    alone = policy.sample(obs, KEY, edits=NUDGE)
    np.testing.assert_array_equal(steered.aux["token_log_prob"], alone.aux["token_log_prob"])
    assert not np.array_equal(steered.aux["token_log_prob"], sample.aux["token_log_prob"])


def test_gradients_of_pixels_words_and_edits_agree_with_differences(policy, obs):
    obs = policy.embed_prompt(obs)

    def score(words, strength):
        here = dataclasses.replace(obs, prompt_embedding=words)
        edits = [NUDGE[0].replace(strength=strength)]

        def readout(sample):
            return sample.taps[str(TAPS[1])].mean((0, 1, 3, 4)) + sample.actions.mean((1, 2))

        return policy.objective(here, KEY, readout, taps=TAPS, edits=edits).sum()

    words, strength = jnp.asarray(obs.prompt_embedding), jnp.float32(0.1)
    by_words, by_strength = jax.grad(score, argnums=(0, 1))(words, strength)
    along = by_words / jnp.linalg.norm(by_words)
    step = 1e-4
    difference = (score(words + step * along, strength) - score(words - step * along, strength)) / (
        2 * step
    )
    np.testing.assert_allclose(jnp.sum(by_words * along), difference, rtol=0.02)
    difference = (score(words, strength + 1e-3) - score(words, strength - 1e-3)) / 2e-3
    np.testing.assert_allclose(by_strength, difference, rtol=0.02)


def test_gradients_reach_every_pixel_of_a_present_camera(policy, obs):
    def score(images):
        here = dataclasses.replace(obs, images=images)
        return policy.objective(here, KEY, lambda s: s.aux["token_log_prob"].sum(1)).sum()

    grad = jax.grad(score)(jax.tree.map(jnp.asarray, obs.images))["base_0_rgb"]
    assert (np.abs(grad).max(axis=-1) > 0).mean() > 0.99


def test_a_camera_that_the_robot_lacks_changes_nothing(model, tokenizer, preset, raw):
    def log_prob(colour):
        cameras = {"base_0_rgb": "observation/image", "left_wrist_0_rgb": None}
        other = OpenVLAPolicy(model, TokenDecoder(model, 2), Reader(tokenizer, cameras), preset)
        obs = other.prepare(raw)
        obs.images["left_wrist_0_rgb"][:] = colour
        return other.sample(obs, KEY).aux["token_log_prob"]

    np.testing.assert_array_equal(log_prob(-1.0), log_prob(1.0))


def test_bfloat16_stays_close_to_float32(policy, goldens, obs, sample):
    half = OpenVLAPolicy(
        *(model := _half(goldens), TokenDecoder(model, 7)), policy.reader, policy.preset
    )
    found = half.sample(obs, KEY, taps=TAPS).taps[str(TAPS[0])]
    assert found.dtype == jnp.bfloat16
    expected = sample.taps[str(TAPS[0])]
    np.testing.assert_allclose(np.float32(found), expected, atol=0.05 * np.abs(expected).max())


def _half(goldens):
    from interop.openvla.recordings import recorded_model
    from mistjax.untrusted import read_npz

    weights = {k: torch.tensor(v) for k, v in read_npz(goldens / "weights.npz").items()}
    empty = checkpoints.empty_model(recorded_model(goldens).config)
    return checkpoints.install(empty, weights, dtype=torch.bfloat16)


def test_a_saved_policy_loads_as_the_same_policy(policy, preset, tmp_path):
    policy.save(tmp_path)
    again = OpenVLAPolicy.load(tmp_path, preset)
    assert again.spec.fingerprint == policy.spec.fingerprint


def test_other_statistics_are_another_policy(policy):
    other = dataclasses.replace(policy, bounds=("min", "max"))
    assert other.spec.fingerprint != policy.spec.fingerprint


def test_value_vectors_name_words_and_actions(policy):
    vectors = value_vectors(policy)
    scores = vectors.decode(vectors.vectors[0, 0])
    assert scores.shape == (32000,)
    assert vectors.names[31999] == "action[-1.00]"
    assert "bowl" in "".join(vectors.names[:40])


def test_a_missing_camera_is_named(policy):
    with pytest.raises(ValueError, match="no 'observation/image'"):
        policy.prepare([{"prompt": "pick up"}])


def test_picture_steps_must_end_at_the_models_size(policy, raw):
    reader = dataclasses.replace(policy.reader, image_steps=(processing.rotate_180,))
    with pytest.raises(ValueError, match=r"processing\.square"):
        dataclasses.replace(policy, reader=reader).prepare(raw)

"""Sparse features: found where they are planted, and what stands in for a token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect.artifact import FingerprintError
from mistjax.detect.methods.sparse import SparseCoder
from mistjax.detect.sparse import SparseArtifact, load_sparse, save_sparse
from mistjax.hooks import Tap
from mistjax.rollouts.run import memory_run
from mistjax.steer.sparse import (
    feature_vector,
    random_coder,
    replacements,
    token_activations,
    train_coder,
    unexplained,
)

TAP = Tap("action.resid", (-1,), "action")


@pytest.fixture(scope="module")
def planted_tokens():
    """Sums of two of 12 orthogonal directions of 16 dimensions."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(16, 16)))[0][:12]
    code = np.zeros((2048, 12))
    for row in code:
        row[rng.choice(12, 2, replace=False)] = rng.uniform(1, 2, 2)
    return (code @ directions).astype(np.float32), directions


@pytest.mark.slow
def test_planted_features_are_found(planted_tokens):
    tokens, directions = planted_tokens
    coder, history = train_coder(tokens, features=24, k=3, epochs=40, batch=64, learning_rate=3e-3)
    nearest = np.abs(np.asarray(coder.decoder) @ directions.T).max(0)
    assert np.median(nearest) > 0.9
    code = coder.encode(jnp.asarray(tokens))
    assert int((code > 0).sum(1).max()) == 3
    left = unexplained(np.asarray(coder.decode(code)), tokens)
    mean = tokens.mean(0)
    axes = np.linalg.svd(tokens - mean, full_matrices=False)[2][:3]
    assert left < 0.1 < unexplained((tokens - mean) @ axes.T @ axes + mean, tokens)
    assert history[-1].unexplained < history[0].unexplained


@pytest.mark.slow
def test_features_that_nothing_uses_begin_again(planted_tokens):
    tokens, _ = planted_tokens
    _, history = train_coder(tokens, features=200, k=1, epochs=6, batch=256, learning_rate=3e-3)
    assert min(epoch.dead for epoch in history) < history[0].dead / 2


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 9, "features": 8}, {"learning_rate": 0.0}])
def test_impossible_sizes_are_refused(planted_tokens, wrong):
    with pytest.raises(ValueError, match="expected all above 0"):
        train_coder(planted_tokens[0], **wrong)


def test_tokens_of_one_value_are_refused():
    with pytest.raises(ValueError, match="all the same"):
        train_coder(np.ones((8, 4), np.float32))


def identity(width):
    """Writes every token exactly: each dimension up and down."""
    eye = jnp.eye(width)
    both = jnp.concatenate([eye, -eye])
    return SparseCoder(both.T, jnp.zeros(2 * width), both, jnp.zeros(width), k=width)


@pytest.mark.slow
def test_features_that_write_all_leave_actions_and_the_mean_does_not(policy, obs, key):
    width = policy.spec.stacks["action"].width
    keys = jax.random.split(key, obs.batch_size)
    bare = policy.sample(obs, keys, taps=(TAP,))
    tokens = np.asarray(bare.taps[str(TAP)]).reshape(-1, width)
    edits = replacements(identity(width), tokens, TAP, policy.spec)
    acted = {
        name: policy.sample(obs, keys, edits=(edit,)).actions
        for name, edit in edits.items()
        if name != "principal_components"
    }
    np.testing.assert_allclose(acted["features"], bare.actions, atol=1e-5)
    assert float(jnp.abs(acted["mean"] - bare.actions).max()) > 1e-3
    off = edits["features"].replace(strength=0.0, mean=edits["features"].mean + 9)
    np.testing.assert_array_equal(policy.sample(obs, keys, edits=(off,)).actions, bare.actions)


def test_random_directions_write_tokens_worse_than_what_was_planted(planted_tokens):
    tokens, directions = planted_tokens
    both = jnp.asarray(np.concatenate([directions, -directions]), jnp.float32)
    coder = SparseCoder(both.T, jnp.zeros(len(both)), both, jnp.zeros(16), k=2)
    drawn = random_coder(coder, tokens)
    assert drawn.decoder.shape == coder.decoder.shape and drawn.k == coder.k
    left = [
        unexplained(np.asarray(c.decode(c.encode(jnp.asarray(tokens)))), tokens)
        for c in (coder, drawn)
    ]
    assert left[0] < 1e-6 < 0.2 < left[1] < 1


def test_an_autoencoder_is_of_one_policy(policy, tmp_path):
    width = policy.spec.stacks["action"].width
    coder = identity(width)
    save_sparse(tmp_path, SparseArtifact(policy.spec.fingerprint, TAP, coder, {}))
    found = load_sparse(tmp_path, policy.spec.fingerprint)
    assert found.tap == TAP and found.coder.k == width
    np.testing.assert_array_equal(found.coder.decoder, coder.decoder)
    with pytest.raises(FingerprintError, match="train-sae"):
        load_sparse(tmp_path, policy.spec.wrapped("other", 1).fingerprint)
    with pytest.raises(FileNotFoundError, match="train-sae"):
        load_sparse(tmp_path / "nowhere", "")


def test_a_feature_is_a_direction_in_its_layer(policy):
    coder = identity(policy.spec.stacks["action"].width)
    vector = feature_vector(coder, 3, 2.0, TAP, policy.spec)
    assert np.flatnonzero(np.asarray(vector.vector).any(1)).tolist() == [vector.scale.size - 1]
    np.testing.assert_allclose(vector.vector[-1], 2 * coder.decoder[3])


def test_means_of_tokens_and_several_layers_are_refused():
    for tap in (Tap("action.resid", (-1,), "action", "mean"), Tap("action.resid", None, "action")):
        with pytest.raises(ValueError, match="single tokens of one layer"):
            token_activations(memory_run({}, {}), tap)

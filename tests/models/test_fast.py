"""pi0-FAST writes until it is done, row by row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import Hooks, Tap
from mistjax.models import fast
from mistjax.models.config import TINY_FAST, FastConfig
from mistjax.models.fast import Pi0Fast
from mistjax.models.sampling import prefill
from mistjax.models.tokenizers import EOS, PAD

TAPS = (Tap("action.resid", reduce="mean"),)
KEYS = jax.random.split(jax.random.key(0), 2)


@jax.jit
def run(variables, obs, keys, temperature):
    model = Pi0Fast(TINY_FAST)
    prefix = prefill(model, variables, obs)
    first = fast.start(model, variables, prefix)
    return (
        fast.write(model, variables, prefix, keys, Hooks((), TAPS), temperature=temperature),
        first,
        prefix,
    )


@pytest.fixture(scope="module")
def obs(observation):
    return observation(TINY_FAST)


@pytest.fixture(scope="module")
def variables(fast_variables):
    return fast_variables(TINY_FAST)


@pytest.fixture(scope="module")
def ending(variables, obs):
    """Variables with which the first row, and only it, writes its end at once."""
    _, _, prefix = run(variables, obs, KEYS, 0.0)
    last = [int(np.flatnonzero(row)[-1]) for row in prefix.valid]
    ends, goes_on = (prefix.hidden[i, last[i]] for i in range(2))
    goes_on = goes_on / jnp.linalg.norm(goes_on)
    direction = ends - (ends @ goes_on) * goes_on
    table = variables["params"]["PaliGemma"]["llm"]["embedder"]["input_embedding"]
    table = table.at[EOS].set(100 * direction / jnp.linalg.norm(direction))
    changed = jax.tree.map(lambda leaf: leaf, variables)
    changed["params"]["PaliGemma"]["llm"]["embedder"]["input_embedding"] = table
    return changed


def row(obs, i):
    """One row twice, so that the batch size stays."""
    return jax.tree.map(lambda leaf: leaf[jnp.array([i, i])], obs)


def test_greedy_decoding_takes_the_likeliest_token(variables, obs):
    written, first, _ = run(variables, obs, KEYS, 0.0)
    np.testing.assert_array_equal(written.tokens[:, 0], jnp.argmax(first.logits, axis=-1))
    likeliest = jnp.max(jax.nn.log_softmax(first.logits), axis=-1)
    np.testing.assert_allclose(written.log_probs[:, 0], likeliest, atol=1e-5)


def test_a_row_that_ended_pads_and_the_other_writes_on(ending, obs):
    written, _, _ = run(ending, obs, KEYS, 0.0)
    tap = written.taps[str(TAPS[0])]
    assert written.tokens[0].tolist() == [EOS, PAD, PAD, PAD]
    assert not written.log_probs[0, 1:].any() and not tap[:, :, 0].any()
    assert written.tokens[1, 0] != EOS and tap[0, :, 1].any() and written.log_probs[1, 0] != 0


def test_when_all_rows_ended_nothing_more_is_written(ending, obs):
    written, _, _ = run(ending, row(obs, 0), KEYS, 0.0)
    assert written.tokens.tolist() == 2 * [[EOS, PAD, PAD, PAD]]
    assert not written.taps[str(TAPS[0])].any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_the_others(ending, obs, temperature):
    both, _, _ = run(ending, obs, KEYS, temperature)
    alone, _, _ = run(ending, row(obs, 1), KEYS[jnp.array([1, 1])], temperature)
    np.testing.assert_array_equal(alone.tokens[0], both.tokens[1])
    np.testing.assert_allclose(alone.log_probs[0], both.log_probs[1], atol=1e-5)


def test_heat_draws_and_the_key_decides(variables, obs):
    hot = [run(variables, obs, jax.random.split(jax.random.key(s), 2), 3.0)[0] for s in (1, 1, 2)]
    np.testing.assert_array_equal(hot[0].tokens, hot[1].tokens)
    assert (hot[0].tokens != hot[2].tokens).any()
    cold = run(variables, obs, KEYS, 1e-4)[0]
    np.testing.assert_array_equal(cold.tokens, run(variables, obs, KEYS, 0.0)[0].tokens)


def test_padding_is_never_read(variables, obs):
    other = jnp.where(obs.tokenized_prompt_mask, obs.tokenized_prompt, 7)
    changed, first, _ = run(variables, obs.replace(tokenized_prompt=other), KEYS, 0.0)
    _, plain, _ = run(variables, obs, KEYS, 0.0)
    np.testing.assert_array_equal(first.logits, plain.logits)
    assert changed.tokens.shape == (2, TINY_FAST.max_decoding_steps)


def test_the_loss_counts_written_tokens_only(variables, obs):
    loss = jax.jit(lambda c: fast.next_token_loss(Pi0Fast(TINY_FAST), variables, obs, c))
    short = jnp.array([[5, 9, 0, 0], [5, 9, 1, 0]])
    first = run(variables, obs, KEYS, 0.0)[1].logits
    one = loss(jnp.array([[5, 0, 0, 0], [6, 0, 0, 0]]))
    expected = -jax.nn.log_softmax(first)[jnp.arange(2), jnp.array([5, 6])]
    np.testing.assert_allclose(one, expected, atol=1e-4)
    np.testing.assert_array_equal(loss(short)[0], loss(short.at[1].set(8))[0])
    assert not loss(jnp.zeros((2, 4), int)).any()


def test_without_a_gap_a_token_is_decoded_where_the_loss_saw_it(variables, obs):
    def scored(gap):
        model = Pi0Fast(dataclasses.replace(TINY_FAST, decoding_gap=gap))
        written = fast.write(model, variables, prefill(model, variables, obs), KEYS)
        loss = fast.next_token_loss(model, variables, obs, written.tokens)
        return written.tokens, -jnp.mean(written.log_probs, axis=1), loss

    tokens, decoded, trained = jax.jit(scored, static_argnums=0)(0)
    assert (tokens > EOS).all()  # or the mean would be over fewer
    np.testing.assert_allclose(decoded, trained, atol=1e-5)
    _, apart, trained = jax.jit(scored, static_argnums=0)(1)
    assert (jnp.abs(apart - trained) > 1e-3).all()


def test_a_configuration_survives_json():
    config = dataclasses.replace(TINY_FAST, max_decoding_steps=9)
    assert FastConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="action_expert"):
        FastConfig.from_json({"action_expert": {}})

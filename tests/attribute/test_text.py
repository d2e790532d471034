"""Tokens become words, and a word contributes what its absence takes away."""

import jax.numpy as jnp
import numpy as np

from mistjax.attribute import ActionValue, attribute
from mistjax.attribute.text import leave_one_out, word_spans, words_of


class SubWords:
    pieces = ("<pad>", "</s>", "<s>", "<unk>", "pick", "▁up", "▁can", "dle", "s", "▁", "\n")

    def id_to_piece(self, index):
        return self.pieces[index]


def test_sub_word_pieces_are_joined():
    tokens = np.array([2, 4, 5, 6, 7, 8, 10, 0])
    words = words_of(SubWords(), tokens, tokens > 0)
    assert [word.text for word in words] == ["pick", "up", "candles"]
    assert words[2][1:] == (3, 6)


def test_a_lone_space_piece_and_an_unknown_token_separate_words():
    tokens = np.array([6, 9, 7, 3, 8])
    assert [w.text for w in words_of(SubWords(), tokens, np.ones(5, bool))] == ["can", "dle", "s"]


def test_spans_cover_each_rows_own_words(tokenizer, linear_obs):
    rows, spans = word_spans(tokenizer, linear_obs)
    assert [[word.text for word in row] for row in rows] == [
        ["place", "the", "black", "stone"],
        ["move", "left", "slowly"],
    ]
    assert spans.shape == (4, 2, 8)
    np.testing.assert_array_equal(spans.sum(-1), [[1, 1], [1, 1], [1, 1], [1, 0]])


def test_leaving_a_word_out_takes_its_contribution_away(linear, linear_obs, tokenizer, key):
    readout = ActionValue(jnp.array([[1.0, 0.0]]))
    _, spans = word_spans(tokenizer, linear_obs)
    words = linear.table[linear_obs.tokenized_prompt].sum(-1)
    expected = np.einsum("bl,nbl->nb", words, spans)
    got = leave_one_out(linear, linear_obs, key, readout, spans)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    by_gradient = attribute("integrated_gradients", linear, linear_obs, key, readout)
    sums = np.einsum("bl,nbl->nb", by_gradient.text, spans)
    padding = float(linear.table[0].sum())
    np.testing.assert_allclose(sums, expected - padding * spans.sum(-1), atol=1e-4)

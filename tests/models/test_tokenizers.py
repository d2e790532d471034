"""Prompts become openpi's token sequences, and nothing is lost on the way."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from mistjax.models.tokenizers import (
    BOS,
    EOS,
    PAD,
    PI05_TAIL,
    UNKNOWN,
    PromptTokenizer,
    clean_prompt,
    discretize_state,
    state_prompt,
    train_word_tokenizer,
)
from mistjax.models.written_state import StateWriter

SENTENCES = ["place the black stone at row 2 column 3", "move left slowly"]


@pytest.fixture
def words(tmp_path):
    train_word_tokenizer(SENTENCES, ["quickly", "high"], tmp_path / "words.model")
    return PromptTokenizer.from_file(tmp_path / "words.model", max_tokens=12)


@pytest.fixture(scope="module")
def subwords():
    """A sub-word model with PaliGemma's conventions: no dummy prefix, newline is a piece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Task: pick up the cup, State: 0 1 2 3 4 5 6 7 8 9; Action: "] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["\n"],
        pad_id=PAD,
        eos_id=EOS,
        bos_id=BOS,
        unk_id=UNKNOWN,
        minloglevel=2,
    )
    return PromptTokenizer(model.getvalue(), max_tokens=100)


def test_pi0_prompt_is_begin_text_newline_then_padding(words):
    tokens, mask = words.encode_pi0("place the_black stone\n")
    assert tokens.dtype == np.int32 and tokens.shape == mask.shape == (12,)
    pieces = [words.id_to_piece(i) for i in tokens[mask]]
    assert pieces == ["<s>", "▁place", "▁the", "▁black", "▁stone", "▁\n"]
    assert mask.tolist() == [True] * 6 + [False] * 6
    assert (tokens[~mask] == PAD).all()


def test_the_newline_is_encoded_apart_from_the_text(subwords):
    tokens, mask = subwords.encode_pi0("pick up the cup")
    expected = [BOS, *subwords.encode("pick up the cup"), *subwords.encode("\n")]
    assert tokens[mask].tolist() == expected
    assert subwords.id_to_piece(expected[-1]) == "\n"


def test_pi05_prompt_spells_the_state_in_bins(subwords):
    tokens, mask = subwords.encode_pi05("pick_up the cup ", np.array([-1.0, 0.0, 1.0]))
    assert tokens[0] == BOS
    text = subwords.decode(tokens[mask])
    assert text == "Task: pick up the cup, State: 0 128 255;\nAction: "


def test_state_bins_are_256_equal_ones_over_minus_one_to_one():
    centres = -1 + (np.arange(256) + 0.5) / 128
    assert discretize_state(centres).tolist() == list(range(256))
    assert discretize_state(np.array([-1.5, 1.5])).tolist() == [-1, 255]


def test_cleaning_strips_and_turns_underscores_and_newlines_into_spaces():
    assert clean_prompt("  pick_up\nthe cup\n") == "pick up the cup"


def test_a_word_has_one_id_wherever_it_stands(words):
    assert words.encode("stone the stone")[0] == words.encode("the stone")[1]


def test_word_tokenizer_round_trips_its_sentences_and_marks_unknown_words(words):
    for sentence in SENTENCES:
        assert words.decode(words.encode(sentence)) == sentence
    assert words.encode("move zebra left")[1] == UNKNOWN
    assert UNKNOWN not in words.encode("quickly high")


def test_word_tokenizer_keeps_the_special_ids_of_paligemma(words):
    pieces = [words.id_to_piece(i) for i in (PAD, EOS, BOS, UNKNOWN)]
    assert pieces == ["<pad>", "</s>", "<s>", "<unk>"]
    vocabulary = {word for s in SENTENCES for word in s.split()} | {"quickly", "high"}
    assert words.vocab_size == len(vocabulary) + 5


def test_word_tokenizer_is_the_same_file_for_the_same_words(tmp_path):
    for name in ("a", "b"):
        train_word_tokenizer(SENTENCES, ["quickly"], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_pieces_and_ids_are_inverse(words):
    for index in range(words.vocab_size):
        assert words.piece_to_id(words.id_to_piece(index)) == index
    assert words.piece_to_id("zebra") == UNKNOWN


def test_decode_leaves_control_tokens_out(words):
    assert words.decode([BOS, *words.encode("move left"), EOS, PAD]) == "move left"


def test_a_prompt_that_does_not_fit_is_refused_not_cut(words):
    with pytest.raises(ValueError, match="14 tokens, the policy takes 12"):
        words.encode_pi0("stone " * 12)


def test_an_id_outside_of_the_vocabulary_is_refused(words):
    with pytest.raises(ValueError, match="ids 0 to"):
        words.id_to_piece(words.vocab_size)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"nonsense", ": .* not a SentencePiece model"),
        (b"", " is empty"),
        (b"version https://git-lfs.github.com/spec/v1", " is a Git LFS pointer"),
    ],
)
def test_bytes_that_are_no_model_are_refused_by_name(tmp_path, content, said):
    (tmp_path / "words.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"words\.model" + said):
        PromptTokenizer.from_file(tmp_path / "words.model", 8)


def test_a_vocabulary_without_words_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        train_word_tokenizer([], [], tmp_path / "none.model")


def test_a_word_with_a_rare_letter_is_kept(tmp_path):
    train_word_tokenizer(["aaa aab"] * 5000, ["quiz"], tmp_path / "rare.model")
    tokenizer = PromptTokenizer.from_file(tmp_path / "rare.model", 8)
    assert tokenizer.decode(tokenizer.encode("quiz")) == "quiz"


def in_program(tokenizer, prompt, states):
    writer = StateWriter.of(tokenizer, PI05_TAIL)
    prefix = writer.prefixes(tokenizer, [state_prompt(prompt)], PI05_TAIL, states.shape[1])

    @jax.jit
    def write(states):
        ids, mask = (jnp.broadcast_to(part, (len(states), part.shape[1])) for part in prefix)
        return writer.write((ids, mask), states)

    return map(np.asarray, write(states))


@pytest.mark.parametrize("kind", ["subwords", "board_fast"])
def test_ten_thousand_states_are_written_in_a_program_as_on_the_host(kind, subwords):
    tokenizer = subwords
    if kind == "board_fast":
        path = "checkpoints/board_fast/assets/tokenizer.model"
        tokenizer = PromptTokenizer.from_file(path, max_tokens=60)
    rng = np.random.default_rng(0)
    states = rng.uniform(-1.3, 1.3, (10_000, 5)).astype(np.float32)
    edges = np.linspace(-1, 1, 257, dtype=np.float32)
    states[:300] = edges[rng.integers(0, 257, (300, 5))]  # each bin's own border
    tokens, masks = in_program(tokenizer, "pick_up the cup", states)
    host = [tokenizer.encode_pi05("pick_up the cup", state) for state in states]
    np.testing.assert_array_equal(tokens, np.stack([ids for ids, _ in host]))
    np.testing.assert_array_equal(masks, np.stack([mask for _, mask in host]))
    writer = StateWriter.of(tokenizer, PI05_TAIL)
    prefix = writer.prefixes(tokenizer, [state_prompt("pick_up the cup")], PI05_TAIL, 5)
    for found, wanted in zip(jax.jit(writer.erase)((tokens, masks), states), prefix, strict=True):
        np.testing.assert_array_equal(found, np.broadcast_to(wanted, found.shape))


def test_a_prompt_that_may_not_fit_with_its_state_is_refused(subwords):
    with pytest.raises(ValueError, match="tokens with the state, the policy takes 100"):
        in_program(subwords, "a cup " * 30, np.zeros((1, 5), np.float32))


def test_a_tokenizer_that_joins_numbers_with_their_neighbours_is_refused(words):
    joined = PromptTokenizer(_joining(), max_tokens=100)
    with pytest.raises(ValueError, match="joins the number"):
        StateWriter.of(joined, PI05_TAIL)
    assert StateWriter.of(words, PI05_TAIL)


def _joining():
    """A model with a piece for two numbers beside each other."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Task: x, State: 0 7 0; Action: 0 7 0"] * 9),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_by_whitespace=False,
        normalization_rule_name="identity",
        user_defined_symbols=["\n"],
        minloglevel=2,
    )
    return model.getvalue()

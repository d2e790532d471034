"""Action chunks survive their tokens, and tokens that are no chunk are called so."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mistjax.models.fast_language import FastTokenizer, pad_actions, train_prompt_tokenizer
from mistjax.models.fast_tokenizer import _BYTE_OF, RAISED, ActionTokenizer
from mistjax.models.tokenizers import BOS, EOS, UNKNOWN, PromptTokenizer, train_word_tokenizer

HORIZON, WIDTH = 6, 3


def chunks(count, seed=0):
    """Smooth normalised motions."""
    rng = np.random.default_rng(seed)
    start, speed = rng.uniform(-1, 1, (2, count, 1, WIDTH))
    return np.clip(start + speed * np.linspace(0, 1, HORIZON)[None, :, None], -1, 1)


@pytest.fixture(scope="module")
def actions():
    return ActionTokenizer.train(chunks(200), vocab_size=400)


@pytest.fixture(scope="module")
def prompts():
    model = io.BytesIO()
    letters = "abcdefghijklmnopqrstuvwxyzAST0123456789,:;|- "
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(letters), letters]),
        model_writer=model,
        model_type="char",
        vocab_size=len(letters) + 4,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return PromptTokenizer(model.getvalue(), 60)


def padded(sequences, length=40):
    ids = np.zeros((len(sequences), length), np.int32)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    given = np.arange(length) < np.array([[len(s)] for s in sequences])
    return jnp.asarray(ids), jnp.asarray(given)


def quantised(chunk, scale):
    coefficients = np.around(scipy.fft.dct(chunk, axis=-2, norm="ortho") * scale) / scale
    return scipy.fft.idct(coefficients, axis=-2, norm="ortho")


@pytest.mark.parametrize("scale", [10.0, 500.0, 3000.0], ids=["1 byte", "2 bytes", "3 bytes"])
def test_a_chunk_comes_back_rounded_in_frequency(scale):
    tokenizer = ActionTokenizer.train(chunks(50), vocab_size=300, scale=scale)
    batch = chunks(20, seed=1) * 0.9
    decoded, ok = tokenizer.decode(*padded([tokenizer.encode(c) for c in batch], 80))
    assert ok.all()
    np.testing.assert_allclose(decoded, quantised(batch, scale), atol=1e-5)
    np.testing.assert_allclose(decoded, batch, atol=np.sqrt(HORIZON) / scale)


def test_byte_pairs_shorten_what_they_were_trained_on(actions):
    lengths = [len(actions.encode(c)) for c in chunks(50)]
    assert np.mean(lengths) < 0.8 * HORIZON * WIDTH


def test_decoding_agrees_with_the_tokenizers_library(actions):
    rng, rows = np.random.default_rng(0), []
    for chunk in chunks(5, seed=2):
        rows.append(actions.encode(chunk))
    rows += [rng.integers(0, actions.vocab_size, rng.integers(5, 25)).tolist() for _ in range(60)]
    decoded, ok = actions.decode(*padded(rows))
    library = tokenizers.Tokenizer.from_str(actions.serialized)
    for row, chunk, sound in zip(rows, np.asarray(decoded), ok, strict=True):
        text = library.decode(row)
        assert sound == (len(text) == HORIZON * WIDTH and "\ufffd" not in text)
        if sound:
            coefficients = np.array([ord(c) for c in text]).reshape(HORIZON, WIDTH)
            expected = (coefficients + actions.min_token) / actions.scale
            expected = scipy.fft.idct(expected, axis=0, norm="ortho")
            np.testing.assert_allclose(chunk, expected, atol=1e-4)
        else:
            assert not chunk.any()
    assert ok[:5].all() and not ok.all()


def test_ids_that_are_no_chunk_are_called_so_and_spoil_no_other_row(actions):
    good, vocab = actions.encode(chunks(1)[0]), actions._bpe.get_vocab()
    half = vocab["Ã"]  # the first of two bytes
    rows = [good, good[:-1], [*good, good[0]], [*good[:-1], 9999], [*good[:-1], -1], [*good, half]]
    decoded, ok = jax.jit(actions.decode)(*padded([*rows, []]))
    assert ok.tolist() == [True] + 6 * [False]
    np.testing.assert_allclose(decoded[0], quantised(chunks(1)[0], actions.scale), atol=1e-5)
    assert not decoded[1:].any()


def test_a_byte_pair_that_utf8_forbids_is_no_character(actions):
    vocab = actions._bpe.get_vocab()
    stand_in = {byte: char for char, byte in _BYTE_OF.items()}
    ids = {byte: vocab[stand_in[byte]] for byte in (0x41, 0xC1, 0x81, 0xC2)}
    letters = (HORIZON * WIDTH - 1) * [ids[0x41]]
    rows = [
        [*letters, ids[0x41]],
        [*letters, ids[0xC2], ids[0x81]],
        [*letters, ids[0xC1], ids[0x81]],
    ]
    assert actions.decode(*padded(rows))[1].tolist() == [True, True, False]


def test_a_value_that_the_vocabulary_cannot_write_is_refused():
    # Trained without an alphabet, this one knows only what it saw.
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(["abc"], tokenizers.trainers.BpeTrainer(show_progress=False))
    few = ActionTokenizer(bpe.to_str(), HORIZON, WIDTH)
    with pytest.raises(ValueError, match="is the chunk normalised"):
        few.encode(chunks(1)[0])


BOUND = 0.5 * np.sqrt(HORIZON) / 10.0 + RAISED + 1e-4
NUMBERS = st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    first=st.lists(NUMBERS, min_size=WIDTH, max_size=WIDTH),
    rest=st.floats(-10, 10),
    exponent=st.integers(-2, 5),
)
def test_a_chunk_is_refused_or_comes_back(actions, first, rest, exponent):
    chunk = np.full((HORIZON, WIDTH), rest * 10.0**exponent)
    chunk[0] = first
    try:
        ids = actions.encode(chunk)
    except ValueError:
        assert not np.abs(chunk).max() <= 1
        return
    decoded, ok = actions.decode(*padded([ids], 3 * HORIZON * WIDTH))
    assert ok.all()
    np.testing.assert_allclose(decoded[0], chunk, atol=BOUND, rtol=1e-5)


@pytest.mark.parametrize("code", [0xD7FF, 0xD800, 0xDFFF, 0xE000, 0xFFFF, 0x10000, -300])
def test_a_coefficient_without_a_character_that_decodes_is_refused(actions, code):
    chunk = np.zeros((HORIZON, WIDTH))
    chunk[:, 0] = (code + actions.min_token) / actions.scale / np.sqrt(HORIZON)
    if code in (0xD7FF, 0xE000, 0xFFFF):
        assert actions.decode(*padded([actions.encode(chunk)], 60))[1].all()
    else:
        with pytest.raises(ValueError, match="is the chunk normalised"):
            actions.encode(chunk)


def test_a_chunk_of_another_shape_or_without_numbers_is_refused(actions):
    with pytest.raises(ValueError, match=r"chunk of \(5, 3\): expected \(6, 3\)"):
        actions.encode(np.zeros((HORIZON - 1, WIDTH)))
    for bad in (np.nan, np.inf):
        chunk = np.where(np.eye(HORIZON, WIDTH), bad, 0)
        with pytest.raises(ValueError, match="NaN or Inf"):
            actions.encode(chunk)
        with pytest.raises(ValueError, match="finite numbers"):
            ActionTokenizer.train(chunk[None], vocab_size=300)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizon": 0}, "at least one"),
        ({"action_dim": 2.5}, "whole numbers"),
        ({"min_token": -3.0}, "whole numbers"),
        ({"scale": None}, "scale None"),
        ({"scale": 0.0}, "above 0"),
        ({"scale": float("nan")}, "above 0"),
        ({"serialized": "{}"}, "not a tokenizer.json"),
    ],
)
def test_numbers_that_describe_no_chunk_are_refused(actions, tmp_path, fields, message):
    actions.save(tmp_path)
    names = {"horizon": "time_horizon"}
    path = tmp_path / "processor_config.json"
    if "serialized" in fields:
        (tmp_path / "tokenizer.json").write_text(fields["serialized"])
    else:
        numbers = {names.get(name, name): value for name, value in fields.items()}
        path.write_text(json.dumps({**json.loads(path.read_text()), **numbers}))
    with pytest.raises(ValueError, match=f"{message}|not a finite number"):
        ActionTokenizer.load(tmp_path)


def test_a_folder_in_the_hubs_format_loads_and_its_code_is_not_needed(actions, tmp_path):
    actions.save(tmp_path)
    assert ActionTokenizer.load(tmp_path) == actions
    config = json.loads((tmp_path / "processor_config.json").read_text())
    config |= {"time_horizon": None, "action_dim": None, "auto_map": {"AutoProcessor": "x.Y"}}
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="pass horizon and action_dim"):
        ActionTokenizer.load(tmp_path)
    assert ActionTokenizer.load(tmp_path, HORIZON, WIDTH) == actions


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="at least 256"):
        ActionTokenizer.train(chunks(2), vocab_size=100)


@pytest.fixture(scope="module")
def language(prompts, actions):
    return FastTokenizer(prompts, actions, 700)


def test_the_prompt_holds_the_state_in_bins(language, prompts):
    tokens, valid = language.encode_prompt("Place_the stone ", np.array([-1.0, 0.0, 0.999]))
    assert tokens[0] == BOS
    text = prompts.decode(tokens[1 : valid.sum()])
    assert text.endswith(", State: 0 128 255;") and "place the stone" in text


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_no_number_has_no_words(language, prompts, bad):
    for write in (language.encode_prompt, prompts.encode_pi05):
        with pytest.raises(ValueError, match=f"no bins in dimension 1: {bad}"):
            write("place", np.array([0.0, bad]))


def test_a_written_action_reads_back(language):
    batch = chunks(4, seed=3)
    written = [language.encode_actions(c) for c in batch]
    decoded, ok = language.decode_actions(jnp.asarray(pad_actions(written, 40)))
    assert ok.all()
    np.testing.assert_allclose(decoded, quantised(batch, 10.0), atol=1e-5)
    assert all(w[-1] == EOS for w in written)
    highest = language.vocab_size - 1 - 128
    assert max(max(w) for w in written) <= highest


def test_an_action_without_its_head_or_its_end_is_no_action(language):
    whole = language.encode_actions(chunks(1)[0])
    head, bar = len(language._head), len(whole) - 1 - len(language._bar)
    rows = [whole, [5, *whole[1:]], whole[head:], whole[:bar], [*whole[:bar], EOS]]
    _, ok = language.decode_actions(jnp.asarray(pad_actions(rows, 40)))
    assert ok.tolist() == [True, False, False, False, False]


def test_a_vocabulary_without_room_or_words_is_refused(prompts, actions, tmp_path):
    with pytest.raises(ValueError, match="do not fit"):
        FastTokenizer(prompts, actions, actions.vocab_size + 127)
    train_word_tokenizer(["go"], [], tmp_path / "words.model")
    words = PromptTokenizer.from_file(tmp_path / "words.model", 8)
    with pytest.raises(ValueError, match="does not know"):
        FastTokenizer(words, actions, 700)


def test_whatever_the_grammar_allows_ends_as_a_whole_action(language):
    grammar, rng = language.grammar, np.random.default_rng(0)
    places, rows = len(grammar.forced), 20
    place, written = jnp.zeros(rows, int), []
    for _ in range(places):
        allowed = np.asarray(grammar.allowed(place))
        assert allowed.any(axis=1).all()
        token = jnp.array([rng.choice(np.flatnonzero(row)) for row in allowed])
        place = grammar.after(place, token)
        written.append(token)
    assert (place == places - 1).all()
    _, ok = language.decode_actions(jnp.stack(written, axis=1))
    assert ok.all()


def test_the_grammar_allows_every_action_of_whole_characters(language):
    for chunk in chunks(5, seed=7):
        place = jnp.zeros(1, int)
        for token in language.encode_actions(chunk):
            assert grammar_allows(language.grammar, place, token)
            place = language.grammar.after(place, jnp.array([token]))
    start = jnp.zeros(1, int)
    assert not grammar_allows(language.grammar, start, EOS)


def grammar_allows(grammar, place, token):
    return bool(grammar.allowed(place)[0, token])


def test_words_and_the_numbers_of_a_state_are_one_piece_each(actions, tmp_path):
    train_prompt_tokenizer(["place", "low", ",", "1"], tmp_path / "pieces.model")
    prompts = PromptTokenizer.from_file(tmp_path / "pieces.model", 16)
    language = FastTokenizer(prompts, actions, 700)
    state = np.array([-2.0, -1.0, 0.0, 2.0])
    tokens, valid = language.encode_prompt("place_low , low", state)
    pieces = [prompts.id_to_piece(i) for i in tokens[valid]]
    words = ["▁Task:", "▁place", "▁low", "▁,", "▁low", ",", "▁State:"]
    assert pieces == ["<s>", *words, "▁-1", "▁0", "▁128", "▁255", ";", "\n"]
    assert language.overhead == 3
    assert prompts.decode(prompts.encode("pace")).endswith("pace")
    assert UNKNOWN in prompts.encode("quick")


def test_an_action_longer_than_its_room_is_refused():
    with pytest.raises(ValueError, match="takes 3 tokens"):
        pad_actions([[1], [1, 2, 3]], 2)

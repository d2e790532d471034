"""Recorded outputs are met, and a recording that is not met, or does not fit, says so."""

import json
from pathlib import Path

import numpy as np
import pytest

from mistjax.conformance import Row, compare, record, run_conformance
from mistjax.models.checkpoints import save_checkpoint
from mistjax.models.config import TINY, TINY_FAST
from mistjax.models.normalize import NormStats
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens" / "openpi"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, pi_variables):
    path = tmp_path_factory.mktemp("recorded") / "tiny.npz"
    record(TINY, pi_variables(TINY), path)
    return path


def failed(rows):
    """Names of the quantities beyond their tolerance."""
    return {row.quantity for row in rows if not row.passed}


def changed(recorded, path, **arrays):
    """A copy of a recording with some arrays replaced (None removes)."""
    with np.load(recorded) as stored:
        merged = {**stored, **arrays}
    np.savez(path, **{name: value for name, value in merged.items() if value is not None})
    path.with_suffix(".json").write_text(recorded.with_suffix(".json").read_text())
    return path


@pytest.mark.parametrize("model", ["pi0", "pi05", "pi0_fast"])
def test_every_output_of_the_original_implementation_is_met(model):
    rows = run_conformance(GOLDENS / f"{model}.npz", atol=2e-5)
    assert not failed(rows)
    met = {row.quantity for row in rows}
    with np.load(GOLDENS / f"{model}.npz") as stored:
        outputs = {n for n in stored if n.split("/")[0] in ("prefix", "inputs", "joint", "prefill")}
    assert outputs <= met
    last = {"sample/tokens_greedy", "decode/logits"} if model == "pi0_fast" else {"sample/actions"}
    assert last | {"loss/value"} <= met


def test_a_recording_of_our_own_is_met_exactly(recorded, capsys):
    assert compare(recorded, atol=0) == 0
    assert "0 of 22 quantities beyond their tolerance" in capsys.readouterr().out


def test_a_recording_of_pi0_fast_is_met_exactly(tmp_path, fast_variables):
    record(TINY_FAST, fast_variables(TINY_FAST), tmp_path / "fast.npz")
    assert not failed(run_conformance(tmp_path / "fast.npz", atol=0))


def test_a_slightly_different_network_is_noticed(recorded, tmp_path, capsys):
    name = "params/PaliGemma/llm/layers/mlp/linear"
    with np.load(recorded) as stored:
        other = stored[name] * 1.01
    path = changed(recorded, tmp_path / "other.npz", **{name: other})
    off = failed(run_conformance(path))
    assert {"prefill/k", "joint/v_t", "sample/actions", "loss/value"} <= off
    assert not {"prefix/tokens", "suffix/tokens"} & off
    assert compare(path) == 1
    assert "joint/v_t  beyond tolerance" in capsys.readouterr().out


def test_rows_that_no_token_reads_are_left_out(recorded, tmp_path):
    with np.load(recorded) as stored:
        hidden, valid = stored["joint/prefix_out"], stored["prefix/mask"]
    assert not valid.all()
    unread = np.where(valid[..., None], hidden, 9.0)
    rows = run_conformance(
        changed(recorded, tmp_path / "unread.npz", **{"joint/prefix_out": unread})
    )
    assert not failed(rows)


def test_nan_is_never_within_a_tolerance():
    rows = [Row("x", "a", float("nan"), 1.0), Row("x", "b", 0.5, 1.0)]
    assert failed(rows) == {"a"}


def test_an_output_that_no_model_has_is_refused_not_skipped(recorded, tmp_path):
    path = changed(recorded, tmp_path / "more.npz", **{"joint/entropy": np.zeros(2)})
    with pytest.raises(ValueError, match="joint/entropy"):
        run_conformance(path)


def test_parameters_that_do_not_fit_are_named(recorded, tmp_path):
    path = changed(
        recorded, tmp_path / "less.npz", **{"params/state_proj/bias": None, "params/extra": 1.0}
    )
    with pytest.raises(ValueError, match=r"model has \['state_proj/bias .*have \['extra"):
        run_conformance(path)


def test_an_unknown_model_is_refused(recorded, tmp_path):
    sizes = json.loads(recorded.with_suffix(".json").read_text()) | {"name": "pi9"}
    other = tmp_path / "sizes.json"
    other.write_text(json.dumps(sizes))
    with pytest.raises(ValueError, match="'pi9'"):
        run_conformance(recorded, other)


def test_a_recording_needs_its_ending(tmp_path):
    with pytest.raises(ValueError, match=r"\.npz"):
        record(TINY, {}, tmp_path / "file.bin")


def test_a_checkpoint_is_recorded_and_met(tmp_path, pi_variables):
    train_word_tokenizer(["go"], [], tmp_path / "words.model")
    stats = NormStats(mean=np.zeros(4, np.float32), std=np.ones(4, np.float32))
    save_checkpoint(
        tmp_path / "policy",
        pi_variables(TINY, 1)["params"],
        config=TINY.to_json(),
        norm_stats={"state": stats, "actions": stats},
        asset_id="board",
        tokenizer=PromptTokenizer.from_file(tmp_path / "words.model", TINY.max_token_len),
    )
    assert compare(tmp_path / "mine.npz", record_from=tmp_path / "policy") == 0
    assert (tmp_path / "mine.json").exists()

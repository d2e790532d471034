"""Words that a policy cannot read."""

import numpy as np
import pytest

from mistjax.attribute.masked import MaskedWords, own_words
from mistjax.attribute.text import Word
from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.policies.load import load_policy
from mistjax.rollouts.run import load_run


def words(text):
    return [Word(word, i, i + 1) for i, word in enumerate(text.split())]


def test_the_instruction_is_found_among_what_is_written_around_it():
    read = words("Task: row 3 please, State: 3 4 3;")
    assert [word.start for word in own_words(read, "Row 3 please")] == [1, 2, 3]
    with pytest.raises(ValueError, match="is not found"):
        own_words(read, "column 3")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["board_pi0", "board_fast", "board_openvla"])
def test_only_the_words_of_the_instruction_are_masked(name):
    if name == "board_openvla":
        pytest.importorskip("torch")
    policy = load_policy(SHIPPED / name)
    picture = np.zeros((64, 64, 3), np.uint8)
    cameras = dict.fromkeys(policy.spec.cameras.values(), picture)
    raw = cameras | {policy.preset.state_key: np.zeros(policy.preset.state_dim, np.float32)}
    shown = [raw | {"prompt": f"move the black stone to row 2 column {i}"} for i in (1, 4)]
    masked = MaskedWords.parse(policy, "black, Col*")
    before, after = policy.prepare(shown), masked.prepare(shown)
    left = np.asarray(before.tokenized_prompt_mask) & ~np.asarray(after.tokenized_prompt_mask)
    pieces = [
        [policy.tokenizer.id_to_piece(int(i)).strip("▁") for i in tokens[taken]]
        for tokens, taken in zip(np.asarray(before.tokenized_prompt), left, strict=True)
    ]
    assert ["".join(row) for row in pieces] == ["blackcolumn", "blackcolumn"]
    assert masked.spec.fingerprint != policy.spec.fingerprint


@pytest.mark.slow
def test_a_policy_that_cannot_read_its_destination_fails_more_often(tmp_path, capsys):
    command = ["eval", str(SHIPPED / "board_pi0"), "--out", str(tmp_path), "--episodes", "12"]
    assert main([*command, "--mask-words", "row,column,1,2,3,4,5", "the"]) == 0
    names = ("bare", "without_row_column_1_2_3_4_5", "without_the")
    runs = {name: load_run(tmp_path / name) for name in names}
    rates = [sum(row["success"] for row in run.rows) for run in runs.values()]
    assert rates[1] < rates[0] and rates[1] < rates[2]
    assert "without_the" in (tmp_path / "report.html").read_text()
    assert "without_the" in capsys.readouterr().out

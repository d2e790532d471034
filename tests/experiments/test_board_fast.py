"""The board's pi0-FAST: what it is taught, where it starts, and the one that ships."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train import board_fast_model as board_fast
from experiments.train.board_data import Shards
from experiments.train.board_fast_model import (
    FastData,
    fast_config,
    fast_loss,
    initial_params,
    renumbered,
    shared_numbers,
)
from experiments.train.board_model import init_layout_head
from mistjax.envs.board import demos
from mistjax.models.normalize import Quantile
from mistjax.models.tokenizers import EOS, discretize_state
from mistjax.policies import BOARD, BOARD_FAST, FastPolicy, PiPolicy
from mistjax.policies.load import load_policy

SHIPPED = Path(__file__).parents[2] / "checkpoints"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The demonstrations of two episodes."""
    folder = tmp_path_factory.mktemp("demos")
    demos._shard((0, 3, 2, folder))
    return folder


@pytest.fixture(scope="module")
def data(folder):
    with pytest.MonkeyPatch.context() as patch:  # few demonstrations make few byte pairs
        patch.setattr(board_fast, "WRITTEN_LEN", 40)
        return FastData.load([folder])


def test_what_is_written_reads_back_as_the_experts_actions(data):
    written, expert = data.data.arrays["written"], data.expert
    decoded, ok = data.tokenizer.decode_actions(jnp.asarray(written))
    assert ok.all() and (written == EOS).sum(axis=1).tolist() == [1] * len(written)
    actions = Quantile(data.data.norm_stats["actions"]).unnormalize(np.asarray(decoded))
    assert 20 * np.abs(actions - expert)[..., :3].mean() < 1.5  # mm a step
    np.testing.assert_array_equal(np.sign(actions[..., 3]), expert[..., 3])
    assert data.describe().startswith(f"{len(written)} chunks, 100% decodable")


def test_a_prompt_holds_instruction_and_state(data):
    prompt = data.data.arrays["prompt"][0]
    text = data.tokenizer.prompts.decode(prompt[prompt != 0])
    assert text.startswith("Task: ") and "row" in text and text.rstrip("\n").endswith(";")
    assert len(text.split("State: ")[1].split()) == 5


def test_a_number_says_which_dimension_of_the_state_it_is_of(folder):
    state = Shards.read([folder]).columns["state"]
    stats = shared_numbers(state)
    numbers = np.array(list(map(discretize_state, Quantile(stats).normalize(state))))
    first = np.array([0, 92, 172, 236, 250])
    assert (numbers >= first).all() and (numbers[:, :-1] < first[1:]).all()
    assert numbers.max() <= 255
    rounded = Quantile(stats).unnormalize((numbers + 0.5) / 128 - 1)
    assert np.abs(rounded - state)[:, :3].max() < 0.003  # m


def test_what_is_trained_on_keeps_its_tokens_and_units(folder):
    start = load_policy(SHIPPED / "board_fast")
    kept, changed = (FastData.load([folder], start, renumber=r) for r in (False, True))
    assert kept.tokenizer is start.tokenizer and kept.data.norm_stats is start.norm_stats
    stats = changed.data.norm_stats
    assert stats["actions"] is start.norm_stats["actions"]
    np.testing.assert_array_equal(kept.data.arrays["written"], changed.data.arrays["written"])
    assert (kept.data.arrays["prompt"] != changed.data.arrays["prompt"]).any()


def test_renumbering_changes_the_numbers_that_are_no_words():
    start = load_policy(SHIPPED / "board_fast")
    prompts, old = start.tokenizer.prompts, start.variables["params"]
    new = renumbered(old, prompts)
    before, after = (p["PaliGemma"]["llm"]["embedder"]["input_embedding"] for p in (old, new))
    changed = {prompts.piece_to_id(f"▁{number}") for number in (0, *range(6, 256))}
    assert set(np.flatnonzero((before != after).any(axis=1))) == changed
    near, at, far = (after[prompts.piece_to_id(f"▁{n}")] for n in (101, 100, 140))
    assert at @ near > 0.9 * at @ at and at @ far < 0.6 * at @ at


def test_a_folder_without_demonstrations_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no demonstrations"):
        FastData.load([tmp_path])


@pytest.mark.slow
def test_it_starts_from_the_pi0_where_names_and_shapes_agree(data):
    start = PiPolicy.load(SHIPPED / "board_pi0", BOARD)
    prompts, config = data.tokenizer.prompts, fast_config(data.tokenizer.vocab_size)
    ours, theirs = initial_params(config, prompts, start, 0), start.variables["params"]
    jax.tree.map(
        np.testing.assert_array_equal, ours["PaliGemma"]["img"], theirs["PaliGemma"]["img"]
    )
    mlp = (tree["PaliGemma"]["llm"]["layers"]["mlp"]["linear"] for tree in (ours, theirs))
    np.testing.assert_array_equal(*mlp)
    mine, other = (t["PaliGemma"]["llm"]["embedder"]["input_embedding"] for t in (ours, theirs))
    for word in ("▁black", "▁row", "▁quickly"):
        np.testing.assert_array_equal(
            mine[prompts.piece_to_id(word)], other[start.tokenizer.piece_to_id(word)]
        )
    assert mine.shape == (data.tokenizer.vocab_size, 96)
    assert np.std(mine[prompts.piece_to_id("▁200")]) > 0.05


@pytest.mark.slow
def test_the_loss_trains_everything_but_a_vision_tower_that_was_given(data):
    config = fast_config(data.tokenizer.vocab_size)
    start = PiPolicy.load(SHIPPED / "board_pi0", BOARD)
    params = {
        "model": initial_params(config, data.tokenizer.prompts, start, 0),
        "layout_head": init_layout_head(config, size=9),
    }
    batch = data.batch(np.random.default_rng(0), 4)
    loss = functools.partial(fast_loss, config=config, layout_weight=1.0, train_vision=False)
    (total, parts), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params, batch, jax.random.key(0)
    )
    assert np.isfinite(total) and set(parts) == {"token", "stone_mm", "cell_mm", "gripper_mm"}
    tower = grads["model"]["PaliGemma"].pop("img")
    assert not any(leaf.any() for leaf in jax.tree.leaves(tower))
    assert all(leaf.any() for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_the_shipped_policy_writes_actions_that_move_the_robot():
    import gymnasium as gym

    import mistjax.envs  # noqa: F401 (registers the environments)

    policy = FastPolicy.load(SHIPPED / "board_fast", BOARD_FAST)
    env = gym.make("mistjax/Board-v0")
    raw = [env.reset(seed=seed)[0] for seed in range(4_000_000, 4_000_004)]
    sample = policy.sample(policy.prepare(raw), jax.random.key(0))
    assert sample.aux["decode_ok"].all()
    actions = policy.finish(sample, raw)
    assert actions.shape == (4, 8, 4) and (np.abs(actions[..., :3]).max(axis=(1, 2)) > 0.2).all()

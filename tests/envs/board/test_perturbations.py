"""Every perturbation is the identity at 0, does something at 1, and never moves the goal."""

import numpy as np
import pytest

from mistjax.envs.board.episode import Episode, draw_episode, draw_start
from mistjax.envs.board.instructions import INSTRUCTION_WORDS, MASK_WORD
from mistjax.envs.board.perturbations import PERTURBATIONS, perturb
from mistjax.envs.board.scene import BoardScene


def episode(seed: int) -> Episode:
    return draw_episode(np.random.default_rng(seed), None, BoardScene())


def start(of: Episode):
    return draw_start(of, np.random.default_rng(0))


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("seed", range(4))
class TestEvery:
    def test_strength_zero_is_the_identity(self, name, seed):
        before = episode(seed)
        assert perturb(before, {name: 0.0}, np.random.default_rng(seed)) == before

    def test_strength_one_changes_the_episode_but_never_the_task(self, name, seed):
        before = episode(seed)
        after = perturb(before, {name: 1.0}, np.random.default_rng(seed))
        assert after != before
        assert after.task == before.task

    def test_it_changes_only_its_own_kind(self, name, seed):
        before = episode(seed)
        after = perturb(before, {name: 1.0}, np.random.default_rng(seed))
        changed = {
            f for f in ("scene", "layout", "prompt") if getattr(before, f) != getattr(after, f)
        }
        kinds = {"visual": "scene", "layout": "layout", "language": "prompt"}
        assert changed == {kinds[PERTURBATIONS[name].kind]}

    def test_the_same_stream_gives_the_same_change(self, name, seed):
        twice = [perturb(episode(seed), {name: 0.7}, np.random.default_rng(3)) for _ in range(2)]
        assert twice[0] == twice[1]

    def test_stones_stay_apart_and_off_the_target(self, name, seed):
        after = perturb(episode(seed), {name: 1.0}, np.random.default_rng(seed))
        xy = start(after).positions[:, :2]
        gaps = np.linalg.norm(xy[:, None] - xy, axis=2)[~np.eye(len(xy), dtype=bool)]
        assert gaps.min() > 0.026


@pytest.mark.parametrize("name", [n for n, p in PERTURBATIONS.items() if p.kind == "visual"])
def test_a_visual_perturbation_changes_the_picture_and_nothing_else(board, name):
    plain, plain_info = board.reset(seed=3)
    seen, info = board.reset(seed=3, options={"perturbation": {name: 1.0}})
    assert np.abs(plain["observation/image"].astype(int) - seen["observation/image"]).mean() > 0.5
    assert np.array_equal(plain["observation/state"], seen["observation/state"])
    assert np.array_equal(plain_info["world"].stones, info["world"].stones)
    assert plain["prompt"] == seen["prompt"]


def test_more_strength_masks_more_words():
    rng = np.random.default_rng(0)
    for strength, masked in ((0.3, 1), (0.6, 2), (1.0, 3)):
        prompt = perturb(episode(1), {"masked_words": strength}, rng).prompt
        assert prompt.split().count(MASK_WORD) == masked


def test_swapped_words_are_known_words_that_ask_for_something_else():
    for seed in range(10):
        before = episode(seed)
        after = perturb(before, {"swapped_words": 0.5}, np.random.default_rng(seed)).prompt.split()
        assert set(after) <= set(INSTRUCTION_WORDS)
        assert sum(a != b for a, b in zip(after, before.prompt.split(), strict=True)) == 2


def test_perturbations_combine():
    both = perturb(episode(0), {"brightness": 1.0, "colour_balance": 1.0}, np.random.default_rng(0))
    assert len(set(both.scene.gain)) == 3
    assert abs(np.log(both.scene.gain).sum()) > 1


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_zero_to_one_is_refused(strength):
    with pytest.raises(ValueError, match="expected 0 to 1"):
        perturb(episode(0), {"brightness": strength}, np.random.default_rng(0))

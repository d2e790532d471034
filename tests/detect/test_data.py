import numpy as np
import pytest

from mistjax.detect import Episodes, split_seeds, split_tasks


def test_padding_is_masked_and_earliest_stop_is_the_tasks_shortest():
    e = Episodes.from_sequences(
        [np.ones((3, 2)), np.ones((5, 2)), np.ones((4, 2))], [1, 0, 1], [0, 0, 1]
    )
    np.testing.assert_array_equal(e.lengths, [3, 5, 4])
    np.testing.assert_array_equal(e.earliest_stop, [3, 3, 4])
    np.testing.assert_array_equal(e.take([1, 2]).earliest_stop, [3, 4])
    assert e.frames().shape == (12, 2) and (e.frames() == 1).all()


@pytest.mark.parametrize(
    ("features", "success"),
    [([np.ones((3, 2))], [1, 0]), ([np.ones((3, 2)), np.ones((3, 4))], [1, 0]), ([], [])],
)
def test_inconsistent_episodes_are_refused(features, success):
    with pytest.raises(ValueError, match="got"):
        Episodes.from_sequences(features, success)


def test_unseen_tasks_never_occur_in_training():
    task = np.repeat(np.arange(10), 20)
    train, seen, unseen = split_tasks(task, seed=3)
    assert not set(task[unseen]) & set(task[np.concatenate([train, seen])])
    assert sorted(np.concatenate([train, seen, unseen])) == list(range(200))


def test_libero_10_holds_out_the_tasks_that_safe_reports():
    task = np.repeat(np.arange(10), 5)
    held = [set(task[split_tasks(task, seed).val_unseen]) for seed in range(3)]
    assert held == [{3, 0, 5}, {7, 8, 5}, {6, 9, 8}]


def test_all_episodes_of_a_seed_stay_together(episodes):
    parts = split_seeds(episodes.seed, 0)
    groups = [set(episodes.seed[p]) for p in parts]
    assert not groups[0] & groups[1] and not groups[1] & groups[2]
    assert sum(len(p) for p in parts) == len(episodes)
    with pytest.raises(ValueError, match="sum to 1"):
        split_seeds(episodes.seed, 0, fractions=(0.5, 0.2))

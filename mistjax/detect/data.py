"""Episodes as one padded pytree, and the splits that detectors are trained and judged on.

Tasks seen in training are judged apart from unseen ones: `split_tasks`
holds whole tasks out ("unseen") and then divides each remaining task into train and val_seen.
`split_seeds` holds out seeds instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct as struct
import jax
import numpy as np
from jaxtyping import Float, Int

from mistjax.detect.detector import Leaf


@struct.dataclass
class Episodes:
    """n episodes padded with zeros to the longest, t steps.

    Attributes:
        features: [n, t, d] what the detector reads at each policy step.
        mask: [n, t] True on valid steps.
        success: [n] True for success. Failure is the positive class of every metric.
        task_id: [n] integer task.
        seed: [n] integer environment seed, -1 where unknown.
        earliest_stop: [n] length of the shortest episode of the same task, over everything
            collected.
    """

    features: Leaf
    mask: Leaf
    success: Leaf
    task_id: Leaf
    seed: Leaf
    earliest_stop: Leaf

    @classmethod
    def from_sequences(
        cls,
        features: Sequence[Any],
        success: Sequence[Any] | np.ndarray,
        task_id: Sequence[Any] | np.ndarray | None = None,
        seed: Sequence[Any] | np.ndarray | None = None,
    ) -> Episodes:
        """Pad a list of [t_i, d] arrays.

        Raises:
            ValueError: lists of different lengths, an empty episode, or differing feature
                dimensions.
        """
        n = len(features)
        task = np.zeros(n, int) if task_id is None else np.asarray(task_id, int)
        seeds = np.full(n, -1) if seed is None else np.asarray(seed, int)
        if n == 0 or not len(success) == len(task) == len(seeds) == n:
            raise ValueError(
                f"got {n} feature arrays, {len(success)} outcomes, {len(task)} tasks and "
                f"{len(seeds)} seeds; "
                "give one of each per episode, and at least one episode."
            )
        shapes = [np.shape(f) for f in features]
        if any(len(s) != 2 or s[0] == 0 or s[1] != shapes[0][1] for s in shapes):
            raise ValueError(
                f"episode features must be [steps > 0, {shapes[0][-1]}]; got shapes "
                f"{sorted(set(shapes))[:5]}."
            )
        lengths = np.array([s[0] for s in shapes])
        padded = np.zeros((n, lengths.max(), shapes[0][1]), np.float32)
        for row, f in zip(padded, features, strict=True):
            row[: len(f)] = f
        stop = np.array([lengths[task == k].min() for k in task])
        mask = np.arange(lengths.max()) < lengths[:, None]
        return cls(padded, mask, np.asarray(success, bool), task, seeds, stop)

    def __len__(self) -> int:
        return self.success.shape[0]

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Valid steps per episode."""
        return np.asarray(self.mask).sum(1)

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self.features.shape[-1]

    def take(self, index: Any) -> Episodes:
        """The episodes at `index` (integers or a boolean [n] array); padding and earliest_stop
        stay.
        """
        return jax.tree.map(lambda x: x[index], self)

    def frames(self) -> Float[np.ndarray, "m d"]:
        """All valid steps of all episodes, one after the other."""
        return np.asarray(self.features)[np.asarray(self.mask)]


class Split(NamedTuple):
    """Episode indices of the three parts."""

    train: Int[np.ndarray, " a"]
    val_seen: Int[np.ndarray, " b"]
    val_unseen: Int[np.ndarray, " c"]


def _mt19937_permutation(generator: np.random.MT19937, n: int) -> np.ndarray:
    """Forward Fisher-Yates with one 32-bit draw per swap: the permutation that PyTorch's CPU
    generator gives.
    """
    order = np.arange(n)
    for i in range(n - 1):
        j = i + int(generator.random_raw()) % (n - i)
        order[i], order[j] = order[j], order[i]
    return order


def split_tasks(
    task_id: Int[np.ndarray, " n"], seed: int, *, unseen: float = 0.3, train: float = 0.6
) -> Split:
    """Hold out whole tasks, then divide every other task.

    Reproduces SAFE's released splits from the seed alone (default ratios: its OpenVLA, pi0 and
    pi0-FAST runs).

    Args:
        task_id: task of each episode, in the order the episodes were recorded.
        seed: split seed.
        unseen: share of tasks held out, rounded.
        train: share of each seen task's episodes used for training, rounded down.
    """
    task_id = np.asarray(task_id)
    tasks = np.unique(task_id)
    np.random.RandomState(seed).shuffle(tasks)
    n_unseen = round(unseen * len(tasks))
    seen, held = tasks[: len(tasks) - n_unseen], tasks[len(tasks) - n_unseen :]
    generator = np.random.MT19937()
    generator._legacy_seeding(seed)  # PyTorch seeds the same generator in this way
    parts: tuple[list, list] = ([], [])
    for task in seen:
        members = np.flatnonzero(task_id == task)
        members = members[_mt19937_permutation(generator, len(members))]
        cut = int(train * len(members))
        parts[0].append(members[:cut])
        parts[1].append(members[cut:])
    empty = [np.array([], int)]
    return Split(
        np.concatenate(parts[0] or empty),
        np.concatenate(parts[1] or empty),
        np.flatnonzero(np.isin(task_id, held)),
    )


def split_seeds(
    episode_seed: Int[np.ndarray, " n"], seed: int, *, fractions: Sequence[float] = (0.6, 0.2, 0.2)
) -> list[Int[np.ndarray, " k"]]:
    """Divide episodes so that all episodes of one environment seed fall in the same part.

    Args:
        episode_seed: environment seed of each episode.
        seed: split seed.
        fractions: share of the distinct seeds in each part; must sum to 1.

    Raises:
        ValueError: fractions that do not sum to 1.
    """
    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0:
        raise ValueError(f"fractions must be >= 0 and sum to 1; got {tuple(fractions)}.")
    episode_seed = np.asarray(episode_seed)
    distinct = np.random.default_rng(seed).permutation(np.unique(episode_seed))
    cuts = np.round(np.cumsum(fractions)[:-1] * len(distinct)).astype(int)
    return [np.flatnonzero(np.isin(episode_seed, part)) for part in np.split(distinct, cuts)]

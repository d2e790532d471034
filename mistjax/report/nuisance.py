"""`mistjax nmr`: how much of what a policy relies on has nothing to do with its task.

NMR@k is the share of the attribution on the strongest k% of the patches that lies on nuisance
pixels: on the board, the sky, the table and the stones that the task does not ask for, by the
simulator's own segmentation of the replayed episode. Beside it stands chance, what a map that knows
nothing would have: the share of nuisance in the pictures.

Source: Zhang et al., arXiv 2605.00321.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mistjax.attribute.interventional import nuisance_mass_ratio, nuisance_regions
from mistjax.attribute.questions import Question
from mistjax.envs.board.drawing import nuisance_ids, solid_ids
from mistjax.envs.board.env import IMAGE_KEYS
from mistjax.envs.faults.battery import input_name
from mistjax.policies.protocol import Policy
from mistjax.report.methods import Moment, ask
from mistjax.rollouts.replay import replay
from mistjax.rollouts.run import Run
from mistjax.stats import bootstrap, pearson


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode: means over its moments.

    Attributes:
        seed: of the episode.
        success: how it ended.
        ratio: NMR@k.
        chance: of a map that knows nothing.
    """

    seed: int
    success: bool
    ratio: float
    chance: float


def ratios(
    policy: Policy,
    run: Run,
    *,
    method: str = "iss",
    question: Question = Question("action"),
    moments: int = 3,
    top: float = 0.1,
    episodes: int | None = None,
    **options: Any,
) -> list[Episode]:
    """NMR@k of the first episodes of a run.

    Args:
        policy: the one that was recorded; no detector is involved.
        run: on the board.
        method: key of `ATTRIBUTIONS`.
        question: what is explained.
        moments: per episode, evenly spread over its inferences.
        top: share of the patches that counts, the strongest ones.
        episodes: number of episodes; all by default.
        **options: of the method.

    Raises:
        ValueError: see `replay`, `Question.check` and `attribute`; pictures of another size than
            the model's; or a run of another policy.
    """
    question.check(policy, [method], monitored=False)
    if run.config["policy_fingerprint"] != policy.spec.fingerprint:
        raise ValueError(f"{run.path} was recorded with another policy than {policy.spec.name}.")
    found, nuisance = [], []
    for row in run.finished[:episodes]:
        for moment, shares in _moments(policy, run, row["seed"], moments):
            found.append(moment)
            nuisance.append(shares)
    if not found:
        raise ValueError(f"{run.path} has no finished episode.")
    answers = ask(policy, found, method, question, None, **options).each
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for answer, shares in zip(answers, nuisance, strict=True):
        value = float(nuisance_mass_ratio(answer.attribution, shares, top)[0])
        chance = float(np.mean([np.asarray(share).mean() for share in shares.values()]))
        by_seed.setdefault(answer.moment.trace.seed, []).append((value, chance))
    outcome = {row["seed"]: bool(row["success"]) for row in run.finished}
    return [
        Episode(seed, outcome[seed], *map(float, np.nanmean(np.array(pairs), axis=0)))
        for seed, pairs in by_seed.items()
    ]


def _moments(
    policy: Policy, run: Run, seed: int, count: int
) -> Iterator[tuple[Moment, Mapping[str, Any]]]:
    trace = run.trace(seed)
    chosen = np.linspace(0, len(trace.inference_step) - 1, count + 2)[1:-1].round().astype(int)
    names = {key: name for name, key in policy.spec.cameras.items()}
    for inference, raw, env in replay(run, seed):
        if inference not in chosen:
            continue
        board: Any = env.unwrapped
        relevant = jnp.array([i for i in solid_ids().values() if i not in nuisance_ids(board.goal)])
        shares = {}
        for key, picture in zip(IMAGE_KEYS, board.segmentation(), strict=True):
            camera = names[key]
            size = policy.prepare([raw]).images[camera].shape[1]
            if picture.shape[0] != size:
                raise ValueError(
                    f"{run.path} has pictures of {picture.shape[0]} pixels and the model reads "
                    f"{size}: segmentations are not resized."
                )
            shares[input_name(key)] = nuisance_regions(
                jnp.asarray(picture)[None], relevant, policy.patch
            )
        yield Moment(trace, inference, raw, None), shares


def correlation(runs: Sequence[Sequence[Episode]]) -> tuple[float, float, float]:
    """Pearson's r between the NMR and the success rate of runs, with its 95% interval over runs."""
    points = np.array(
        [(np.mean([e.ratio for e in r]), np.mean([e.success for e in r])) for r in runs]
    )

    def r(index: np.ndarray) -> float:
        return pearson(*points[index].T)

    low, high = bootstrap(r, len(points))
    return r(np.arange(len(points))), low, high


def summary(found: Sequence[Episode]) -> dict[str, str]:
    """A run in one row: the mean with its 95% interval over episodes, by outcome."""

    def cell(some: Sequence[Episode]) -> str:
        if not some:
            return "–"
        values = np.array([e.ratio for e in some])
        if len(values) < 2:
            return f"{values[0]:.2f} (n = 1)"
        low, high = bootstrap(lambda index: float(values[index].mean()), len(values))
        return f"{values.mean():.2f} [{low:.2f}, {high:.2f}] (n = {len(values)})"

    return {
        "all": cell(found),
        "successes": cell([e for e in found if e.success]),
        "failures": cell([e for e in found if not e.success]),
        "chance": f"{np.mean([e.chance for e in found]):.2f}",
    }

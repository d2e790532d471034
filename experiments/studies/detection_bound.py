"""What bounds a failure detector on the board: how often the same moment ends well and badly.

    python -m experiments.studies.detection_bound

Replays the first test episodes of `detection_runs` up to their earliest stop (the shortest episode
with the same speed word), saves the whole state of the simulation there, and runs the policy on
from it with fresh noise, several times. A detector that knew everything (state, scene, policy)
would score a moment with its chance of failure, so the ROC-AUC of that chance against the recorded
outcome bounds every detector that looks no further than the earliest stop.

The chance is known from few continuations only, which blurs the ranking: the table gives the AUC of
the mean of k continuations for growing k, and the AUC of a Beta distribution fitted to the counts,
which has no such blur.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from jaxtyping import Bool, Float, Int
from scipy import optimize, special

from experiments.build.board_mist import speed_word
from experiments.build.detection_runs import CONDITIONS
from experiments.record import write_results
from mistjax.compilation import enable_cache
from mistjax.demo import SHIPPED
from mistjax.detect.metrics import roc_auc
from mistjax.envs.board.env import BoardEnv, Snapshot
from mistjax.policies.load import load_policy
from mistjax.rollouts.run import load_run
from mistjax.rollouts.runner import run_episodes
from mistjax.rollouts.trace import Trace
from mistjax.stats import bootstrap


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is run.

    Attributes:
        policy: the bare policy.
        runs: folder of `detection_runs`.
        episodes: test episodes of each condition, the first ones.
        branches: continuations of each.
        first_seed: of the continuations' noise.
        out: results.
    """

    policy: Path = SHIPPED / "board_pi0"
    runs: Path = Path("runs/detection")
    episodes: int = 150
    branches: int = 8
    first_seed: int = 8_000_000
    out: Path = Path("experiments/results/detection_bound.json")


class BlindBoard(BoardEnv):
    """The board without pictures, to replay actions fast."""

    def pictures(self) -> np.ndarray:
        return np.zeros((2, self.image_size, self.image_size, 3), np.uint8)


class Continuations(gym.Env):
    """Episodes that begin at saved moments: seed s goes on from moment (s - first) mod n."""

    metadata = BoardEnv.metadata

    def __init__(self, moments: Sequence[Snapshot], first_seed: int):
        self._board, self._moments, self._first = BoardEnv(), moments, first_seed
        self.action_space = self._board.action_space
        self.observation_space = self._board.observation_space

    def reset(
        self, *, seed: int | None = None, options: dict | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is None or options:
            raise ValueError(f"got seed {seed} and options {options}; give a seed and no options.")
        return self._board.restore(self._moments[(seed - self._first) % len(self._moments)])

    def step(self, action) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self._board.step(action)


def moment(trace: Trace, inference: int) -> Snapshot:
    """The simulation just before an inference of a recorded episode.

    Raises:
        RuntimeError: the replay differs from the recording.
    """
    env = BlindBoard()
    env.reset(seed=trace.seed, options={"perturbation": trace.perturbation})
    step = int(trace.inference_step[inference])
    raw = None
    for action in trace.actions[:step]:
        raw, *_ = env.step(action)
    if raw is not None and not np.array_equal(raw["observation/state"], trace.state[step]):
        raise RuntimeError(f"replay of seed {trace.seed} differs from its recording.")
    return env.snapshot()


def fitted_beta_auc(failures: Int[np.ndarray, " n"], branches: int) -> float:
    """AUC of knowing p when p ~ Beta(a, b), fitted to the counts by maximum likelihood."""

    def loss(log_ab: np.ndarray) -> float:
        a, b = np.exp(log_ab)
        return -np.sum(special.betaln(a + failures, b + branches - failures) - special.betaln(a, b))

    a, b = np.exp(optimize.minimize(loss, np.zeros(2), method="Nelder-Mead").x)
    p = special.betaincinv(a, b, (np.arange(4000) + 0.5) / 4000)
    higher = np.cumsum(1 - p) - (1 - p) / 2  # weight of successes that rank below
    return float(np.sum(p * higher) / (p.sum() * (1 - p).sum()))


def table(
    failed: Bool[np.ndarray, " n"], branches: Bool[np.ndarray, "n k"], stop: dict[str, int]
) -> dict:
    """AUC of the continuations' mean and of the Beta fit, with intervals over episodes."""
    n, k = branches.shape

    def chance(j: int) -> Float[np.ndarray, " n"]:
        return branches[:, :j].mean(1)

    rows = {}
    for j in sorted({1, 2, 4, k}):
        value = roc_auc(chance(j), failed)
        rows[f"mean_of_{j}"] = [
            value,
            *bootstrap(lambda i, j=j: roc_auc(chance(j)[i], failed[i]), n),
        ]
    counts = np.concatenate([branches, failed[:, None]], 1).sum(1)
    rows["fitted_beta"] = [
        fitted_beta_auc(counts, k + 1),
        *bootstrap(lambda i: fitted_beta_auc(counts[i], k + 1), n, draws=200),
    ]
    decided = (counts == 0) | (counts == k + 1)
    return {
        "episodes": n,
        "branches": k,
        "failed": int(failed.sum()),
        "auc": rows,
        "same_outcome_every_time": float(decided.mean()),
        "earliest_stop_inferences": stop,
    }


def main(config: Config) -> dict:
    """Runs the continuations and writes the table."""
    traces = []
    for condition in CONDITIONS:
        run = load_run(config.runs / f"test_{condition}")
        traces += [run.trace(row["seed"]) for row in run.finished[: config.episodes]]
    words = [speed_word(trace) for trace in traces]
    stop = {
        w: min(len(t.chunks) for t, v in zip(traces, words, strict=True) if v == w)
        for w in set(words)
    }
    moments = [moment(t, stop[w] - 1) for t, w in zip(traces, words, strict=True)]
    n = len(moments)
    run = run_episodes(
        load_policy(config.policy),
        lambda: Continuations(moments, config.first_seed),
        range(config.first_seed, config.first_seed + n * config.branches),
        out=config.runs / f"continuations_{config.episodes}",
        num_envs=16,
    )
    outcome = {row["seed"]: not row["success"] for row in run.finished}
    branches = np.array(
        [[outcome[config.first_seed + b * n + i] for b in range(config.branches)] for i in range(n)]
    )
    failed = np.array([not t.success for t in traces])
    result = table(failed, branches, stop)
    write_results(config.out, result)
    return result


if __name__ == "__main__":
    enable_cache()
    print(json.dumps(main(tyro.cli(Config)), indent=1))

"""What a gate on the action spares, and whether it costs success.

    python -m experiments.studies.gate

The loop that repairs and the one that steers, each as it is, gated (`ActionGate`: spent only where
the observation changed the action) and shut (only the first two looks are remembered, and nothing
is explained after the first inference): where shut ends alike too, what was spared was worth
nothing, and the gate shows no more. On the headline mixture, test seeds that no other study plays.
Interrupt it at will.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Int

from experiments.record import command, write_results
from mistjax.compilation import enable_cache
from mistjax.demo import MIST, POLICY
from mistjax.envs.faults.splits import SEEDS
from mistjax.policies.latched import LatchedPrompt
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.recover.gate import ActionGate
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run
from mistjax.rollouts.summary import compare
from mistjax.stats import bootstrap
from mistjax.studies.arms import GATE, Subject, make_arm
from mistjax.studies.conditions import condition
from mistjax.studies.run import LOCKSTEP

SPENT = {"mist": "remembered", "steer": "attributed"}
"""Loop -> which of its inferences spent something, by its name in `Sample.aux`."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is played, and where it goes.

    Attributes:
        out: runs, one folder an arm.
        results: where the table is kept.
        loops: of `SPENT`.
        episodes: of each arm.
        first_seed: of the episodes.
    """

    out: Path = Path("runs/gate")
    results: Path = Path("experiments/results/gate.json")
    loops: tuple[str, ...] = tuple(SPENT)
    episodes: int = 60
    first_seed: int = SEEDS["test"].start + 500_000


def arms(loop: str, subject: Subject) -> dict[str, Policy]:
    """The loop as it is, gated and shut."""
    made = make_arm(f"{loop}_gated", subject, condition("mixture").faults)
    inside = made.policy  # type: ignore[attr-defined]
    gate: ActionGate = inside.gate
    shut = gate.replace(tolerance=jnp.full_like(gate.tolerance, jnp.inf))  # type: ignore[attr-defined]
    found = {}
    for name, used in (("", None), ("_gated", gate), ("_shut", shut)):
        policy = dataclasses.replace(inside, gate=used, name=loop + name)
        found[loop + name] = LatchedPrompt.around(policy, subject.bare)
    return found


def spent(run: Run, name: str) -> Int[np.ndarray, "episodes 2"]:
    """Of each episode, by seed, how many inferences spent something, of any input, and how many
    there were.
    """
    found = {}
    for trace in run.traces():
        flags = np.reshape(trace.aux[name], (len(trace.chunks), -1)).any(axis=1)
        found[trace.seed] = int(flags.sum()), len(trace.chunks)
    return np.array([found[seed] for seed in sorted(found)])


def spared(
    loop: Int[np.ndarray, "episodes 2"], arm: Int[np.ndarray, "episodes 2"]
) -> list[float] | None:
    """Share of what the loop spends for each inference that the arm does not: the estimate and its
    interval over the episodes (paired by seed); None where the loop spends nothing.
    """

    def share(index: np.ndarray | slice) -> float:
        (a, n), (b, m) = loop[index].sum(axis=0), arm[index].sum(axis=0)
        return 1 - (b / m) / (a / n) if a else float("nan")

    if not loop[:, 0].any():
        return None
    return [share(slice(None)), *bootstrap(share, len(loop))]


def main(config: Config) -> dict[str, Any]:
    """Plays the loops, and writes a row for each arm; those of other loops stay."""
    bare = load_policy(POLICY)
    subject = Subject(bare, MIST)
    plan = EpisodePlan(
        episodes=config.episodes,
        first_seed=config.first_seed,
        num_envs=LOCKSTEP,
        **condition("mixture").plan,
    )
    kept = json.loads(config.results.read_text())["rows"] if config.results.exists() else []
    rows: list[dict[str, Any]] = []
    for loop in config.loops:
        kept = [row for row in kept if row["what"] != SPENT[loop]]
        runs = {
            arm: collect(
                policy,
                config.out / arm,
                plan,
                env_options=bare.preset.env_options,
                aux=(SPENT[loop],),
            )
            for arm, policy in arms(loop, subject).items()
        }
        shares = {arm: spent(run, SPENT[loop]) for arm, run in runs.items()}
        for arm, run in runs.items():
            pair = compare(runs[loop], run)
            used, inferences = shares[arm].sum(axis=0).tolist()
            rows.append(
                {
                    "arm": arm,
                    "command": command("experiments.studies.gate"),
                    "what": SPENT[loop],
                    "n": pair.n,
                    "successes": pair.after.k,
                    "repaired": pair.repaired,
                    "broken": pair.broken,
                    "p": pair.p_value,
                    "spent": used,
                    "inferences": inferences,
                    "spared": spared(shares[loop], shares[arm]),
                }
            )
        results = {
            "first_seed": config.first_seed,
            "tolerance": GATE,
            "rows": sorted(rows + kept, key=lambda row: list(SPENT.values()).index(row["what"])),
        }
        write_results(config.results, results)
    return results


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

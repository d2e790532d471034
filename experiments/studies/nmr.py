"""Does a policy that looks at nuisance fail? NMR@10 against success, condition by condition.

    python -m experiments.studies.nmr

A condition is a perturbation of the board at one strength, or the plain board, for each policy that
`experiments.studies.perturbations` has played; success is read from its results. NMR@10 is measured
with ISS on moments of a few episodes of its own under the same perturbation, beside what a map that
knows nothing would have. Words that a prompt swaps or lacks leave the pictures as they are: the
correlation is also given without them, for each policy alone, and within the policies (the means of
each taken off), as policies differ in more than where they look.

Along a training, policies are kept as it goes on, here of a fresh action expert on the shipped
policy's vision tower and VLM:

    python -m mistjax.envs.board.demos --episodes 1200 --out data/board_demos
    python -m experiments.train.board_pi0 --start checkpoints/board_pi0 --fresh-expert --steps 1200
        --batch-size 32 --learning-rate 1e-3 --warmup 50 --ema 0.98 --keep-every 100
        --eval-episodes 0 --out runs/board_along
    python -m experiments.studies.nmr --training runs/board_along

Each is played on the plain board, on the same seeds, and asked about the same moments, those of the
shipped policy.

Source: Zhang et al., arXiv 2605.00321, who find -0.77 over policies and changes of the scene.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy import stats

from experiments.record import write_results
from experiments.studies.fidelity import Seen, board_moments
from mistjax.attribute.interventional import nuisance_mass_ratio, nuisance_regions
from mistjax.attribute.readouts import ActionKept
from mistjax.attribute.registry import attribute
from mistjax.compilation import enable_cache
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.summary import summarize
from mistjax.stats import bootstrap, pearson

PUBLISHED, TOP, _BATCH = -0.77, 0.1, 8
RELEVANT = jnp.array([0, 1])
"""Parts of a picture that the task is about: critical and support."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is asked.

    Attributes:
        policies: names of shipped policies that the other study has played.
        training: `--out` of a training whose policies were kept; they are asked instead.
        moments: of each condition.
        each: moments of an episode.
        methods: attributions.
        samples: masks of each.
        episodes: of each policy along a training.
        out: folder of their runs.
        played: results of the other study.
        results: file for the numbers; what an earlier call found is kept.
    """

    policies: tuple[str, ...] = ("board_pi0", "board_pi0_dropout")
    training: Path | None = None
    moments: int = 24
    each: int = 3
    methods: tuple[str, ...] = ("iss", "iss_regression")
    samples: int = 100
    episodes: int = 100
    out: Path = Path("runs/nmr_training")
    played: Path = Path("experiments/results/perturbations.json")
    results: Path = Path("experiments/results/nmr.json")


def main(config: Config) -> dict[str, Any]:
    """Asks about what is missing; writes the file after every condition."""
    found: dict[str, list[dict[str, Any]]] = {"conditions": [], "training": []}
    if config.results.exists():
        found |= {k: json.loads(config.results.read_text()).get(k, []) for k in found}
    if config.training is not None:
        along(config, config.training, found)
    else:
        conditions(config, found)
    return write(found, config.results)


def conditions(config: Config, found: dict[str, list[dict[str, Any]]]) -> None:
    """Adds the conditions that the other study has played."""
    played, rows = json.loads(config.played.read_text())["policies"], found["conditions"]
    done = {
        tuple(row[key] for key in ("map", "policy", "perturbation", "strength")) for row in rows
    }
    for name in config.policies:
        policy = load_policy(f"checkpoints/{name}")
        k, n = played[name]["clean"]
        plain = {"perturbation": None, "kind": "none", "strength": 0.0, "k": k, "n": n}
        for row in (plain, *played[name]["rows"]):
            at = (name, row["perturbation"], row["strength"])
            left = [method for method in config.methods if (method, *at) not in done]
            if not left:
                continue
            change = {row["perturbation"]: row["strength"]} if row["perturbation"] else None
            moments = list(board_moments(policy, config.moments, config.each, change))
            fields = ("perturbation", "kind", "strength", "k", "n")
            for method in left:
                ratio = ratios(policy, moments, method, config.samples)
                rows.append({"map": method, "policy": name} | {k: row[k] for k in fields} | ratio)
            write(found, config.results)


def along(config: Config, training: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Plays and asks the policies of a training, in place of those of an earlier one."""
    folders = sorted(training.parent.glob(f"{training.name}_[0-9]*"))
    if not folders:
        raise FileNotFoundError(f"no {training}_STEP: train with --keep-every.")
    shipped = load_policy("checkpoints/board_pi0")
    moments = list(board_moments(shipped, config.moments, config.each))
    plan = EpisodePlan(episodes=config.episodes, first_seed=6_700_000, compiled=True, num_envs=25)
    found["training"] = []
    for folder in folders:
        policy = load_policy(folder)
        rate = summarize(collect(policy, config.out / folder.name, plan)).success
        step = int(folder.name.rpartition("_")[2])
        for method in config.methods:
            ratio = ratios(policy, moments, method, config.samples)
            row = {"map": method, "step": step, "k": rate.k, "n": rate.n} | ratio
            found["training"].append(row)
            print(json.dumps(row), flush=True)
        write(found, config.results)


def write(found: dict[str, list[dict[str, Any]]], path: Path) -> dict[str, Any]:
    """The conditions and what they correlate to, for each map."""
    maps = dict.fromkeys(row["map"] for row in (*found["conditions"], *found["training"]))
    correlations = []
    for name in maps:
        rows, steps = ([r for r in found[k] if r["map"] == name] for k in found)
        seen = [row for row in rows if row["kind"] != "language"]
        policies = sorted({row["policy"] for row in rows})
        groups: dict[str, tuple[Sequence[dict[str, Any]], Callable]] = {
            "all conditions": (rows, raw),
            "without words": (seen, raw),
            **{
                f"without words, {n}": ([r for r in seen if r["policy"] == n], raw)
                for n in policies
            },
            "without words, within policies": (seen, within),
            "along a training": (steps, raw),
        }
        correlations += [
            {"map": name, "over": group, "n": len(some), **correlated(*points(some))}
            for group, (some, points) in groups.items()
            if len(some) > 3
        ]
    result = {
        "command": "python -m experiments.studies.nmr",
        "published": PUBLISHED,
        "correlations": correlations,
        **found,
    }
    write_results(path, result)
    return result


def raw(rows: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """NMR and success of each condition."""
    return np.array([r["nmr"] for r in rows]), np.array([r["k"] / r["n"] for r in rows])


def within(rows: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The same without each policy's means."""
    x, y = raw(rows)
    for name in {row["policy"] for row in rows}:
        own = np.array([row["policy"] == name for row in rows])
        x[own] -= x[own].mean()
        y[own] -= y[own].mean()
    return x, y


def correlated(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Pearson's r with its bootstrap interval over conditions, and Spearman's."""

    def r(index: np.ndarray) -> float:
        return pearson(x[index], y[index])

    found = stats.spearmanr(x, y)
    return {
        "pearson": r(np.arange(len(x))),
        "interval": list(bootstrap(r, len(x))),
        "spearman": float(found.statistic),  # type: ignore[union-attr]
    }


def ratios(policy: Policy, moments: Sequence[Seen], method: str, samples: int) -> dict[str, float]:
    """Mean NMR@10 of some moments, its standard error, and what a map that knows nothing has."""
    values, chance = [], []
    for first in range(0, len(moments), _BATCH):
        some = list(moments[first : first + _BATCH])
        filled = some + some[-1:] * (_BATCH - len(some))
        obs = policy.prepare([seen.raw for seen in filled])
        key = jnp.stack([jax.random.key(0)] * _BATCH)
        readout = ActionKept(policy.sample(obs, key).actions)
        found = attribute(method, policy, obs, key, readout, samples=samples)
        shares = {
            camera: nuisance_regions(
                jnp.stack([jnp.asarray(seen.parts[name]) for seen in filled]),
                RELEVANT,
                policy.patch,
            )
            for camera, name in policy.spec.cameras.items()
        }
        ratio = np.asarray(nuisance_mass_ratio(found, shares, TOP))
        values += ratio[: len(some)].tolist()
        level = np.mean([np.asarray(share).mean((1, 2)) for share in shares.values()], axis=0)
        chance += level[: len(some)].tolist()
    return {
        "nmr": float(np.nanmean(values)),
        "error": float(np.nanstd(values) / np.sqrt(len(values))),
        "chance": float(np.mean(chance)),
    }


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

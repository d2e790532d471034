"""What repairs a policy under an unfamiliar appearance: which direction, layer, strength, moment?

    python -m experiments.studies.repair

Open loop, paired seeds: `steer.SteeredPolicy` puts one edit in force from a chosen inference on, so
that no alarm and no attribution decides. Edits: the difference of means between the two appearances
(nominal and perturbed) at the vision tower's first layer, and affine maps from one appearance to
the other at its layers (`steer.affine`); each against a control of equal size in a random basis.

"left" is how much of the squared change that the perturbation makes to the vision tower's last
activations remains under the edit, on situations that did not make it: it says why a difference of
means repairs little. Interrupt it at will: the same command goes on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.build.board_mist import VISION_TAP, appearance_directions
from experiments.record import write_results
from mistjax.compilation import enable_cache
from mistjax.envs.board.expert import expert_observations
from mistjax.hooks import Tap
from mistjax.hooks.edits import Edit
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.report.study import format_table
from mistjax.rollouts.collect import collect
from mistjax.rollouts.run import Run
from mistjax.rollouts.summary import compare, summarize
from mistjax.steer import SteeredPolicy, affine_map

APPEARANCES = {"table_texture": 0.4, "brightness": 0.4, "stone_reflectivity": 1.0}
"""Perturbations under which the policy fails more often; the first one is studied in full."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        policy: checkpoint folder.
        out: recorded runs.
        results: file for the rows.
        episodes: paired episodes of each arm.
        fitted: expert episodes that the directions are made from.
        first_seed: of the episodes; unseen by everything else.
    """

    policy: Path = Path("checkpoints/board_pi0")
    out: Path = Path("runs/repair")
    results: Path = Path("experiments/results/repair.json")
    episodes: int = 100
    fitted: int = 100
    first_seed: int = 8_000_000


@dataclasses.dataclass(frozen=True)
class Arm:
    """One edit (None: bare), and the inference that it starts at."""

    label: str
    edit: Edit | None
    onset: int = 0


def arms(policy: Policy, perturbation: dict[str, float], config: Config, full: bool) -> list[Arm]:
    """What is compared: direction and layer for every appearance, strength and moment if `full`."""
    seeds = range(1_200_000, 1_200_000 + config.fitted)
    found = appearance_directions(policy, perturbation, seeds)
    both, mean = found["look, affine"], found["look, mean"]
    key = jax.random.key(1)
    some = [
        Arm("bare", None),
        Arm("mean, layer 0", mean.to_edit(1.0)),
        Arm("mean, layer 0, strength 2", mean.to_edit(2.0)),
        Arm("affine, both layers", both.to_edit()),
        Arm("affine, random basis", both.control(key).to_edit()),
    ]
    if not full:
        return some
    nominal, perturbed = (expert_observations(seeds, perturbation=p) for p in ({}, perturbation))
    for layer in range(policy.spec.stacks["vision"].depth):
        tap = dataclasses.replace(VISION_TAP, layers=(layer,))
        one = affine_map(policy, nominal, perturbed, tap, jax.random.key(0))
        some.append(Arm(f"affine, layer {layer}", one.to_edit()))
    free = affine_map(policy, nominal, perturbed, VISION_TAP, jax.random.key(0), anchored=False)
    return [
        *some,
        Arm("affine, not anchored", free.to_edit()),
        *(Arm(f"affine, strength {s}", both.to_edit(s)) for s in (0.5, 1.5)),
        *(Arm(f"affine, from inference {i}", both.to_edit(), i) for i in (1, 2, 4, 8)),
    ]


def left(policy: Policy, edit: Edit, appearances: list[list]) -> float:
    """Share of the perturbation's squared change to the last vision layer that the edit leaves."""
    tap = Tap(VISION_TAP.site, (-1,), VISION_TAP.tokens)
    keys = jax.random.split(jax.random.key(0), len(appearances[0]))

    def seen(raw: list, edits: tuple[Edit, ...] = ()) -> np.ndarray:
        obs = policy.prepare(raw)
        return np.asarray(policy.sample(obs, keys, edits=edits, taps=(tap,)).taps[str(tap)])

    nominal, perturbed = (seen(raw) for raw in appearances)
    rest = np.sum((seen(appearances[1], (edit,)) - nominal) ** 2)
    return float(rest / np.sum((perturbed - nominal) ** 2))


def run(policy: Policy, arm: Arm, perturbation: dict[str, float], config: Config) -> Run:
    """The paired seeds under one arm."""
    steered = policy if arm.edit is None else SteeredPolicy(policy, arm.edit, jnp.int32(arm.onset))
    appearance = "_".join(perturbation) or "nominal"
    return collect(
        steered,
        config.out / appearance / arm.label.replace(", ", "_").replace(" ", "_"),
        episodes=config.episodes,
        first_seed=config.first_seed,
        perturbation=perturbation,
        num_envs=16,
    )


def rows(
    policy: Policy, appearance: str, perturbation: dict[str, float], some: list[Arm], config: Config
) -> list[dict[str, Any]]:
    """One row an arm, compared with the first one."""
    seeds = range(1_300_000, 1_300_000 + 12)
    appearances = [
        expert_observations(seeds),
        expert_observations(seeds, perturbation=perturbation),
    ]
    found, bare = [], None
    for arm in some:
        episodes = run(policy, arm, perturbation, config)
        bare = bare or episodes
        pair = compare(bare, episodes)
        print(appearance, arm.label, summarize(episodes).success, flush=True)
        measured = arm.edit if perturbation else None
        found.append(
            {
                "appearance": appearance,
                "edit": arm.label,
                "left": "" if measured is None else f"{left(policy, measured, appearances):.2f}",
                "success": str(summarize(episodes).success),
                "repaired": pair.repaired,
                "broken": pair.broken,
                "p": f"{pair.p_value:.2g}" if arm.edit is not None else "",
            }
        )
    return found


def main(config: Config) -> list[dict[str, Any]]:
    """Runs every arm, writes the rows and prints them as a table."""
    policy = load_policy(config.policy)
    table: list[dict[str, Any]] = []
    for number, (name, strength) in enumerate(APPEARANCES.items()):
        perturbation = {name: strength}
        some = arms(policy, perturbation, config, full=number == 0)
        table += rows(policy, f"{name} {strength:g}", perturbation, some, config)
        if number == 0:  # what the map does where it is not needed
            chosen = [arm for arm in some if arm.label in ("bare", "affine, both layers")]
            table += rows(policy, "nominal", {}, chosen, config)
    result = {
        "command": "python -m experiments.studies.repair",
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items()},
        "policy": policy.spec.fingerprint,
        "rows": table,
    }
    write_results(config.results, result)
    print(format_table([{k: str(v) for k, v in row.items()} for row in table]))
    return table


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

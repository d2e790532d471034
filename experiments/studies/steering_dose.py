"""Do the board policy's own directions steer it, and better than random ones of the same length?

    python -m experiments.studies.steering_dose

Open loop: every vector is added while the policy looks at the same scenes with the same noise, and
what changes is its next chunk. Vectors: value vectors of words in the VLM ("slowly" against
"quickly"), value vectors of the action expert's signed dimensions, and differences of means between
prompts. Value vectors are scaled so that strength 1 has the length of the mean activation at their
site; differences of means keep their own scale, at which strength 1 goes from one prompt to the
other. The prompts' own effect is the yardstick.

z is a vector's change from strength -1 to 1 in units of the random vectors' root mean square
change. Under chance it has a t distribution with as many degrees of freedom as there are random
vectors: with 8 of them and the table's 30 vectors, |z| > 5 is beyond chance (p < 0.05 after
Bonferroni), and a few values of 2 to 3 are not.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

import mistjax.envs  # noqa: F401 (registers the environments)
from experiments.record import write_results
from mistjax.compilation import enable_cache
from mistjax.envs.board.expert import recovery_action
from mistjax.envs.board.instructions import COLOURS, Task, instruct
from mistjax.hooks import Tap
from mistjax.policies import BOARD, PiPolicy
from mistjax.policies.protocol import Policy
from mistjax.steer import (
    SteeringVector,
    concept_vector,
    control_responses,
    difference_of_means,
    dose_response,
    find_concept,
    observation_group,
    top_names,
    value_vectors,
)
from mistjax.steer.effects import action_statistics

WORDS = (
    ("quickly", "slowly", "speed"),
    ("raise", "lower", "dz"),
    ("right", "left", "dy"),
    ("forward", "back", "dx"),
    ("open", "close", "gripper"),
    ("high", "low", "dz"),
)
MODIFIERS = (
    ({"speed": "quickly"}, {"speed": "slowly"}, "speed"),
    ({"height": "high"}, {"height": "low"}, "dz"),
)
TAPS = (Tap("vlm.resid", None, "text", "mean"), Tap("action.resid", None, "action", "mean"))
STRENGTHS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        policy: checkpoint folder.
        results: file for the rows.
        episodes: expert episodes that scenes are taken from.
        scenes: scenes of an episode, half of them while a stone is carried.
        neurons: neurons of a concept.
        controls: random vectors for each vector.
        first_seed: of the episodes.
    """

    policy: Path = Path("checkpoints/board_pi0")
    results: Path = Path("experiments/results/steering_dose.json")
    episodes: int = 16
    scenes: int = 4
    neurons: int = 24
    controls: int = 8
    first_seed: int = 5_000_000


@dataclasses.dataclass(frozen=True)
class Scene:
    """What the robot saw, the task without modifiers, and whether a stone was carried."""

    raw: dict[str, Any]
    task: Task
    carrying: bool

    def asked(self, **modifiers: str) -> dict[str, Any]:
        """The observation with a prompt for the task with these modifiers."""
        return {**self.raw, "prompt": instruct(dataclasses.replace(self.task, **modifiers))}


def expert_scenes(config: Config) -> list[Scene]:
    """Scenes along expert episodes of tasks without modifiers."""
    env = gym.make("mistjax/Board-v0")
    scenes: list[Scene] = []
    for seed in range(config.first_seed, config.first_seed + config.episodes):
        rng = np.random.default_rng(seed)
        task = Task(COLOURS[seed % 2], int(rng.integers(1, 6)), int(rng.integers(1, 6)))
        raw, info = env.reset(seed=seed, options={"task": task})
        frames, ended = [], False
        while not ended:
            frames.append(Scene(raw, task, info["phase"] == "carry"))
            raw, _, success, truncated, info = env.step(recovery_action(env))
            ended = success or truncated
        for carrying in (True, False):
            some = [frame for frame in frames if frame.carrying == carrying]
            picked = rng.choice(len(some), config.scenes // 2, replace=False)
            scenes += [some[i] for i in picked]
    return scenes


def word_vectors(policy: Policy, plain: list, config: Config, key) -> list[tuple]:
    """(label, vector, statistic that it should raise) from value vectors."""
    found = []
    vlm, action = value_vectors(policy, "vlm"), value_vectors(policy, "action")
    signed = [(f"+{name}", f"-{name}", name) for name in policy.spec.action_names]
    for values, pairs, tokens in ((vlm, WORDS, "all"), (action, signed, "action")):
        top = top_names(values, 1)
        tap = Tap(f"{values.stack}.mlp_out", None, tokens, "mean")
        size = jnp.asarray(np.linalg.norm(observation_group(policy, plain, tap, key), axis=-1))
        for towards, away, statistic in pairs:
            a, b = (
                find_concept(values, top, word, [word], limit=config.neurons)
                for word in (towards, away)
            )
            vector = concept_vector(values, a, against=b, tokens=tokens)
            scaled = dataclasses.replace(vector, scale=size.mean(0) * vector.gate)
            found.append((f"words {towards} - {away}", scaled, statistic))
    return found


def prompt_vectors(policy: Policy, scenes: list[Scene], key) -> list[tuple]:
    """The same from differences of means between two prompts, at all layers and at each."""
    found = []
    for towards, away, statistic in MODIFIERS:
        label = f"prompts {next(iter(towards.values()))} - {next(iter(away.values()))}"
        for tap in TAPS:
            a, b = (
                observation_group(policy, [s.asked(**words) for s in scenes], tap, key)
                for words in (towards, away)
            )
            vector = difference_of_means(a, b, tap, policy.spec, prompts=label)
            found.append((label, vector, statistic))
            found += [
                (f"{label}, layer {layer}", vector.at_layers(layer), statistic)
                for layer in range(len(vector.scale))
            ]
    return found


def yardstick(policy: Policy, scenes: list[Scene], key) -> list[dict[str, Any]]:
    """What asking for it changes."""
    keys = jax.random.split(key, len(scenes))

    def measured(**modifiers: str):
        raw = [scene.asked(**modifiers) for scene in scenes]
        sample = policy.sample(policy.prepare(raw), keys)
        return action_statistics(policy.finish(sample, raw), policy.spec)

    rows, plain = [], measured()
    for towards, away, statistic in MODIFIERS:
        low, high = measured(**away), measured(**towards)
        rows.append(
            {
                "vector": f"asking {next(iter(towards.values()))} - {next(iter(away.values()))}",
                "site": "prompt",
                "statistic": statistic,
                "plain": float(plain[statistic].mean()),
                "at -1": float((low[statistic] - plain[statistic]).mean()),
                "at +1": float((high[statistic] - plain[statistic]).mean()),
            }
        )
    return rows


def measure(
    policy: Policy,
    raw: list,
    label: str,
    vector: SteeringVector,
    statistic: str,
    config: Config,
    key,
) -> dict[str, Any]:
    """One row of the table."""
    response = dose_response(policy, raw, vector, STRENGTHS, key)
    ends = (STRENGTHS[0], STRENGTHS[-1])
    controls = control_responses(policy, raw, vector, ends, key, controls=config.controls)
    spans = [np.diff(control.effect(statistic))[0] for control in controls]
    chance = float(np.sqrt(np.mean(np.square(spans))))
    low, *_, high = response.effect(statistic)
    return {
        "vector": label,
        "site": f"{vector.site}/{vector.tokens}",
        "statistic": statistic,
        "plain": float(response.baseline[statistic].mean()),
        "at -1": float(low),
        "at +1": float(high),
        "interval at +1": response.interval(statistic)[-1].tolist(),
        "rho": response.monotonicity(statistic),
        "z": float(high - low) / chance if chance else None,
        "moved": float(response.moved[-1].mean()),
        "control moved": float(np.mean([control.moved[-1] for control in controls])),
    }


def main(config: Config) -> list[dict[str, Any]]:
    """Measures every vector, writes the rows and prints them as a table."""
    policy = PiPolicy.load(config.policy, BOARD)
    scenes, key = expert_scenes(config), jax.random.key(config.first_seed)
    carrying = [scene for scene in scenes if scene.carrying]
    plain = [scene.asked() for scene in scenes]
    rows = yardstick(policy, carrying, key)
    vectors = word_vectors(policy, plain, config, key) + prompt_vectors(policy, carrying, key)
    for label, vector, statistic in tqdm(vectors, unit="vector"):
        seen = [scene.asked() for scene in carrying] if label.startswith("prompts") else plain
        rows.append(measure(policy, seen, label, vector, statistic, config, key))
    result = {
        "command": "python -m experiments.studies.steering_dose",
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items()},
        "policy": policy.spec.fingerprint,
        "rows": rows,
    }
    write_results(config.results, result)
    print(as_table(rows))
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    columns = (
        "vector",
        "site",
        "statistic",
        "at -1",
        "at +1",
        "rho",
        "z",
        "moved",
        "control moved",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = ["" if row.get(name) is None else row[name] for name in columns]
        shown = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

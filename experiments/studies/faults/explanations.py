"""Do explanations of the failure score name the unsound input? Every attribution method at the look
at which the monitor of the inputs names one.

    python -m experiments.studies.faults.explanations

Two kinds of fault for each input, the strongest that may be looked at. A method names the input
with the largest share of its attribution (`localise`); at chance that is right once in four. The
score is that of the shipped failure detector, from the state before the first look.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from mistjax.attribute.localiser import localise
from mistjax.attribute.readouts import FailureScore
from mistjax.attribute.registry import ATTRIBUTIONS, attribute
from mistjax.compilation import enable_cache
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.envs.faults.battery import FAULTS, INPUTS, Mixture
from mistjax.envs.faults.make import make_faulty
from mistjax.envs.faults.splits import SEEDS, strengths
from mistjax.policies.load import load_policy
from mistjax.recover.artifact import load_monitor
from mistjax.recover.watched import Watched
from mistjax.rollouts.plan import BOARD_ENV
from mistjax.stats import Rate

KINDS = (
    "front_dimmed",
    "front_patch",
    "wrist_dimmed",
    "wrist_patch",
    "state_offset",
    "state_frozen",
    "instruction_swapped_word",
    "instruction_unknown_word",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is asked.

    Attributes:
        policy: the policy.
        mist: its monitors.
        episodes: of each fault.
        methods: of `ATTRIBUTIONS`.
        out: the results.
    """

    policy: str = "checkpoints/board_pi0"
    mist: Path = Path("checkpoints/board_mist")
    episodes: int = 8
    methods: tuple[str, ...] = tuple(ATTRIBUTIONS)
    out: Path = Path("experiments/results/fault_explanations.json")


def alarms(config: Config, policy: Any, name: str, first_seed: int) -> Iterator[tuple[Any, int]]:
    """(what the policy saw, named input) at the first alarm of each episode, from the onset on."""
    watched = Watched(policy, load_inputs(config.mist, policy.spec.fingerprint))
    mixture = Mixture.single(name, max(strengths(name)))
    env = make_faulty(BOARD_ENV, mixture.to_json(), policy.spec.execute_steps)
    for seed in range(first_seed, first_seed + config.episodes):
        raw, info = env.reset(seed=seed)
        state, step, ended = watched.initial_state(1), 0, False
        while not ended:
            key = jax.random.fold_in(jax.random.key(seed), step // policy.spec.execute_steps)
            sample = watched.sample(policy.prepare([raw]), key[None], state=state)
            named, state = int(sample.aux["named"][0]), sample.state
            if named >= 0:
                if step >= info["fault_onset"]:
                    yield raw, named
                break
            for action in policy.finish(sample, [raw])[0][: policy.spec.execute_steps]:
                raw, _, done, cut, info = env.step(action)
                step, ended = step + 1, done or cut
                if ended:
                    break


def main(config: Config) -> dict[str, Any]:
    """Plays, asks every method, and writes the table."""
    policy: Any = load_policy(config.policy)
    monitor = load_monitor(config.mist, policy)
    start = SEEDS["test"].start + 900_000
    cases = [
        (raw, named, FAULTS[kind][0])
        for number, kind in enumerate(KINDS)
        for raw, named in alarms(config, policy, kind, start + 1000 * number)
    ]
    raws, named, truth = zip(*cases, strict=True)
    answers = {"novelty": [[*INPUTS, "none"][name] for name in named]}
    batch = 8
    for method in config.methods:
        found: list[str] = []
        for first in range(0, len(raws), batch):
            rows = list(raws[first : first + batch])
            obs = policy.prepare(rows + [rows[-1]] * (batch - len(rows)))
            readout = FailureScore(
                monitor.detector, monitor.initial_state(batch).detector, monitor.reads
            )
            keys = jax.random.split(jax.random.key(first), batch)
            cause = localise(attribute(method, policy, obs, keys, readout))
            names = dict(zip(policy.config.image_keys, INPUTS[:2], strict=True))
            names |= {"text": "instruction", "state": "state"}
            found += [names[cause.modalities[int(i)]] for i in np.asarray(cause.modality)][
                : len(rows)
            ]
        answers[method] = found
        print(method, flush=True)
    table = {
        method: {
            where: {
                "k": sum(a == t == where for a, t in zip(found, truth, strict=True)),
                "n": truth.count(where),
            }
            for where in INPUTS
        }
        | {
            "all": {
                "k": sum(a == t for a, t in zip(found, truth, strict=True)),
                "n": len(truth),
            }
        }
        for method, found in answers.items()
    }
    results = {"command": "python -m experiments.studies.faults.explanations", "table": table}
    config.out.write_text(json.dumps(results, indent=1) + "\n")
    return table


if __name__ == "__main__":
    enable_cache()
    for method, found in main(tyro.cli(Config)).items():
        print(method, {where: str(Rate(r["k"], r["n"])) for where, r in found.items()})

"""Which methods name the unsound input? Every namer at the same moments: the look at which the
monitor of the inputs alarms first.

    python -m experiments.studies.faults.explanations

A few episodes of most faults of the battery, the strongest that may be looked at (of unseen kinds
the only one). An explanation is asked twice: as it is (the input with the largest share, which is
never "none"), and against clean episodes (in units of what it says at clean moments, and "none"
where it says no more than there). Explained is the shipped failure score, and for some methods the
action (what keeps the chunk as it is). Within an input: is the strongest patch inside of the dark
square, the strongest state entry the displaced one, the strongest word one that was changed?

The moments are those of the monitor, so it is not asked about faults that it has missed; they are
counted. Interrupt it at will: each kind of fault is kept. Some 30 s a kind on an idle core.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.record import write_results
from mistjax.attribute.namers import (
    NAMERS,
    NONE,
    Clean,
    Moment,
    Namer,
    Naming,
    by_share,
    novelty,
)
from mistjax.attribute.readouts import ActionKept, FailureScore
from mistjax.compilation import enable_cache
from mistjax.envs.faults import inputs
from mistjax.envs.faults.battery import FAULTS, INPUTS, Mixture, input_name
from mistjax.envs.faults.make import make_faulty
from mistjax.envs.faults.splits import SEEDS, strengths
from mistjax.files import atomic
from mistjax.policies.load import load_policy
from mistjax.recover.artifact import load_mist
from mistjax.rollouts.plan import BOARD_ENV
from mistjax.stats import Rate

CLEAN, BATCH = "clean", 8
SCORE = (
    "attention_mass",
    "token_norm",
    "gradient_x_input",
    "integrated_gradients",
    "occlusion",
    "chance",
)
"""Asked about the failure score."""
ACTION = ("iss_regression", "cache_ablation", "whole_ablation")
"""Asked about the action, of which a gradient is 0 where it has not moved."""
NOVELTY = "novelty"
KINDS = (
    "action_early_release",
    "action_late_grasp",
    "action_noise",
    "action_noop",
    "action_offset",
    "front_colour_cast",
    "front_dimmed",
    "front_frozen",
    "front_patch",
    "front_shifted",
    "instruction_dropped_word",
    "instruction_swapped_word",
    "instruction_typos",
    "instruction_unknown_word",
    "push",
    "scene_camera_fov",
    "scene_table_texture",
    "state_drifting",
    "state_frozen",
    "state_offset",
    "state_scaled",
    "wrist_delayed",
    "wrist_dimmed",
    "wrist_frozen",
    "wrist_patch",
    "wrist_salt_and_pepper",
)
"""Of the battery; five of them are kinds that nothing was tuned on."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is asked.

    Attributes:
        policy: the policy.
        mist: its monitors.
        episodes: of each fault.
        clean: moments of clean episodes that explanations are measured against.
        samples: random masks of `iss_regression`.
        steps: of integrated gradients.
        kinds: of `FAULTS`.
        moments: what is kept of each kind.
        out: the results.
    """

    policy: str = "checkpoints/board_pi0"
    mist: Path = Path("checkpoints/board_mist")
    episodes: int = 6
    clean: int = 40
    samples: int = 100
    steps: int = 16
    kinds: tuple[str, ...] = KINDS
    moments: Path = Path("runs/fault_explanations")
    out: Path = Path("experiments/results/fault_explanations.json")


@dataclasses.dataclass(frozen=True)
class Case:
    """A moment, and what is true of it.

    Attributes:
        seed: of the episode.
        raw: what the policy saw.
        state: what the monitors remember of the looks before.
        key: of the inference.
        prompt: at the start of the episode.
        injection: the fault, as the battery drew it; None on clean episodes.
    """

    seed: int
    raw: Mapping[str, Any]
    state: Any
    key: Any
    prompt: str
    injection: Any


def played(config: Config, watched: Any, kind: str) -> tuple[list[Case], dict[str, int]]:
    """The first alarm of each episode, from the onset on; how many have none, or one before it. Of
    clean episodes a look at the time at which faults begin, alarm or not.
    """
    clean = kind == CLEAN
    mixture = Mixture() if clean else Mixture.single(kind, max(strengths(kind)))
    execute = watched.spec.execute_steps
    env: Any = make_faulty(BOARD_ENV, mixture.to_json(), execute)
    number = 900 if clean else 900 + list(FAULTS).index(kind)
    start = SEEDS["tuning" if clean else "test"].start + 1000 * number
    cases, lost = [], {"missed": 0, "early": 0}
    for seed in range(start, start + (config.clean if clean else config.episodes)):
        raw, info = env.reset(seed=seed)
        prompt, state, step = raw["prompt"], watched.initial_state(1), 0
        asked = int(np.random.default_rng(seed).integers(1, 7)) if clean else -1
        while True:
            key = jax.random.fold_in(jax.random.key(seed), step // execute)[None]
            sample = watched.sample(watched.prepare([raw]), key, state=state)
            now = Case(seed, raw, state, key, prompt, env.injection)
            if step // execute == asked:
                cases.append(now)
                break
            if not clean and int(sample.aux["named"][0]) >= 0:
                if step >= info["fault_onset"]:
                    cases.append(now)
                else:
                    lost["early"] += 1
                break
            state, ended = sample.state, False
            for action in watched.finish(sample, [raw])[0][:execute]:
                raw, _, done, cut, info = env.step(action)
                step, ended = step + 1, done or cut
                if ended:
                    break
            if ended:
                lost["missed"] += 1
                break
    return cases, lost


def asked(config: Config, watched: Any) -> dict[str, tuple[str, Namer]]:
    """Name in the table -> (what is explained, who is asked)."""
    namers = {
        **NAMERS,
        "integrated_gradients": by_share("integrated_gradients", steps=config.steps),
        "iss_regression": by_share("iss_regression", samples=config.samples),
    }
    found: dict[str, tuple[str, Namer]] = {NOVELTY: ("score", novelty(watched.inputs))}
    found |= {name: ("score", namers[name]) for name in SCORE}
    return found | {f"{name}, action": ("action", namers[name]) for name in ACTION}


def moment(policy: Any, monitor: Any, cases: Sequence[Case], what: str) -> Moment:
    """Cases as a batch."""
    obs = policy.prepare([case.raw for case in cases])
    key = jnp.concatenate([case.key for case in cases])
    state = jax.tree.map(lambda *x: jnp.concatenate(x), *(case.state for case in cases))
    if what == "action":
        readout: Any = ActionKept(policy.sample(obs, key).actions)
    else:
        readout = FailureScore(monitor.detector, state.policy.monitor.detector, monitor.reads)
    return Moment(obs, key, readout, state.inputs)


def truth_within(policy: Any, case: Case, naming: Naming, row: int) -> dict[str, float] | None:
    """Whether the strongest part of the faulty input is the one that is wrong, and how often a
    random part would be; None where the fault has no such part or the method names none.
    """
    fault = case.injection
    if fault is None or naming.where is None:
        return None
    key = inputs.key_of(case.seed)
    if fault.kind == "patch":
        camera = next(n for n, k in policy.spec.cameras.items() if input_name(k) == fault.input)
        part = np.asarray(naming.where.images[camera])[row]
        height, width = np.asarray(case.raw[policy.spec.cameras[camera]]).shape[:2]
        top, left, side = map(int, inputs.patch_place(height, width, fault.strength, key))
        rows = (np.arange(part.shape[0]) + 0.5) * height / part.shape[0]
        columns = (np.arange(part.shape[1]) + 0.5) * width / part.shape[1]
        inside = ((rows >= top) & (rows < top + side))[:, None]
        inside = inside & ((columns >= left) & (columns < left + side))[None]
    elif fault.name in ("state_offset", "state_drifting"):
        part = np.asarray(naming.where.state)[row, : len(case.state.inputs.state[0, 0])]
        at_zero = inputs.remember(np.zeros(len(part), np.float32))
        view = inputs.View(at_zero.held, **vars(at_zero))
        inside = np.asarray(inputs.STATES[fault.kind](view, fault.strength, key)) != 0
    elif fault.input == "instruction" and fault.kind != "dropped_word":
        now, before = case.raw["prompt"].split(), case.prompt.split()
        wrong = [a != b for a, b in zip(now, before, strict=True)]
        if len(policy.tokenizer.encode(case.raw["prompt"])) != len(now):
            return None  # neighbouring unknown words are one token
        part = np.asarray(naming.where.text)[row, 1 : 1 + len(now)]  # after the begin token
        inside = np.array(wrong)
    else:
        return None
    if not (part > 0).any():
        return {"right": 0.0, "chance": float(inside.mean())}
    return {"right": float(inside.flat[part.argmax()]), "chance": float(inside.mean())}


def answers(config: Config, policy: Any, watched: Any, kind: str) -> dict[str, Any]:
    """What everybody says about the cases of a kind."""
    cases, lost = played(config, watched, kind)
    found: dict[str, list[Any]] = {name: [] for name in asked(config, watched)}
    for first in range(0, len(cases), BATCH):
        some = cases[first : first + BATCH]
        filled = some + [some[-1]] * (BATCH - len(some))
        batches = {
            what: moment(policy, watched.monitor, filled, what) for what in ("score", "action")
        }
        for name, (what, namer) in asked(config, watched).items():
            naming = namer(policy, batches[what])
            evidence = np.asarray(naming.evidence, np.float64)
            for row, case in enumerate(some):
                found[name].append(
                    {
                        "evidence": evidence[row].tolist(),
                        "within": truth_within(policy, case, naming, row),
                    }
                )
    return {**lost, "seeds": [case.seed for case in cases], "answers": found}


def group_of(kind: str) -> str:
    """Where a fault is."""
    return FAULTS[kind][0]


def right(kind: str) -> tuple[str, ...]:
    """The answers that are right: a camera for what changes the scene, nobody for what changes the
    motion.
    """
    where = group_of(kind)
    if where == "scene":
        return INPUTS[:2]
    return (NONE,) if where in ("action", "push") else (where,)


def table(kept: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Method -> how it is asked -> fault or place -> how often right."""
    clean = kept[CLEAN]["answers"]
    known = (*names, NONE)
    found: dict[str, Any] = {}
    for method in clean:
        ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {"as it is": lambda e: e}
        if method not in (NOVELTY, "chance"):
            usual = Clean.of(np.array([a["evidence"] for a in clean[method]]))
            ways["against clean episodes"] = functools.partial(_scaled, usual)
        for way, of in ways.items():
            rates: dict[str, list[bool]] = {}
            for kind, cases in kept.items():
                if kind == CLEAN:
                    continue
                for case in cases["answers"][method]:
                    evidence = of(np.array([case["evidence"]]))
                    name = known[int(Naming(jnp.asarray(evidence), None, tuple(names)).named[0])]
                    groups = {kind, group_of(kind)}
                    groups |= {"inputs"} if group_of(kind) in INPUTS else set()
                    for group in groups:
                        rates.setdefault(group, []).append(name in right(kind))
            found[f"{method}, {way}" if len(ways) > 1 else method] = {
                group: rate(hits) for group, hits in rates.items()
            }
    return found


def _scaled(usual: Clean, evidence: np.ndarray) -> np.ndarray:
    return np.asarray(usual(Naming(jnp.asarray(evidence), None, ())).evidence)


def within(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Method -> kind of part -> how often the strongest part is wrong itself."""
    parts = {"front_patch": "patch", "wrist_patch": "patch", "state_offset": "state entry"}
    parts |= {"state_drifting": "state entry"}
    parts |= {f"instruction_{kind}": "word" for kind in ("typos", "unknown_word", "swapped_word")}
    found: dict[str, Any] = {}
    for kind, part in parts.items():
        for method, cases in kept.get(kind, {}).get("answers", {}).items():
            some = [case["within"] for case in cases if case["within"] is not None]
            row = found.setdefault(method, {}).setdefault(part, {"hits": [], "chance": []})
            row["hits"] += [bool(case["right"]) for case in some]
            row["chance"] += [case["chance"] for case in some]
    return {
        method: {
            part: rate(row["hits"]) | {"chance": float(np.mean(row["chance"]))}
            for part, row in rows.items()
            if row["hits"]
        }
        for method, rows in found.items()
    }


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    found = Rate(sum(hits), len(hits))
    return {"k": found.k, "n": found.n, "text": str(found)}


def main(config: Config) -> dict[str, Any]:
    """Plays, asks everybody, and writes the tables of what is kept."""
    policy: Any = load_policy(config.policy)
    watched = load_mist(config.mist, policy, "monitor")
    config.moments.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {}
    for kind in (CLEAN, *config.kinds):
        path = config.moments / f"{kind}.json"
        if not path.exists():
            found = json.dumps(answers(config, policy, watched, kind))
            with atomic(path) as temporary:
                temporary.write_text(found)
            print(kind, flush=True)
        kept[kind] = json.loads(path.read_text())
    results = {
        "command": "python -m experiments.studies.faults.explanations",
        "episodes": config.episodes,
        "clean": len(kept[CLEAN]["seeds"]),
        "lost": {kind: {n: kept[kind][n] for n in ("missed", "early")} for kind in config.kinds},
        "table": table(kept, watched.spec.inputs),
        "within": within(kept),
    }
    write_results(config.out, results)
    return results


if __name__ == "__main__":
    enable_cache()
    for method, found in main(tyro.cli(Config))["table"].items():
        print(method, {g: r["text"] for g, r in found.items() if g in (*INPUTS, "inputs", "push")})

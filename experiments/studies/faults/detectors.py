"""Every detector on the fault battery, on two questions, each measured on its own events.

    python -m experiments.studies.faults.record
    python -m experiments.studies.faults.record --grounding --out runs/grounding --fitting 200 \
        --calibration 200 --clean 100 --mixture 30 --each 0 --purposes fitting calibration test
    python -m experiments.studies.faults.detectors

*An input is unsound*: events are faults, from their onset on, against clean episodes; every
detector is calibrated on all clean calibration episodes. *The episode fails*: events are failed
episodes against those that succeed, clean ones and the headline mixture apart; calibrated on the
successes. Both thresholds hold for 95% of calibrations. What needs training is fitted with ten
seeds.

AUC per timestep compares scores of the same look only, so that a clock has 0.5; by earliest stop it
compares the highest score up to the look that the shortest episode has. Latency counts control
steps from the onset; an episode that ends before its onset is left out, and one with an alarm
before it is counted apart. Trained heads read what SAFE's do, the last layer of the action expert,
for 100 epochs; recurrent ones have 64 units. Finished fits are kept: an interrupted call goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float

from experiments.studies.events import Scored, detection, failure, together
from mistjax.compilation import enable_cache
from mistjax.detect.artifact import load_detector
from mistjax.detect.calibration.conformal import calibrate, coverage_law
from mistjax.detect.data import Episodes
from mistjax.detect.detector import score_episodes
from mistjax.detect.inputs import DEFAULT_INPUT, DEFAULT_TAPS, Input
from mistjax.detect.methods.combinators import Standardised, standardise
from mistjax.detect.methods.contrast import distinct
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.fit import evidence, recorded
from mistjax.detect.registry import fit_detector, method, training_config
from mistjax.envs.faults.battery import FAULTS
from mistjax.envs.faults.splits import SEEN_KINDS
from mistjax.policies.load import load_policy
from mistjax.rollouts.run import load_run
from mistjax.rollouts.trace import Trace

LOOK = 4
"""Control steps from one look to the next."""
SEEDS = range(10)
MIXTURES = ("board", "board_unseen_strengths", "board_unseen_kinds")
EPOCHS = 100


@dataclasses.dataclass(frozen=True)
class Config:
    """What is read and written.

    Attributes:
        policy: the recorded policy.
        mist: its monitors.
        runs, grounding: what `experiments.studies.faults.record` wrote.
        only: rows; all by default.
        out: the results.
        alpha: bound on the chance of any alarm in an episode without an event.
        confidence: share of calibrations for which it holds.
    """

    policy: str = "checkpoints/board_pi0"
    mist: Path = Path("checkpoints/board_mist")
    runs: Path = Path("runs/faults")
    grounding: Path = Path("runs/grounding")
    only: tuple[str, ...] = ()
    out: Path = Path("experiments/results/fault_detectors.json")
    alpha: float = 0.1
    confidence: float = 0.95


@dataclasses.dataclass(frozen=True)
class Row:
    """One detector.

    Attributes:
        question: what it was made for: "inputs", "failure", or "control".
        fitted_to: in words.
        scores: `scores(part, seed)`, [episodes, looks] of a part of the recordings.
        seeds: of its fit.
        calibration: parts that its thresholds come from.
    """

    question: str
    fitted_to: str
    scores: Callable[[str, int], Float[np.ndarray, "n t"]]
    seeds: Sequence[int] = (0,)
    calibration: tuple[str, ...] = ("calibration/clean",)


@dataclasses.dataclass(frozen=True)
class Part:
    """The episodes of one run: what detectors read of them, by the name of what they read, and how
    they went; `onset_step` is -1 without a fault.
    """

    reads: Mapping[str, Episodes]
    ratios: Float[np.ndarray, "n t i k"]
    faults: tuple[str | None, ...]
    strengths: tuple[float, ...]
    onset_step: np.ndarray

    @property
    def any(self) -> Episodes:
        return next(iter(self.reads.values()))

    @property
    def mask(self) -> np.ndarray:
        return np.asarray(self.any.mask)

    @property
    def failed(self) -> np.ndarray:
        return ~np.asarray(self.any.success)

    def scored(self, scores: np.ndarray) -> Scored:
        return Scored(scores, self.mask, self.onset_step, LOOK)


@dataclasses.dataclass(frozen=True)
class Recordings:
    """All parts, read when they are first asked for."""

    config: Config
    grounding: bool = False

    @functools.cached_property
    def policy(self) -> Any:
        return load_policy(self.config.policy)

    @functools.cached_property
    def monitor(self) -> Any:
        return load_inputs(self.config.mist, self.policy.spec.fingerprint)

    @functools.cached_property
    def parts(self) -> dict[str, Part]:
        return {}

    @property
    def folder(self) -> Path:
        return self.config.grounding if self.grounding else self.config.runs

    def names(self) -> list[str]:
        """Test parts with faults."""
        folders = sorted(path for path in (self.folder / "test").iterdir())
        known = [path.name for path in folders if (path / "episodes.parquet").exists()]
        return [f"test/{name}" for name in known if name != "clean"]

    def __getitem__(self, name: str) -> Part:
        if name not in self.parts:
            self.parts[name] = self._read(name)
        return self.parts[name]

    def _read(self, name: str) -> Part:
        traces = list(load_run(self.folder / name).traces())
        wanted = ("grounding",) if self.grounding else ("hidden", "action", "chunk", "velocity")
        made = {
            "hidden": lambda: DEFAULT_INPUT,
            "action": lambda: Input.of_taps(DEFAULT_TAPS[0]),
            "chunk": lambda: method("stac_single").declare(traces[:1], LOOK),
            "velocity": lambda: method("velocity_disagreement").declare(traces[:1], LOOK),
            "grounding": lambda: method("guard").declare(traces[:1], LOOK),
        }
        reads = {what: made[what]() for what in wanted}
        ratios = np.zeros(0)
        if not self.grounding:
            ratios = np.asarray(evidence(self.monitor, recorded(traces)).ratios)
        return Part(
            {what: _episodes(traces, reads[what].recorded) for what in wanted},
            ratios,
            tuple(t.info.get("fault") for t in traces),
            tuple(float(t.info.get("fault_strength") or 0) for t in traces),
            np.array(
                [-1 if t.info.get("fault") is None else t.info["fault_onset"] for t in traces]
            ),
        )


def _episodes(traces: Sequence[Trace], read: Callable[[Trace], np.ndarray]) -> Episodes:
    return Episodes.from_sequences(
        [read(t) for t in traces],
        [t.success for t in traces],
        [0] * len(traces),
        [t.seed for t in traces],
    )


def joined(parts: Sequence[Episodes]) -> Episodes:
    """Episodes one after the other."""
    sequences = [
        np.asarray(e.features)[i][np.asarray(e.mask)[i]] for e in parts for i in range(len(e))
    ]
    success = np.concatenate([e.success for e in parts])
    return Episodes.from_sequences(sequences, success)


def fixed(runs: Recordings, score: Callable[[Part], np.ndarray]) -> Callable[[str, int], Any]:
    """Scores without a fit."""
    return lambda part, seed: np.asarray(score(runs[part]), np.float64)


def fitted(
    runs: Recordings, what: str, fit: Callable[[Recordings, int], Any]
) -> Callable[[str, int], Any]:
    """Scores of a detector that is fitted once a seed."""
    make = functools.cache(functools.partial(fit, runs))

    def scores(part: str, seed: int) -> np.ndarray:
        return _scored_in_blocks(make(seed), runs[part].reads[what])

    return scores


def _scored_in_blocks(detector: Any, read: Episodes, block: int = 100) -> np.ndarray:
    """Of one size, so that one program scores all parts."""
    n, t = np.asarray(read.mask).shape
    more = (0, -n % block), (0, -t % 32)
    mask = np.pad(np.asarray(read.mask), more)
    features = np.pad(np.asarray(read.features), (*more, (0, 0)))
    found = [
        np.asarray(score_episodes(detector, features[i : i + block], mask[i : i + block]))
        for i in range(0, len(mask), block)
    ]
    return np.concatenate(found)[:n, :t].astype(np.float64)


def by_name(name: str, what: str, **options: Any) -> Callable[[Recordings, int], Any]:
    """A registered detector, fitted to the clean fitting episodes."""

    def fit(runs: Recordings, seed: int) -> Any:
        record = method(name)
        episodes = runs["fitting/clean"].reads[what]
        given = {"seed": seed, **options} if record.seeded else options
        return fit_detector(name, episodes, standardised=record.standardised, **given)

    return fit


def contrast_sets(runs: Recordings) -> list[str]:
    """Runs of faults that may be looked at, but those of the actuators: what is seen is changed."""
    kinds = [name for name in SEEN_KINDS if FAULTS[name][0] not in ("action", "push")]
    return [f"tuning/{name}" for name in kinds]


def contrast_probe(runs: Recordings, seed: int) -> Any:
    """See `methods.contrast`; the first half of each contrast set is fitted to."""
    episodes = _contrast_episodes(runs)
    return fit_detector(
        "safe_mlp",
        episodes,
        standardised=True,
        seed=seed,
        training=training_config("safe_mlp", epochs=EPOCHS, batch_size=64),
    )


@functools.cache
def _contrast_episodes(runs: Recordings) -> Episodes:
    halves = [runs[name].reads["action"] for name in contrast_sets(runs)]
    halves = [e.take(np.arange(len(e) // 2)) for e in halves]
    episodes = joined([runs["fitting/clean"].reads["action"], *halves])
    kept = distinct(standardise(episodes, *Standardised.statistics(episodes)), 0.5)
    print(f"contrast sets: {len(kept)} of {len(episodes)} episodes are distinct", flush=True)
    return episodes.take(kept)


def detectors(runs: Recordings, ground: Recordings) -> dict[str, Row]:
    """All rows by name."""
    shipped = load_detector(runs.config.mist, runs.policy.spec.fingerprint)
    safe = training_config("safe_mlp", epochs=EPOCHS, batch_size=64)
    seek = training_config("hide_and_seek", epochs=EPOCHS)
    chunk = functools.partial(_layout, runs, "stac_single")
    velocity = functools.partial(_layout, runs, "velocity_disagreement")
    nothing, clean = "nothing", "400 clean episodes"
    outcomes = "outcomes of 400 clean episodes"

    def ratio(*streams: int) -> Callable[[str, int], Any]:
        return fixed(runs, lambda part: part.ratios[..., list(streams)].max((2, 3)))

    def hidden(name: str, **options: Any) -> Callable[[str, int], Any]:
        return fitted(runs, "hidden", by_name(name, "hidden", **options))

    def action(name: str, **options: Any) -> Callable[[str, int], Any]:
        return fitted(runs, "action", by_name(name, "action", **options))

    return {
        "inputs, level and change": Row("inputs", clean, ratio(0, 1, 2)),
        "inputs, level": Row("inputs", clean, ratio(0)),
        "inputs, change": Row("inputs", clean, ratio(1, 2)),
        "hidden states, Mahalanobis": Row("inputs", clean, hidden("mahalanobis_gate")),
        "GUARD's diagnostics, Mahalanobis": Row(
            "inputs",
            "200 clean episodes",
            fitted(ground, "grounding", by_name("guard_gate", "grounding")),
        ),
        "chunk overlap (STAC-single)": Row(
            "inputs", nothing, fitted(runs, "chunk", lambda r, s: chunk())
        ),
        "velocity disagreement": Row(
            "inputs", nothing, fitted(runs, "velocity", lambda r, s: velocity())
        ),
        "SAFE-MLP, shipped": Row(
            "failure",
            "outcomes under table textures",
            fitted(runs, "hidden", lambda r, s: shipped.detector),
        ),
        "SAFE-MLP": Row("failure", outcomes, action("safe_mlp", training=safe), SEEDS),
        "Hide-and-Seek": Row(
            "failure", outcomes, action("hide_and_seek", training=seek, hidden=64), SEEDS
        ),
        "linear probes, ensemble": Row("failure", outcomes, hidden("ensemble")),
        "GUARD": Row(
            "failure",
            "outcomes of 200 clean episodes",
            fitted(ground, "grounding", by_name("guard", "grounding")),
            SEEDS,
        ),
        "contrast-set probe": Row(
            "failure",
            f"{outcomes}, and of faulty ones",
            fitted(runs, "action", contrast_probe),
            SEEDS,
        ),
        "contrast-set probe, so calibrated": Row(
            "failure",
            f"{outcomes}, and of faulty ones",
            fitted(runs, "action", contrast_probe),
            SEEDS,
            ("calibration/clean", *contrast_sets(runs)),
        ),
        "clock only": Row("control", nothing, fixed(runs, _clock)),
        "length only": Row("control", nothing, fixed(runs, _length)),
        "onset-blind": Row("control", nothing, fixed(runs, _blind)),
    }


def _layout(runs: Recordings, name: str) -> Any:
    """A detector without a fit, for the chunks of these recordings."""
    traces = [next(iter(load_run(runs.folder / "fitting" / "clean").traces()))]
    record = method(name)
    reads = record.declare(traces, LOOK)
    return record.fit(Any, **record.options(reads, LOOK))


def _clock(part: Part) -> np.ndarray:
    """How long the episode has been going on."""
    return np.broadcast_to(np.arange(part.mask.shape[1]), part.mask.shape)


def _length(part: Part) -> np.ndarray:
    """How long the episode will have been in the end, which nobody knows before."""
    return np.broadcast_to(part.mask.sum(1)[:, None], part.mask.shape)


def _blind(part: Part) -> np.ndarray:
    """Numbers that know nothing."""
    seeds = np.asarray(part.any.seed)
    return np.stack([np.random.default_rng(s).random(part.mask.shape[1]) for s in seeds])


def groups(runs: Recordings) -> Iterator[tuple[str, str, np.ndarray]]:
    """(group, part, which episodes): the faults of inputs of a mixture, and every fault alone."""
    for name in runs.names():
        part, short = runs[name], name.removeprefix("test/")
        faulty = np.array([fault is not None for fault in part.faults])
        if short in MIXTURES:
            sound = np.array([fault == "push" for fault in part.faults])
            yield short, name, faulty & ~sound
        for fault, strength in sorted({*zip(part.faults, part.strengths, strict=True)}, key=str):
            if fault is not None:
                same = np.array([f == fault for f in part.faults])
                at = f" {strength:g}" if strength < 1 else ""
                yield f"{fault}{at}", name, same & (np.array(part.strengths) == strength)


def measure(config: Config, row: Row, runs: Recordings, seed: int) -> dict[str, Any]:
    """One detector with one seed, on both questions; every fault alone with the first seed."""

    @functools.cache
    def scored(name: str) -> Scored:
        return runs[name].scored(row.scores(name, seed))

    held = [scored(name) for name in row.calibration]
    held[1:] = [x[np.arange(len(x.mask)) >= len(x.mask) // 2] for x in held[1:]]
    failed = [runs[name].failed for name in row.calibration]
    failed[1:] = [f[len(f) // 2 :] for f in failed[1:]]
    width = max(x.mask.shape[1] for x in held)

    def stacked(field: str) -> np.ndarray:
        rows = [getattr(x, field) for x in held]
        return np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1]))) for r in rows])

    def limit(good: np.ndarray) -> Any:
        return calibrate(
            stacked("scores"),
            stacked("mask"),
            good,
            config.alpha,
            band="constant",
            confidence=config.confidence,
        )

    bad = np.concatenate(failed)
    unsound, fails = limit(np.ones(len(bad), bool)), limit(~bad)
    clean = scored("test/clean")
    alarms = clean.alarms(unsound)
    merged: dict[str, list[tuple[str, np.ndarray]]] = {}
    for group, name, rows in groups(runs):
        if group in MIXTURES or seed == row.seeds[0]:
            merged.setdefault(group, []).append((name, rows))
    by_group = {}
    for group, pieces in merged.items():
        pairs = [scored(name)[rows] for name, rows in pieces]
        by_group[group] = detection(together(pairs), clean, unsound)
    return {
        "inputs": {
            "clean": {
                "alarmed": int(alarms.any(1).sum()),
                "n": len(alarms),
                "alarms_per_episode": float(alarms.sum(1).mean()),
            },
            "faults": by_group,
        },
        "failure": {
            name: failure(scored(f"test/{name}"), runs[f"test/{name}"].failed, fails)
            for name in ("clean", "board")
        },
    }


def _write(out: Path, results: Mapping[str, Any]) -> None:
    """Four decimals, a line for each row."""
    rounded = json.loads(json.dumps(results), parse_float=lambda x: round(float(x), 4))
    rows = rounded.pop("rows")
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    rest = json.dumps(rounded, indent=1)[:-2] + "," if rounded else "{"
    out.write_text(rest + '\n "rows": {\n' + ",\n".join(lines) + "\n }\n}\n")


def main(config: Config) -> dict[str, Any]:
    """Measures what is missing, and writes it."""
    both = {grounding: Recordings(config, grounding) for grounding in (False, True)}
    rows = detectors(both[False], both[True])
    if unknown := [name for name in config.only if name not in rows]:
        raise ValueError(f"no rows {unknown}: choose among {', '.join(rows)}.")
    results: dict[str, Any] = {"rows": {}}
    if config.out.exists():
        results = json.loads(config.out.read_text())
    for name in config.only or rows:
        row = rows[name]
        runs = both["GUARD" in name]
        found = results["rows"].setdefault(name, {}).setdefault("seeds", {})
        for seed in row.seeds:
            if str(seed) not in found:
                found[str(seed)] = measure(config, row, runs, seed)
                _write(config.out, results)
        results["rows"][name] |= {"question": row.question, "fitted_to": row.fitted_to}
        law = coverage_law(600, config.alpha, confidence=config.confidence)
        results |= {
            "command": "python -m experiments.studies.faults.detectors",
            "law": {"low": 1 - law.high, "high": 1 - law.low, "mean": 1 - law.mean},
        }
        results["rows"] = {k: results["rows"][k] for k in rows if k in results["rows"]}
        _write(config.out, results)
        clean = [f["inputs"]["clean"]["alarmed"] for f in found.values()]
        areas = [f["inputs"]["faults"]["board"]["auc_per_timestep"] for f in found.values()]
        print(name, "clean alarms", clean, "AUC per timestep", np.round(areas, 3), flush=True)
    return results


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

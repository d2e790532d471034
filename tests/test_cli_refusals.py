"""A user's mistake is one sentence and exit code 2, in every subcommand and option; what was on the
disk before is there after, and nothing more.

`COMMANDS` holds a command line of each subcommand that would work, and for each of its arguments
values that cannot. Each is tried in place of the right one; the quick part takes a few of each
kind. What is said is compared with `goldens/refusals.txt`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import re
import shutil
import typing
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as safetensors

from mistjax import cli
from mistjax.demo import SHIPPED
from mistjax.policies import load
from mistjax.rollouts import EpisodePlan, RunWriter, Trace
from mistjax.rollouts.plan import RunOptions
from mistjax.serve.settings import Settings
from mistjax.tracking import Trackers

SENTENCES = Path(__file__).parent / "goldens" / "refusals.txt"
TAPS = ("action.resid@-1/action/mean", "vlm.resid@all/image/mean")
CONFIG = {
    "policy": "p",
    "policy_fingerprint": "f",
    "env_id": "Toy-v0",
    "execute_steps": 2,
    "perturbation": {},
    "taps": TAPS,
}

WHOLE = ("many", "1.5", "nan", "-1")
CHANCE = ("many", "nan", "inf", "-0.1", "0", "1", "2")
POSITIVE = (*WHOLE, "0")
RUN = (
    "{missing}",
    "{file}",
    "{empty}",
    "{foreign}",
    "{run:empty}",
    "{run:run.json cut}",
    "{run:run.json newer}",
    "{run:run.json nan}",
    "{run:table cut}",
    "{run:table empty}",
    "{run:trace cut}",
    "{run:trace gone}",
    "{run:trace of another}",
)
NO_CHECKPOINT = (
    "{missing}", "{file}", "{empty}", "{foreign}", "{run}", "{policy:config cut}",
    "{policy:config a list}", "ftp://x", "gs://x", "hf://x", "",
)  # fmt: skip
CHECKPOINT = (
    *NO_CHECKPOINT, "{policy:stats cut}", "{policy:stats pointer}", "{policy:params gone}",
    "{policy:params empty}", "{policy:tokenizer cut}",
)  # fmt: skip
DETECTOR = (
    "{missing}", "{file}", "{empty}", "{foreign}", "{detector:json cut}", "{detector:json newer}",
    "{detector:json a list}", "{detector:class}", "{detector:array gone}",
    "{detector:tensors cut}", "{detector:tensors gone}", "{detector:tensors of another}",
)  # fmt: skip
NEW_FOLDER = ("{file}", "{file}/below", "{file}/below/further")
NEW_RUN = (*NEW_FOLDER, "{foreign}")
NEW_FILE = ("{foreign}", "{file}/below.html")
PLAN = {
    "--episodes": (*POSITIVE, "3000000000"),
    "--first-seed": (*WHOLE, "2147483647"),
    "--perturbation": (
        "nope 0.5",
        "brightness",
        "brightness 1.5",
        "brightness nan",
        "brightness x",
    ),
    "--env": ("nope", "mistjax/Board-v99", "no.module:Env-v0", ""),
    "--suite": ("libero_table", ""),
    "--prompts": ("name", "text", "both", ""),
    "--tasks": ("1", "-1", "one"),
    "--videos": WHOLE,
    "--max-steps": POSITIVE,
    "--workers": WHOLE,
    "--num-envs": POSITIVE,
    "--executor": ("slurm", "ray --compiled"),
    "--retry-errors": ("maybe",),
    "--fault": ("nope 0.5", "front_dimmed", "front_dimmed 1.5", "front_dimmed nan"),
    "--faults": ("{missing}", "{file}", "{empty}", "nope", ""),
    "--fault-onset": (
        "5",
        "one two",
        "3 9",
        "-1 5 --fault front_dimmed 0.5",
        "9 3 --fault front_dimmed 0.5",
    ),
    "--sensor-noise": ("maybe",),
    "--compiled": ("maybe",),
    "--physics": ("newton", "mjx"),
    "--devices": (*POSITIVE, "2", "3 --compiled", "999 --compiled"),
    "--fsdp": (*POSITIVE, "2", "2 --compiled"),
}
TRACK = {"--wandb": ("",), "--tensorboard": NEW_FOLDER}
PRESET = ("hexapod", "")
UNNORM = ("nope",)
TAP = (
    "nonsense",
    "vlm.nowhere",
    "vlm.resid@99/text/mean",
    "vlm.resid@0/text/sum",
    "nostack.resid@0/all/mean",
    "vlm.nopoint@0/all/mean",
    "vlm.resid@0/nowhere/mean",
    "vlm.resid@one/all/mean",
    "",
)

SERVED = {
    0: CHECKPOINT,
    "--mist": (*DETECTOR, "{detector}"),
    "--out": NEW_FOLDER,
    "--shadow": ("maybe",),
    "--host": ("", "no.such.host.invalid"),
    "--port": (*WHOLE, "65536"),
    "--api-key": ("", "é"),
    "--max-batch": POSITIVE,
    "--batch-wait-ms": ("many", "nan", "-1", "9999"),
    "--deadline-ms": ("many", "nan", "inf", "0", "-5"),
    "--watchdog-ms": ("many", "nan", "inf", "0", "1"),
    "--fallback": ("last", ""),
    "--max-connections": POSITIVE,
    "--send-timeout-s": ("many", "nan", "inf", "0", "-5"),
    "--gate": ("{missing}", "{file}", "{empty}"),
    "--record": ("maybe",),
    "--rerun": ("", "http://127.0.0.1:9876", "rerun+http://127.0.0.1:9876", "{file}"),
    "--stratum": ("nope",),
    "--preset": PRESET,
    "--unnorm-key": UNNORM,
}

COMMANDS = {
    "demo": (
        "--out {out}",
        {
            "--out": NEW_FOLDER,
            "--episodes": POSITIVE,
            "--retry-errors": ("maybe",),
        },
    ),
    "collect": (
        "{policy} --out {out}",
        PLAN | {
            0: CHECKPOINT,
            "--out": (*NEW_RUN, "{run}", "{run:run.json cut}", "{run:table cut}"),
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
            "--taps": TAP,
            "--samples": POSITIVE,
            "--inputs": ("maybe",),
            "--reckoned": ("{missing} --inputs", "{file} --inputs", "{empty} --inputs", "{mist}"),
            "--sensitivity": ("maybe",),
            "--velocity": ("maybe",),
            "--grounding": ("maybe",),
            "--steer": ("a b", "{missing} up 1.0", "{mist} up 1.0", "{mist} up nan"),
            "--onset": WHOLE,
        },
    ),
    "merge": ("{run} --out {out}", {0: RUN, "--out": NEW_RUN}),
    "memory": ("{policy}", {0: NO_CHECKPOINT, "--taps": TAP, "--batch": POSITIVE}),
    "train-detector": (
        "{run} --out {out} --detector mahalanobis",
        {
            0: RUN,
            "--out": NEW_FOLDER,
            "--detector": ("nope", ""),
            "--features": TAP,
            "--steps": ("median",),
            "--pool": ("median", ""),
            "--sae": ("{missing}", "{file}", "{empty}", "{foreign}", "{detector}"),
            "--group": ("nope",),
            "--folds": ("1", "-1", "nan", "x"),
            "--seed": WHOLE,
            "--epochs": POSITIVE,
            "--networks": ("huge",),
            **TRACK,
        },
    ),
    "calibrate": (
        "{run:other} --detector {detector}",
        {
            0: RUN,
            "--detector": DETECTOR,
            "--alpha": CHANCE,
            "--confidence": CHANCE,
            "--band": ("round",),
            "--strata": ("nope",),
            "--group": ("nope",),
            "--seed": WHOLE,
        },
    ),
    "drift": (
        "{run:other} --detector {detector}",
        {
            0: RUN,
            "--detector": (*DETECTOR, "{detector:uncalibrated}"),
            "--stratum": ("nope",),
            "--delta": CHANCE,
        },
    ),
    "detect-bench": (
        "{run} --out {out} --detectors mahalanobis",
        {
            0: RUN,
            "--out": NEW_FOLDER,
            "--train": RUN,
            "--features": TAP,
            "--pool": ("median", ""),
            "--group": ("nope",),
            "--detectors": ("nope",),
            "--seed": WHOLE,
            "--alpha": CHANCE,
            "--band": ("round",),
            "--epochs": POSITIVE,
            "--networks": ("large",),
        },
    ),
    "import-safe": (
        "{safe} --out {out}",
        {
            0: ("{missing}", "{file}", "{empty}", "{foreign}", "{run}"),
            "--out": NEW_RUN,
            "--policy": (),
            "--pool": ("median",),
        },
    ),
    "export-safe": (
        "{run} --out {out} --feature " + TAPS[0],
        {
            0: RUN,
            "--out": (*NEW_FOLDER, "{foreign}"),
            "--feature": ("nope", ""),
            "--layout": ("gr00t",),
        },
    ),
    "words": (
        "{policy} --out {out}.html",
        {
            0: CHECKPOINT,
            "--run": (*RUN, "{run}"),
            "--stack": ("vision", "nope", ""),
            "--top": (*POSITIVE, "100000"),
            "--clusters": (*WHOLE, "100000"),
            "--concepts": ("up", "up wordwhichisnone", "up ,"),
            "--doses": ("many",),
            "--controls": POSITIVE,
            "--scenes": (*POSITIVE, "1"),
            "--statistics": ("torque",),
            "--seed": WHOLE,
            "--out": NEW_FILE,
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
    "train-sae": (
        "{run} --policy {policy} --tap " + TAPS[0] + " --out {out}",
        {
            0: RUN,
            "--policy": CHECKPOINT,
            "--tap": (*TAP, TAPS[0]),
            "--out": NEW_FOLDER,
            "--features": POSITIVE,
            "--k": POSITIVE,
            "--epochs": POSITIVE,
            "--batch": POSITIVE,
            "--learning-rate": ("many", "nan", "-1", "0"),
            "--cards": POSITIVE,
            "--episodes": WHOLE,
            "--first-seed": WHOLE,
            "--seed": WHOLE,
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
            **TRACK,
        },
    ),
    "vectors": (
        "{policy} --out {out}",
        {
            0: CHECKPOINT,
            "--out": NEW_FOLDER,
            "--run": (*RUN, "{run}"),
            "--concepts": ("up", "up wordwhichisnone", "up ,"),
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
    "remedy": (
        "{mist}",
        {
            0: ("{missing}", "{file}", "{empty}", "{foreign}", "{run}"),
            "--strengths": ("many", "nan", "inf", ""),
            "--cap": ("many", "nan", "inf", "-0.1", "2"),
            "--weight": ("many", "nan", "inf", "-0.1", "2"),
            "--method": ("guess", ""),
        },
    ),
    "explain": (
        "{run} --policy {policy} --detector {mist} --seed 0 --out {out}.html",
        {
            0: RUN,
            "--policy": CHECKPOINT,
            "--detector": (*DETECTOR, "{detector}", "{detector:uncalibrated}"),
            "--seed": (*WHOLE, "99"),
            "--inference": (*WHOLE, "99"),
            "--method": ("guess", "iss iss", "iss guess"),
            "--of": ("guess", "", "prompt"),
            "--prompt": ("move",),
            "--memory": POSITIVE,
            "--out": NEW_FILE,
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
    "nmr": (
        "{run} --policy {policy}",
        {
            0: RUN,
            "--policy": CHECKPOINT,
            "--method": ("guess", ""),
            "--of": ("guess", "", "score", "prompt"),
            "--top": ("many", "nan", "inf", "-0.1", "0", "2"),
            "--moments": POSITIVE,
            "--episodes": POSITIVE,
            "--out": ("{file}/below.json",),
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
    "patch": (
        "{run} --policy {policy} --seed 0 --out {out}.html",
        {
            0: RUN,
            "--policy": CHECKPOINT,
            "--seed": (*WHOLE, "99"),
            "--inference": (*WHOLE, "99"),
            "--corrupt": ("guess", ""),
            "--prompt": (),
            "--restore": ("guess", "heads heads", ""),
            "--chunk": POSITIVE,
            "--out": NEW_FILE,
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
    "eval": (
        "--policy {policy} --out {out} --mist {mist} --arms bare monitor",
        PLAN | {
            "--policy": CHECKPOINT,
            "--out": NEW_FOLDER,
            "--mist": (*DETECTOR, "{detector}"),
            "--arms": ("best", "bare bare", ""),
            "--mask-words": ("", "stone,", "stone stone", "stone --compiled"),
            "--stratum": ("nope",),
            "--delay": (*WHOLE, "2", "1001 --strategy naive"),
            "--strategy": ("soon", ""),
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
    "study": (
        "full_mist --out {out} --episodes 2 --policy {policy} --mist {mist} --robust {policy} "
        "--robust-mist {mist} --arms bare mist robust robust_mist --conditions nominal",
        {
            0: ("nope", ""),
            "--out": NEW_FOLDER,
            "--episodes": PLAN["--episodes"],
            "--first-seed": (*WHOLE, "2147483647", "22500000"),
            "--policy": CHECKPOINT,
            "--mist": (*DETECTOR, "{detector}"),
            "--arms": ("best", "bare bare", "mist bare", "bare always_nose", ""),
            "--conditions": ("nope", "nominal nominal", "state_scaled_2", "{empty}", "{file}", ""),
            "--sensor-noise": ("maybe",),
            "--robust": CHECKPOINT,
            "--robust-mist": DETECTOR,
            "--tuning": POSITIVE,
            "--preset": PRESET,
            "--suite": PLAN["--suite"],
            "--prompts": PLAN["--prompts"],
            "--tasks": ("0", "-1", "0.5"),
            "--videos": WHOLE,
            "--max-steps": POSITIVE,
            "--workers": WHOLE,
            "--num-envs": POSITIVE,
            "--executor": ("slurm", "ray --compiled"),
            "--retry-errors": ("maybe",),
            "--compiled": ("maybe",),
            "--physics": ("newton", "mjx"),
            "--devices": (*POSITIVE, "2"),
            "--fsdp": (*POSITIVE, "2"),
            **TRACK,
        },
    ),
    "report": ("{run} --out {out}.html", {0: RUN, 1: RUN, "--out": NEW_FILE}),
    "export-lerobot": (
        "{run} --out {out} --no-pictures --fps 5",
        {
            0: RUN,
            "--out": (*NEW_FOLDER, "{foreign}", "{empty}"),
            "--pictures": ("maybe",),
            "--fps": ("many", "nan", "inf", "0", "-5"),
        },
    ),
    "export-rerun": (
        "{run} --out {out}",
        {0: RUN, "--out": NEW_FOLDER, "--seed": (*WHOLE, "7"), "--beside": RUN},
    ),
    "fetch": ("{policy}", {0: ("{missing}", "ftp://x", "gs://x", "hf://x", "hf://a/b/../c@1", "")}),
    "libero-pro": ("", {"--wheel": ("{missing}", "{file}", "{empty}")}),
    "export-checkpoint": (
        "{policy} --out {out}",
        {
            0: CHECKPOINT,
            "--out": (*NEW_FOLDER, "{policy}"),
            "--tree": ("opt_state", "ema_params", ""),
            "--preset": PRESET,
        },
    ),
    "conformance": (
        "",
        {
            0: ("{missing}", "{file}", "{empty}", "{npz}", "{npz:cut}", "{npz:alone}"),
            "--safe": ("{missing}", "{empty}", "{file}", "{empty} {npz}"),
            "--openvla": ("{missing}", "{empty}", "{file}"),
            "--atol": ("many {npz}", "nan {npz}", "inf {npz}", "-1 {npz}"),
            "--record": tuple(
                f"{source} {{missing}}.npz"
                for source in (*NO_CHECKPOINT, "{policy:params gone}", "{policy:params empty}")
            ),
        },
    ),
    "serve": (
        "{policy} --mist {mist} --out {out} --port 0 --max-batch 1",
        SERVED,
    ),
    "certify": (
        "{policy} --mist {mist} --out {out} --requests 2",
        SERVED | {
            "--host": ("",),  # it is not listened on
            "--requests": POSITIVE,
            "--slack-ms": ("many", "nan", "inf", "-1"),
            "--observations": ("{missing}", "{file}", "{empty}"),
        },
    ),
    "doctor": ("", {0: ("coffee", "libero coffee", "")}),
    "cite": ("", {0: ("nowhere", "")}),
    "fit-inputs": (
        "{run} --policy {policy} --calibration {run:other} --out {out}",
        {
            0: RUN,
            "--policy": CHECKPOINT,
            "--calibration": RUN,
            "--out": NEW_FOLDER,
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
            "--alpha": CHANCE,
            "--confidence": CHANCE,
        },
    ),
    "fit-reckoning": (
        "{run} --policy {policy} --out {out}",
        {
            0: RUN,
            "--policy": CHECKPOINT,
            "--out": (*NEW_FOLDER, "{empty}"),
            "--reckoned": RUN,
            "--seed": WHOLE,
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
    "fit-remedies": (
        "{run} --policy {policy} --out {out}",
        {
            0: RUN,
            "--policy": CHECKPOINT,
            "--out": (*NEW_FOLDER, "{empty}"),
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
    "fit-elites": (
        "{run} --policy {policy} --out {out}",
        {
            0: RUN,
            "--policy": CHECKPOINT,
            "--out": NEW_FOLDER,
            "--size": (*POSITIVE, "1"),
            "--tolerance": ("many", "nan", "-1", "1.5"),
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
    "fit-feedback": (
        "{run} --policy {policy} --out {mist}",
        {
            0: RUN,
            "--policy": CHECKPOINT,
            "--out": (*NEW_FOLDER, "{empty}"),
            "--direction": ("nope", ""),
            "--effort": ("many", "nan", "-1", "0"),
            "--episodes": POSITIVE,
            "--inferences": POSITIVE,
            "--seed": WHOLE,
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
    "fit-imputer": (
        "{run} --policy {policy} --out {out}",
        {
            0: RUN,
            "--policy": CHECKPOINT,
            "--out": (*NEW_FOLDER, "{empty}"),
            "--cap": ("many", "nan", "inf", "-0.1", "2"),
            "--patience": POSITIVE,
            "--budget": POSITIVE,
            "--components": POSITIVE,
            "--hidden": POSITIVE,
            "--steps": POSITIVE,
            "--seed": WHOLE,
            "--preset": PRESET,
            "--unnorm-key": UNNORM,
        },
    ),
}  # fmt: skip


def episode(seed, fingerprint="f", steps=4):
    rng = np.random.default_rng(seed)
    success = seed % 2 == 0
    return Trace(
        seed=seed,
        env_id="Toy-v0",
        task="t",
        prompt="do it",
        policy="p",
        policy_fingerprint=fingerprint,
        success=success,
        state=rng.normal(size=(2 * steps, 5)).astype(np.float32),
        actions=rng.normal(size=(2 * steps, 4)).astype(np.float32),
        chunks=rng.normal(size=(steps, 8, 4)).astype(np.float32),
        inference_step=np.arange(steps, dtype=np.int32) * 2,
        timings_ms=np.ones(steps, np.float32),
        features={
            TAPS[0]: (rng.normal(size=(steps, 3, 1, 6)) + success).astype(np.float32),
            TAPS[1]: (rng.normal(size=(steps, 2, 6)) + success).astype(np.float32),
        },
    )


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_array(folder):
    arrays = safetensors.load((folder / "detector.safetensors").read_bytes())
    edit(folder / "detector.json", files=None)
    card = json.loads((folder / "detector.json").read_text())
    del card["files"]
    (folder / "detector.json").write_text(json.dumps(card))
    del arrays[min(arrays)]
    (folder / "detector.safetensors").write_bytes(safetensors.save(arrays))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
STATS = "assets/board/norm_stats.json"
DAMAGE = {
    "run": {
        "empty": lambda f: [shutil.rmtree(f / "traces"), (f / "episodes.parquet").unlink()],
        "run.json cut": lambda f: cut(f / "run.json"),
        "run.json newer": lambda f: edit(f / "run.json", format=99),
        "run.json nan": lambda f: (f / "run.json").write_text('{"format": NaN}'),
        "table cut": lambda f: cut(f / "episodes.parquet"),
        "table empty": lambda f: (f / "episodes.parquet").write_bytes(b""),
        "trace cut": lambda f: cut(f / "traces/000000.safetensors"),
        "trace gone": lambda f: (f / "traces/000000.safetensors").unlink(),
        "trace of another": lambda f: shutil.copy(
            SHIPPED / "board_mist" / "detector.safetensors", f / "traces/000000.safetensors"
        ),
    },
    "policy": {
        "config cut": lambda f: cut(f / "config.json"),
        "config a list": lambda f: (f / "config.json").write_text("[]"),
        "stats cut": lambda f: cut(f / STATS),
        "stats pointer": lambda f: (f / STATS).write_text(POINTER),
        "params gone": lambda f: shutil.rmtree(f / "params"),
        "params empty": lambda f: [shutil.rmtree(f / "params"), (f / "params").mkdir()],
        "tokenizer cut": lambda f: cut(f / "assets/tokenizer.model"),
    },
    "detector": {
        "json cut": lambda f: cut(f / "detector.json"),
        "json newer": lambda f: edit(f / "detector.json", version=99),
        "json a list": lambda f: (f / "detector.json").write_text("[]"),
        "class": lambda f: edit(f / "detector.json", detector={"class": "Popen", "fields": {}}),
        "array gone": without_array,
        "tensors cut": lambda f: cut(f / "detector.safetensors"),
        "tensors gone": lambda f: (f / "detector.safetensors").unlink(),
        "tensors of another": lambda f: shutil.copy(
            SHIPPED / "board_mist" / "steering.safetensors", f / "detector.safetensors"
        ),
    },
    "npz": {
        "cut": lambda f: cut(f),
        "alone": lambda f: f.with_suffix(".json").unlink(),
    },
}  # fmt: skip


class World:
    """What the commands are pointed at; `{policy:stats cut}` is a copy of `policy`, damaged."""

    def __init__(self, root: Path):
        self.root = root
        self._places = {"policy": SHIPPED / "board_pi0", "mist": root / "mist"}
        for name in ("missing", "file", "empty", "foreign", "run", "detector", "out", "safe"):
            self._places[name] = root / name
        shutil.copytree(SHIPPED / "board_mist", root / "mist")
        (root / "file").write_text("just a file")
        (root / "empty").mkdir()
        (root / "safe").mkdir()
        (root / "safe" / "task0--ep0--succ1.pkl").write_bytes(b"never read")
        (root / "foreign").mkdir()
        (root / "foreign" / "thesis.tex").write_text("...")
        self._record(root / "run", range(12))
        self._record(root / "run:other", range(20, 32))
        trained = ["train-detector", str(root / "run"), "--detector", "mahalanobis", "--out"]
        assert cli.main([*trained, str(root / "detector")]) == 0
        shutil.copytree(root / "detector", root / "detector:uncalibrated")
        calibrated = ["calibrate", str(root / "run:other"), "--alpha", "0.3", "--detector"]
        assert cli.main([*calibrated, str(root / "detector")]) == 0
        np.savez(root / "npz", a=np.zeros(3))
        (root / "npz.json").write_text("{}")
        self._places["npz"] = root / "npz.npz"

    @staticmethod
    def _record(folder, seeds):
        with RunWriter.open(folder, CONFIG) as writer:
            for seed in seeds:
                writer.add(episode(seed))

    def __call__(self, word: str) -> str:
        """A word of a command line, its place filled in."""
        name, _, rest = word[1:].partition("}")
        return f"{self._place(name)}{rest}" if word.startswith("{") else word

    def _place(self, name: str) -> Path:
        kind, _, damage = name.partition(":")
        place = self.root / name.replace(" ", "_")
        if damage and not place.exists():
            original = self._places[kind]
            if original.is_dir():
                shutil.copytree(original, place)
            else:
                shutil.copy(original, place)
                shutil.copy(original.with_suffix(".json"), place.with_suffix(".json"))
            DAMAGE[kind][damage](place)
        return place if damage else self._places[name]

    def plain(self, said: str) -> str:
        """A sentence without the machine and the Python that it was said on."""
        places = {str(self.root): "ROOT", str(SHIPPED): "CHECKPOINTS", str(Path.cwd()): "HERE"}
        for place, name in places.items():
            said = said.replace(place, name)
        said = re.sub(r"(not JSON, or was cut off) \(.*\)", r"\1 (...)", said)  # Python's words
        return " ".join(said.removeprefix("mistjax: ").split())

    def state(self) -> dict[str, tuple[int, int]]:
        """Everything there is, with size and time of change."""
        found = {}
        for folder, _, files in os.walk(self.root):
            found[folder] = (0, 0)
            for name in files:
                stat = os.stat(path := f"{folder}/{name}")
                found[path] = (stat.st_size, stat.st_mtime_ns)
        return found

    @staticmethod
    def remove_what_is_new(before, after):
        for path in sorted(after.keys() - before.keys(), reverse=True):
            os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A policy is read from disk once."""
    monkeypatch.setattr(load, "load_policy", LOAD)


LOAD = functools.lru_cache(maxsize=None)(load.load_policy)


@pytest.fixture(scope="module")
def written():
    """The sentences that are written down; with `REFUSALS=update` and `-n 0` the file gets those
    that it lacks.
    """
    sentences = set(SENTENCES.read_text().splitlines())
    known = len(sentences)
    yield sentences
    if len(sentences) > known:
        SENTENCES.write_text("\n".join(sorted(sentences)) + "\n")


def check_written(said: str, sentences: set[str]) -> None:
    """That a sentence is written down, unless it is the parser's or says what is installed."""
    if said.endswith("--help") or "not installed" in said:
        return
    if os.environ.get("REFUSALS") == "update":
        sentences.add(said)
    assert said in sentences, f"run it with REFUSALS=update, and look at what {SENTENCES} gets"


def words_of(text: str) -> list[str]:
    """The words of a command line; a place is one word."""
    return re.findall(r"(?:\{[^}]*\}|\S)+", text) or [""]


def spelled(command: str, argument: int | str, value: str) -> list[str]:
    """The working command line with another value of one argument."""
    words = re.findall(r"(?:\{[^}]*\}|\S)+", COMMANDS[command][0])
    if isinstance(argument, int):
        replaced = len(words) > argument and not words[argument].startswith("--")
        return [*words[:argument], *words_of(value), *words[argument + replaced :]]
    if argument in words:
        start = words.index(argument)
        ends = [i for i in range(start + 1, len(words)) if words[i].startswith("--")]
        del words[start : ends[0] if ends else None]
    return [*words, argument, *words_of(value)]


def cases():
    """All of them; the quick part tries two values of each argument, other ones in each command."""
    for number, (command, (_, arguments)) in enumerate(COMMANDS.items()):
        for argument, values in arguments.items():
            n = max(len(values), 1)
            quick = {number % n, (number + n // 2) % n}
            for i, value in enumerate(values):
                marks = [] if i in quick else [pytest.mark.slow]
                name = f"{command} {argument} {value}"
                yield pytest.param(command, argument, value, id=name, marks=marks)


@pytest.mark.parametrize("command, argument, value", [*cases()])
def test_a_wrong_argument_is_refused_in_one_sentence(
    command, argument, value, world, written, capsys
):
    words = [command, *map(world, spelled(command, argument, value))]
    before = world.state()
    try:
        code = cli.main(words)
    except SystemExit as end:
        code = end.code
    finally:
        after = world.state()
        world.remove_what_is_new(before, after)
    told = capsys.readouterr()
    assert code == 2, f"exit code {code}\n{told.out}{told.err}"
    lines = [line for line in told.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("mistjax: "), told.err
    assert "Traceback" not in told.err + told.out
    assert after == before
    check_written(world.plain(lines[0]), written)


GROUPS = {EpisodePlan, RunOptions, Settings, Trackers}  # their fields are options


def test_every_argument_of_every_subcommand_is_tried():
    assert COMMANDS.keys() == cli.COMMANDS.keys()
    for command, function in cli.COMMANDS.items():
        names = []
        types = typing.get_type_hints(function)
        for name, parameter in inspect.signature(function).parameters.items():
            if types[name] in GROUPS:
                names += [field.name for field in dataclasses.fields(types[name])]
            elif parameter.kind == inspect.Parameter.POSITIONAL_ONLY:
                names.append(sum(isinstance(n, int) for n in names))
            else:
                names.append(name)
        spelled_names = [n if isinstance(n, int) else f"--{n.replace('_', '-')}" for n in names]
        tried = set(COMMANDS[command][1])
        if command == "eval":
            tried.add(0)  # the same as --policy
        if command == "cite":
            spelled_names = [0]
        assert set(spelled_names) == tried, command

"""Every reader of a file format as a target: whole files of that format, and how one is read.

A reader ends in a value, or in a ValueError or FileNotFoundError that names the file.
"""

import dataclasses
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from mistjax.detect.artifact import load_detector, read_card
from mistjax.envs.libero.init_states import read_init_states
from mistjax.envs.libero.suites import published
from mistjax.files import read_json, read_tensors
from mistjax.hooks.sites import TokenLayout
from mistjax.models.checkpoints import read_config
from mistjax.models.config import FastConfig, Pi0Config
from mistjax.models.fast_tokenizer import ActionTokenizer
from mistjax.models.normalize import load_norm_stats
from mistjax.models.transforms import flatten
from mistjax.policies.protocol import PolicySpec, StackSpec
from mistjax.recover.artifact import load_remedy
from mistjax.rollouts.formats.safe import pickles, reading
from mistjax.rollouts.run import load_run
from mistjax.rollouts.store import RunWriter
from mistjax.rollouts.trace import Trace
from mistjax.serve.frames import pack, unpack
from mistjax.serve.session import Control
from mistjax.steer.artifact import load_steering
from mistjax.untrusted import reading as named
from tests.envs.libero.conftest import TEXT
from tests.fuzz import mutations

SHIPPED = Path(__file__).parents[2] / "checkpoints"


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        file: where the file lies in the folder.
        read: the folder -> anything.
        wholes: makes the folder around the file, and gives whole ones.
        structure: what mutations keep besides those of bytes.
    """

    file: str
    read: Callable[[Path], Any]
    wholes: Callable[[Path], list[bytes]]
    structure: Callable[[bytes, random.Random], bytes] | None = None

    def mutated(self, wholes: list[bytes], rng: random.Random) -> bytes:
        """A whole file, changed."""
        data = rng.choice(wholes)
        if self.structure is not None and rng.random() < 0.7:
            return self.structure(data, rng)
        return mutations.of_bytes(data, rng.choice(wholes), rng)

    def check(self, folder: Path, data: bytes) -> bool:
        """Whether a file of that content comes to a value; raises what a reader must not."""
        (folder / self.file).write_bytes(data)
        try:
            self.read(folder)
        except (ValueError, FileNotFoundError) as error:
            if Path(self.file).name not in str(error) and str(folder) not in str(error):
                raise AssertionError(f"an error that names no file: {error}") from error
            return False
        return True


class _Call:
    """Pickles as a call of anything."""

    def __init__(self, *parts: Any):
        self.parts = parts

    def __reduce__(self) -> Any:
        return self.parts


def _pickles(folder: Path) -> list[bytes]:
    arrays = [np.ones((2, 3), np.float32), np.arange(4).astype(ml_dtypes.bfloat16), np.array(True)]
    values = {
        "a": arrays,
        "b": [1, -2.5, None, "text", b"bytes", (True, 2**60)],
        "c": np.float64(1),
    }
    values["d"] = np.array(["ab", "c"])
    evil = _Call(print, ("run",))
    return [pickle.dumps(v, p) for p in range(6) for v in (values, [arrays[0]] * 2, evil)]


def _init_states(folder: Path) -> list[bytes]:
    wholes = []
    for protocol in (2, 3):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(np.ones((2, 3)), protocol))
        wholes.append(file.getvalue())
    return wholes


def _trace(seed: int) -> Trace:
    return Trace(
        seed=seed,
        env_id="env",
        task="task",
        prompt="prompt",
        policy="p",
        policy_fingerprint="f",
        success=True,
        state=np.zeros((4, 2), np.float32),
        actions=np.zeros((4, 3), np.float32),
        chunks=np.zeros((2, 2, 3), np.float32),
        inference_step=np.array([0, 2], np.int32),
        timings_ms=np.ones(2, np.float32),
        features={"vlm.resid@-1/text/mean": np.ones((2, 1, 4), np.float32)},
        alarm=np.array([False, True]),
    )


def _run(folder: Path) -> Path:
    with RunWriter.open(folder / "run", {"policy": "p", "taps": []}) as writer:
        for seed in range(3):
            writer.add(_trace(seed))
    return folder / "run"


def _run_file(name: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [(_run(folder) / name).read_bytes()]


def _run_table(folder: Path) -> list[bytes]:
    whole = _run(folder) / "episodes.parquet"
    wholes = [whole.read_bytes()]
    for options in ({"compression": "none"}, {"compression": "zstd"}, {"use_dictionary": False}):
        file = io.BytesIO()
        pq.write_table(pq.read_table(whole), file, **options)
        wholes.append(file.getvalue())
    file = io.BytesIO()
    pq.write_table(pa.table({"seed": ["x"]}), file)
    return [*wholes, file.getvalue()]


def _run_trace(folder: Path) -> list[bytes]:
    run = _run(folder)
    (run / "episodes.parquet").unlink()
    return [(run / "traces" / "000000.safetensors").read_bytes()]


def _read_run(folder: Path) -> None:
    for trace in load_run(folder / "run").traces():
        trace.row()


def _copied(*names: str, drop: str | None = None) -> Callable[[Path], list[bytes]]:
    """The shipped files beside one another; their digests would refuse any change at once."""

    def make(folder: Path) -> list[bytes]:
        for name in names:
            (folder / Path(name).name).write_bytes((SHIPPED / name).read_bytes())
        if drop is not None:
            card = json.loads((folder / drop).read_text())
            card.pop("files", None)
            (folder / drop).write_text(json.dumps(card))
        return [(folder / Path(names[0]).name).read_bytes()]

    return make


MONITOR = "board_mist/"
POLICY = read_card(SHIPPED / MONITOR)["policy"]


def _spec() -> PolicySpec:
    fingerprint = read_json(SHIPPED / MONITOR / "steering.json")["policy"]
    arrays = read_tensors(SHIPPED / MONITOR / "steering.safetensors")
    layout = TokenLayout(8, {name: (0, 8) for name in ("all", "image", "text", "state", "action")})
    stacks = {}
    for stack, name in (
        ("vlm", "slowly"),
        ("action", "success@action.resid"),
        ("vision", "look, mean"),
    ):
        depth, width = arrays[f"{name}/direction"].shape
        stacks[stack] = StackSpec(depth, width, width, 4, width // 4, layout)
    return PolicySpec(
        *("board", fingerprint, 4, 8, 4, ("dx", "dy", "dz", "gripper"), (-1.0,) * 4, (1.0,) * 4, 3),
        *((1.0,) * 4, {}, stacks, 10),
    )


SPEC = _spec()


def _csv(folder: Path) -> list[bytes]:
    header = ",".join(f"action/{name}" for name in (*reading.ACTIONS, "token_0_prob"))
    return [(header + "\n" + "0,0.5,1,0,0,0,1,0.9\n" * 4).encode()]


def _read_csv(folder: Path) -> None:
    with named(folder / "a.csv", "a table"):  # as an episode's reader does
        reading._columns(folder / "a.csv", 4)


def _read_openvla(folder: Path) -> None:
    from interop.openvla.folder import load_config

    load_config(folder)


def _read_index(folder: Path) -> None:
    from interop.openvla import checkpoints

    checkpoints._stored(checkpoints._files(folder))


def _read_npz(folder: Path) -> None:
    from mistjax.untrusted import read_npz

    read_npz(folder / "a.npz")


def _npz(folder: Path) -> list[bytes]:
    wholes = []
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        write(file, a=np.ones((2, 3)), b=np.array(["x"]), c=np.array([True]))
        wholes.append(file.getvalue())
    return wholes


_OPENVLA = ("config.json", "dataset_statistics.json")
_bytes, _json, _header = None, mutations.of_json, mutations.of_safetensors


def _frames(folder: Path) -> list[bytes]:
    picture, state = np.zeros((4, 4, 3), np.uint8), np.ones(5, np.float32)
    look = {"observation/image": picture, "observation/state": state, "prompt": "go"}
    values = [
        look,
        {"observation": {"image": picture, "state": state}, "mist/reset": True, "mist/seed": 7},
        {"x": np.float32(1), "b": np.array([True]), "t": np.array(["ab"]), "e": np.zeros((0, 3))},
        {"mist/episode": "a", "mist/success": np.bool_(True), "mist/pass_through": False},
        [1, -2.5, None, b"bytes", [[]], {}],
    ]
    return [pack(value) for value in values]


def _frame(data: bytes, rng: random.Random) -> bytes:
    """One value of an array's description, or of the map around it, replaced."""
    odd = [None, True, -1, 2**63, 1.5, float("nan"), "", "O", "|O8", "V4", "<f4", "(9,9)f8", b"",
           b"\x02", [], [0], [-1], [2**40, 0], [2**20] * 4, [[1]], {}, {"": 1}]  # fmt: skip
    value = msgpack.unpackb(data, strict_map_key=False)
    maps: list[Any] = []

    def walk(part: Any) -> None:
        if isinstance(part, dict | list):
            maps.append(part)
            for inner in part.values() if isinstance(part, dict) else part:
                walk(inner)

    walk(value)
    part = rng.choice(maps)
    if not part:
        return msgpack.packb(rng.choice(odd))
    key = rng.choice(list(part) if isinstance(part, dict) else range(len(part)))
    if isinstance(part, dict) and rng.random() < 0.2:
        part[rng.choice(["mist/reset", "mist/x", 3, b"dtype", b"__ndarray__"])] = part.pop(key)
    else:
        part[key] = rng.choice(odd)
    return msgpack.packb(value)


def _read_frame(folder: Path) -> Any:
    """As a server does before it looks at an observation."""
    try:
        _, raw = Control.split(unpack((folder / "a.frame").read_bytes()))
        return flatten(raw)
    except ValueError as error:
        if "\n" in str(error) or len(str(error)) > 400:
            raise AssertionError(f"an error that is no sentence: {error}") from error
        raise ValueError(f"a.frame: {error}") from None


TARGETS: dict[str, Target] = {
    "frames": Target("a.frame", _read_frame, _frames, _frame),
    "pickle": Target("a.pkl", lambda f: pickles.load(f / "a.pkl"), _pickles),
    "init_states": Target("a.init", lambda f: read_init_states(f / "a.init"), _init_states),
    "bddl": Target(
        "libero_object/a.bddl",
        lambda f: published(f / "libero_object"),
        lambda f: (f / "libero_object").mkdir() or [TEXT.encode()],
    ),
    "json": Target(
        "a.json",
        lambda f: read_json(f / "a.json"),
        lambda f: [b'{"a": [1, 2.5, null, "x"]}'],
        _json,
    ),
    "safetensors": Target(
        "a.safetensors",
        lambda f: read_tensors(f / "a.safetensors"),
        lambda f: [save({"a": np.ones((2, 3)), "b": np.array([True]), "c": np.zeros(0)})],
        _header,
    ),
    "npz": Target("a.npz", _read_npz, _npz),
    "run.json": Target("run/run.json", _read_run, _run_file("run.json"), _json),
    "run.parquet": Target("run/episodes.parquet", _read_run, _run_table),
    "run.trace": Target("run/traces/000000.safetensors", _read_run, _run_trace, _header),
    "detector.json": Target(
        "detector.json",
        lambda f: load_detector(f, POLICY),
        _copied(f"{MONITOR}detector.json", f"{MONITOR}detector.safetensors", drop="detector.json"),
        _json,
    ),
    "detector.safetensors": Target(
        "detector.safetensors",
        lambda f: load_detector(f, POLICY),
        _copied(f"{MONITOR}detector.safetensors", f"{MONITOR}detector.json", drop="detector.json"),
        _header,
    ),
    "steering.json": Target(
        "steering.json",
        lambda f: load_steering(f, SPEC),
        _copied(f"{MONITOR}steering.json", f"{MONITOR}steering.safetensors", drop="steering.json"),
        _json,
    ),
    "remedy.json": Target("remedy.json", load_remedy, _copied(f"{MONITOR}remedy.json"), _json),
    "norm_stats.json": Target(
        "norm_stats.json",
        lambda f: load_norm_stats(f / "norm_stats.json"),
        _copied("board_pi0/assets/board/norm_stats.json"),
        _json,
    ),
    "config.pi0": Target(
        "config.json", lambda f: read_config(f, Pi0Config), _copied("board_pi0/config.json"), _json
    ),
    "config.fast": Target(
        "config.json",
        lambda f: read_config(f, FastConfig),
        _copied("board_fast/config.json"),
        _json,
    ),
    "fast_tokenizer": Target(
        "processor_config.json",
        ActionTokenizer.load,
        _copied(
            *(f"board_fast/assets/fast/{n}" for n in ("processor_config.json", "tokenizer.json"))
        ),
        _json,
    ),
    "openvla.config": Target(
        "config.json", _read_openvla, _copied(*(f"board_openvla/{n}" for n in _OPENVLA)), _json
    ),
    "openvla.index": Target(
        "model.safetensors.index.json",
        _read_index,
        _copied(
            "board_openvla/model.safetensors.index.json",
            "board_openvla/model-00001-of-00002.safetensors",
            "board_openvla/model-00002-of-00002.safetensors",
        ),
        _json,
    ),
    "safe.csv": Target("a.csv", _read_csv, _csv),
}

"""`certify`: tries every promise of a server on this machine, and writes a certificate.

The server runs as `mistjax serve` would run it, on loopback. A client plays one episode and tries
every promise of `mistjax.serve.promises`, with the fault injected that would break it. The
certificate is of this machine, these settings and this policy; no robot is moved.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mistjax
from mistjax.envs.faults.make import make_faulty
from mistjax.files import atomic
from mistjax.models.transforms import flatten
from mistjax.policies.presets.base import RobotPreset
from mistjax.policies.presets.registry import BOARD
from mistjax.policies.protocol import Policy, RawObs
from mistjax.report.blocks import Facts, Table, Text
from mistjax.report.html import Section, write_report
from mistjax.rollouts.plan import BOARD_ENV, EpisodePlan
from mistjax.serve.breakable import Breakable
from mistjax.serve.lane import blank
from mistjax.serve.promises import OF_A_MONITOR, PROMISES, Found, Stage, infer, played
from mistjax.serve.server import serving
from mistjax.serve.service import Service
from mistjax.serve.settings import Settings

JSON, PAGE = "certificate.json", "certificate.html"
SEED = 29_000_000  # of the episode on the board
_LOOKS = 10
_PACKAGES = ("jax", "jaxlib", "numpy", "websockets", "msgpack")


@dataclasses.dataclass(frozen=True)
class Certificate:
    """The result of `certify`.

    Attributes:
        kept: whether every promise was shown to hold.
        promises: name -> result.
        latency_ms: path -> n, p50, p95, p99 and largest.
        about: policy, monitor, machine, versions and settings.
    """

    kept: bool
    promises: Mapping[str, Found]
    latency_ms: Mapping[str, Mapping[str, float]]
    about: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The content of the JSON file."""
        return dataclasses.asdict(self)


def certify(
    bare: Policy,
    monitored: Policy | None,
    settings: Settings,
    *,
    observations: Sequence[RawObs] | None = None,
    requests: int = 200,
    slack_ms: float = 100.0,
) -> Certificate:
    """Tries every promise, and writes certificate.json and certificate.html into `settings.out`.

    Args:
        bare: the policy.
        monitored: the same with its monitor; None tries only what holds without one.
        settings: the server's, but for address and port: it is tried on loopback.
        observations: those of an ordinary episode, in order; by default one on the board, and for
            other robots black pictures, at which a monitor of inputs is never quiet.
        requests: number of them for each path's latencies.
        slack_ms: how much later than promised a reply may come.

    Raises:
        ValueError: see `Service` and `Service.start`.
    """
    began = datetime.datetime.now(datetime.UTC)
    seen = list(observations) if observations is not None else ordinary(bare)
    host, settings = settings.host, dataclasses.replace(settings, host="127.0.0.1", port=0)
    broken = Breakable(bare), None if monitored is None else Breakable(monitored)
    service = Service(*broken, settings)
    try:
        service.start()
    except BaseException:
        service.close()
        raise
    looks = played(bare, seen, SEED)
    with serving(service) as server:
        assert server.port is not None
        stage = Stage(service, *broken, server.port, looks, SEED, host, slack_ms)
        latency = {"bare policy in process": _in_process(bare, seen, requests)}
        latency |= _served(stage, requests)
        found: dict[str, Found] = {}
        for name, trial in PROMISES.items():
            if monitored is None and name in OF_A_MONITOR:
                continue
            try:
                found[name] = trial(stage)
            except Exception as error:  # so the promise was not kept, whatever failed
                found[name] = Found(False, f"{type(error).__name__}: {str(error)[:200]}")
                stage.mend()
        latency |= stage.took_ms
    certificate = Certificate(
        all(f.holds for f in found.values()),
        found,
        {path: _percentiles(taken) for path, taken in latency.items()},
        _about(bare, monitored, settings, host, len(looks), observations is not None, began),
    )
    write(certificate, settings.out)
    return certificate


def ordinary(policy: Policy) -> list[RawObs]:
    """Observations of an ordinary episode: on the board, or black pictures for other robots."""
    if not _on_board(policy.preset):
        return [blank(policy.preset)] * _LOOKS
    mixture = EpisodePlan(sensor_noise=True).mixture()
    assert mixture is not None
    env = make_faulty(BOARD_ENV, mixture.to_json(), policy.spec.execute_steps)
    state, seen = policy.initial_state(1), []
    raw, _ = env.reset(seed=SEED)
    for i in range(_LOOKS):
        flat = {k: v for k, v in flatten(raw).items() if isinstance(v, np.ndarray | str)}
        seen.append(flat)
        actions, state = infer(policy, flat, SEED, i, state)
        for action in actions[: policy.spec.execute_steps]:
            raw, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.close()
                return seen
    env.close()
    return seen


def _on_board(preset: RobotPreset) -> bool:
    fields = ("cameras", "state_key", "state_dim", "action_names")
    return all(getattr(preset, name) == getattr(BOARD, name) for name in fields)


def read_observations(path: Path) -> list[RawObs]:
    """Observations from an .npz file: one array per key, all with time as the first axis.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not such a file, or its arrays differ in length.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: expected an .npz file of observations.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        lengths = {len(array) for array in arrays.values()}
    except Exception:
        raise ValueError(
            f"{path} is not an .npz file of observations: expected an array of numbers or text for "
            "each key."
        ) from None
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"{path} holds arrays of lengths {sorted(lengths)}: expected one length.")
    (length,) = lengths
    return [
        {k: str(a[i]) if a.dtype.kind in "US" else np.asarray(a[i]) for k, a in arrays.items()}
        for i in range(length)
    ]


def _in_process(policy: Policy, seen: Sequence[RawObs], requests: int) -> list[float]:
    """Milliseconds of the bare policy in process, from observation to actions."""
    taken = []
    for i in range(requests + 5):
        raw, start = seen[i % len(seen)], time.perf_counter()
        infer(policy, raw, 0, i, policy.initial_state(1))
        taken.append(1e3 * (time.perf_counter() - start))
    return taken[5:]


def _served(stage: Stage, requests: int) -> dict[str, list[float]]:
    """Milliseconds of round trips; the paths take turns."""
    paths = {"monitored" if stage.monitored else "bare": False, "pass-through": True}
    taken: dict[str, list[float]] = {path: [] for path in paths}
    clients = {path: stage.client() for path in paths}
    try:
        for path, off in paths.items():
            clients[path].infer({"mist/pass_through": off})
        for i in range(requests):
            for path, client in clients.items():
                start = time.perf_counter()
                stage.ask(client, i % len(stage.looks))
                taken[path].append(1e3 * (time.perf_counter() - start))
    finally:
        for client in clients.values():
            client.socket.close()
    return taken


def _percentiles(taken: Sequence[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(taken, (50, 95, 99))
    return {"n": len(taken), "p50": p50, "p95": p95, "p99": p99, "largest": max(taken)}


def _about(
    bare: Policy,
    monitored: Policy | None,
    settings: Settings,
    host: str,
    looks: int,
    given: bool,
    began: datetime.datetime,
) -> dict[str, Any]:
    device = jax.devices()[0]
    if given:
        what = "given"
    elif _on_board(bare.preset):
        what = "an episode of the board"
    else:
        what = "black pictures"
    secret = None if settings.api_key is None else "set"
    return {
        "policy": bare.spec.name,
        "policy_fingerprint": bare.spec.fingerprint,
        "monitored_fingerprint": None if monitored is None else monitored.spec.fingerprint,
        "robot": bare.preset.name,
        "parameters": int(bare.num_parameters),
        "observations": f"{looks}: {what}",
        "began": began.isoformat(timespec="seconds"),
        "seconds": (datetime.datetime.now(datetime.UTC) - began).total_seconds(),
        "machine": {
            "device": f"{device.platform} {device.device_kind}",
            "cpus": os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": {
            "mistjax": mistjax.__version__,
            "python": sys.version.split()[0],
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "settings": {
            **{k: v for k, v in dataclasses.asdict(settings).items() if k != "port"},
            "host": host,
            "api_key": secret,
            "gate": settings.gate and str(settings.gate),
            "out": str(settings.out),
        },
    }


def write(certificate: Certificate, out: Path) -> None:
    """Writes both files, each whole or not at all."""
    with atomic(out / JSON) as file:
        file.write_text(json.dumps(certificate.to_json(), indent=1) + "\n")
    about, latency = certificate.about, certificate.latency_ms
    held = [f for f in certificate.promises.values() if f.holds]
    path = "monitored" if "monitored" in latency else "bare"
    facts = {
        "verdict": (
            "kept" if certificate.kept else "not kept",
            f"{len(held)} of {len(certificate.promises)} promises shown",
        ),
        f"{path}, median": (f"{latency[path]['p50']:.1f} ms", f"n = {latency[path]['n']}"),
        f"{path}, 99th percentile": (
            f"{latency[path]['p99']:.1f} ms",
            f"deadline {about['settings']['deadline_ms']:g} ms",
        ),
    }
    promises = [
        {
            "promise": name,
            "": f.answer,
            "what is promised": (PROMISES[name].__doc__ or "").strip(),
            "what was seen": f.said,
        }
        for name, f in certificate.promises.items()
    ]
    times = [
        {
            "path": name,
            **{k: f"{v:.1f}" if k != "n" else str(v) for k, v in found.items()},
        }
        for name, found in latency.items()
    ]
    groups = {k: v for k, v in about.items() if isinstance(v, Mapping)}
    plain = {k: v for k, v in about.items() if k not in groups}
    sections = [
        Section("Verdict", [Text(_OF), Facts(facts)]),
        Section("Promises", [Table(promises)]),
        Section("Latencies", [Table(times, "From the request to the reply, ms. " + _PATHS)]),
        Section("Policy", [Table(_pairs(plain))]),
        *(Section(name.capitalize(), [Table(_pairs(group))]) for name, group in groups.items()),
    ]
    write_report(sections, out / PAGE, "Certificate", f"{about['policy']}, {about['began']}")


_OF = (
    "Each promise was tried on a running server, with the fault injected that would break it. The "
    "result is of this machine, this policy and these settings; no robot was moved."
)
_PATHS = (
    "Late replies are those while the monitor hangs: the first of them waits for the deadline. "
    "Fallbacks go out while the bare policy hangs too: each waits for the watchdog."
)


def _pairs(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"": name.replace("_", " "), " ": str(value)} for name, value in values.items()]

"""Subcommands that put a policy on a robot."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from mistjax.cli.telling import tell
from mistjax.files import refuse_file
from mistjax.ranges import whole
from mistjax.serve.settings import Settings

Options = Annotated[Settings, tyro.conf.arg(name="")]  # its options have no prefix


def serve(
    policy: Positional[str],
    /,
    *,
    mist: Path | None = None,
    shadow: bool = False,
    settings: Options = Settings(),
    stratum: str | None = None,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Serve a policy, monitored, to openpi's websocket clients.

    Args:
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        mist: folder of its monitor and remedies; without one the bare policy is served.
        shadow: only watch: the actions are the bare policy's.
        settings: where, how fast, and what goes out where there is no action.
        stratum: which threshold of the monitor, where it has several.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.serve.load import is_loopback, load_policies
    from mistjax.serve.server import serve
    from mistjax.serve.service import Service

    found = load_policies(
        policy, mist, shadow=shadow, stratum=stratum, preset=preset, unnorm_key=unnorm_key
    )
    service = Service(*found, settings)

    def listening(port: int) -> None:
        if settings.api_key is None and not is_loopback(settings.host):
            said = f"mistjax: whoever reaches {settings.host} can move the robot: give --api-key."
            print(said, file=sys.stderr)
        host = settings.host if ":" not in settings.host else f"[{settings.host}]"
        name = service.bare.spec.name + (" with its monitor" if mist else "")
        print(f"serving {name} at ws://{host}:{port}", flush=True)

    serve(service, listening)


def certify(
    policy: Positional[str],
    /,
    *,
    mist: Path | None = None,
    shadow: bool = False,
    settings: Options = Settings(out=Path("runs/certificate")),
    requests: int = 200,
    slack_ms: float = 100.0,
    observations: Path | None = None,
    stratum: str | None = None,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> int:
    """Try what a server promises on this machine, fault by fault: a JSON file and a page.

    Args:
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        mist: folder of its monitor and remedies; without one the bare policy is tried.
        shadow: only watch: the actions are the bare policy's.
        settings: those that the server will have.
        requests: of each path, for its latencies.
        slack_ms: what a reply may take beyond the time that is promised.
        observations: .npz file with an array of each key of an observation, time first: an ordinary
            episode; by default the board's, and for other robots black pictures.
        stratum: which threshold of the monitor, where it has several.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.serve.certify import PAGE, certify, read_observations
    from mistjax.serve.load import load_policies

    whole("requests", requests, 1)
    if not 0 <= slack_ms < math.inf:
        raise ValueError(f"slack_ms is {slack_ms}: expected a number of 0 or more.")
    refuse_file(settings.out)
    seen = None if observations is None else read_observations(observations)
    found = load_policies(
        policy, mist, shadow=shadow, stratum=stratum, preset=preset, unnorm_key=unnorm_key
    )
    made = certify(*found, settings, observations=seen, requests=requests, slack_ms=slack_ms)
    for name, trial in made.promises.items():
        print(f"{name:14} {trial.answer:10} {trial.said}")
    for path, at in made.latency_ms.items():
        print(f"{path}: p50 {at['p50']:.1f}, p95 {at['p95']:.1f}, p99 {at['p99']:.1f} ms")
    print(f"Page: {settings.out / PAGE}")
    tell(**made.to_json(), page=settings.out / PAGE)
    return int(not made.kept)

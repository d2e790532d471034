"""Subcommands that put a policy on a robot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

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
    from mistjax.serve.load import is_loopback, load_service
    from mistjax.serve.server import serve

    service = load_service(
        policy, mist, settings, shadow=shadow, stratum=stratum, preset=preset, unnorm_key=unnorm_key
    )

    def listening(port: int) -> None:
        if settings.api_key is None and not is_loopback(settings.host):
            said = f"mistjax: whoever reaches {settings.host} can move the robot: give --api-key."
            print(said, file=sys.stderr)
        host = settings.host if ":" not in settings.host else f"[{settings.host}]"
        name = service.bare.spec.name + (" with its monitor" if mist else "")
        print(f"serving {name} at ws://{host}:{port}", flush=True)

    serve(service, listening)

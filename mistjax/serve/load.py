"""A service by the names of what it is made of."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from mistjax.policies.load import load_policy
from mistjax.recover.artifact import load_mist
from mistjax.serve.service import Service
from mistjax.serve.settings import Settings


def load_service(
    policy: str | Path,
    mist: Path | None,
    settings: Settings,
    *,
    shadow: bool = False,
    stratum: str | None = None,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> Service:
    """Loads a policy and its monitor; see `mistjax serve` for the arguments.

    Raises:
        ValueError, FileNotFoundError, ImportError: see `load_policy`, `load_mist` and `Service`.
    """
    if mist is None and (shadow or stratum is not None):
        what = "shadow" if shadow else "stratum"
        raise ValueError(f"{what} is given, and no monitor that it is of: give its folder as mist.")
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    arm = "monitor" if shadow else "mist"
    monitored = None if mist is None else load_mist(mist, bare, arm, stratum=stratum)
    return Service(bare, monitored, settings)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

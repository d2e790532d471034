"""Loads the two policies of a server: the bare one, and the same with its monitor."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.recover.artifact import load_mist


def load_policies(
    policy: str | Path,
    mist: Path | None,
    *,
    shadow: bool = False,
    stratum: str | None = None,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> tuple[Policy, Policy | None]:
    """(bare policy, the same with its monitor or None); see `mistjax serve` for the arguments.

    Raises:
        ValueError: `shadow` or `stratum` without `mist`.
        ValueError, FileNotFoundError, ImportError: as `load_policy` and `load_mist`.
    """
    if mist is None and (shadow or stratum is not None):
        what = "shadow" if shadow else "stratum"
        raise ValueError(f"{what} is given without a monitor: give the monitor's folder as mist.")
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    arm = "monitor" if shadow else "mist"
    return bare, None if mist is None else load_mist(mist, bare, arm, stratum=stratum)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

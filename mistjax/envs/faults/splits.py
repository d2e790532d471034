"""Which faults may be looked at before a table is made; fixed before anything was fitted.

Detectors and namers are fitted and calibrated on clean episodes only. Thresholds and designs may be
tuned on `SEEN` faults; `UNSEEN_STRENGTHS` and `UNSEEN_KINDS` are for tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mistjax.envs.faults.battery import CAMERAS, FAULTS, Mixture, Part, even

SEEDS: Mapping[str, range] = {
    "fitting": range(20_000_000, 21_000_000),
    "calibration": range(21_000_000, 22_000_000),
    "tuning": range(22_000_000, 23_000_000),
    "test": range(23_000_000, 24_000_000),
}
"""Disjoint, and apart from the seeds that earlier shipped artefacts were made with."""

UNSEEN_KINDS: tuple[str, ...] = (
    *(f"{camera}_{kind}" for camera in CAMERAS for kind in ("shifted", "delayed")),
    "state_drifting",
    "instruction_typos",
    "scene_colour_balance",
    "scene_camera_fov",
)
SEEN_KINDS: tuple[str, ...] = tuple(name for name in FAULTS if name not in UNSEEN_KINDS)

_SEEN = {
    "dimmed": (0.6, 0.8),
    "colour_cast": (0.4, 0.75),
    "blurred": (0.75,),
    "patch": (0.6, 0.875),
    "salt_and_pepper": (0.5, 1.0),
    "offset": (0.3, 0.6),
    "scaled": (0.5, 1.0),
    "unknown_word": (0.33,),
    "dropped_word": (0.33,),
    "swapped_word": (0.33,),
}
_UNSEEN = {
    "dimmed": (0.45, 0.95),
    "colour_cast": (0.3, 1.0),
    "blurred": (0.55, 1.0),
    "patch": (0.45, 1.0),
    "salt_and_pepper": (0.25,),
    "dropped": (0.6,),
    "offset": (0.2, 1.0),
    "scaled": (0.3,),
    "unknown_word": (0.66, 1.0),
    "dropped_word": (0.66, 1.0),
    "swapped_word": (0.66, 1.0),
}


def strengths(name: str, unseen: bool = False) -> tuple[float, ...]:
    """The strengths of a fault that may be looked at, or the unseen ones; () where every strength
    is the same, and for a kind that is unseen anyway.
    """
    if name in UNSEEN_KINDS or name.startswith(("scene_", "action_")) or name == "push":
        return () if unseen else (1.0,)
    return (_UNSEEN if unseen else _SEEN).get(FAULTS[name][1], () if unseen else (1.0,))


def _mixture(of: Mapping[str, Sequence[str]], unseen: bool) -> Mixture:
    """30% nominal, 10% push, 15% each of front, wrist, state and instruction."""
    parts = [Part(0.3), Part(0.1, "push")]
    for names in of.values():
        parts += even(0.15, names, {name: strengths(name, unseen) or (1.0,) for name in names})
    return Mixture(tuple(parts))


def _by_input(names: Sequence[str]) -> dict[str, list[str]]:
    return {
        where: [name for name in names if FAULTS[name][0] == where]
        for where in (*CAMERAS, "state", "instruction")
    }


def mixtures() -> dict[str, Mixture]:
    """The shipped mixtures of the board by file name."""
    varied = [name for name in SEEN_KINDS if strengths(name, unseen=True)]
    return {
        "board": _mixture(_by_input(SEEN_KINDS), unseen=False),
        "board_unseen_strengths": _mixture(_by_input(varied), unseen=True),
        "board_unseen_kinds": _mixture(_by_input(UNSEEN_KINDS), unseen=False),
    }

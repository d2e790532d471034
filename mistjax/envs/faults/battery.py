"""The faults by name, and which of them happens in which episode.

A name is `<input>_<kind>`: `front_dimmed`, `wrist_frozen`, `state_offset`, `instruction_typos`,
`scene_table_texture`, `action_noop`; and `push`. A `Mixture` gives each a share of the episodes;
seed and mixture decide fault, strength and onset, so that a seed is the same episode everywhere.
Kinds are listed by name here, so that a command line can check them without loading JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mistjax.files import read_json

CAMERAS = ("front", "wrist")
PICTURES = (
    "dimmed",
    "colour_cast",
    "blurred",
    "patch",
    "frozen",
    "black",
    "shifted",
    "salt_and_pepper",
    "dropped",
    "delayed",
)
STATES = ("offset", "scaled", "frozen", "drifting")
WORDS = ("typos", "unknown_word", "dropped_word", "swapped_word")
ACTIONS = ("offset", "noise", "noop", "late_grasp", "early_release")
SCENES = (
    "table_colour",
    "table_texture",
    "board_reflectivity",
    "stone_reflectivity",
    "brightness",
    "colour_balance",
    "camera_angle",
    "camera_fov",
)
INPUTS = (*CAMERAS, "state", "instruction")
"""What a policy reads, and so what an unsound input can be."""
ONSET = (4, 20)
MIXTURES = Path(__file__).parents[1] / "board" / "mixtures"

FAULTS: dict[str, tuple[str, str]] = {
    **{f"{camera}_{kind}": (camera, kind) for camera in CAMERAS for kind in PICTURES},
    **{f"state_{kind}": ("state", kind) for kind in STATES},
    **{f"instruction_{kind}": ("instruction", kind) for kind in WORDS},
    **{f"scene_{kind}": ("scene", kind) for kind in SCENES},
    **{f"action_{kind}": ("action", kind) for kind in ACTIONS},
    "push": ("push", "push"),
}
"""Name -> (where it is, what it is)."""


_NAMES = {
    "observation/image": "front",
    "observation/wrist_image": "wrist",
    "text": "instruction",
}


def input_name(key: str) -> str:
    """The battery's name of the input under an observation key; any other key stays as it is."""
    return _NAMES.get(key, key)


@dataclasses.dataclass(frozen=True)
class Injection:
    """A fault of an episode: its name, its strength from 0 to 1, and the control step at which it
    begins. It lasts to the end of the episode; a push lasts four steps.
    """

    name: str
    strength: float
    onset: int

    def __post_init__(self) -> None:
        if self.name not in FAULTS:
            raise ValueError(f"unknown fault {self.name!r}; expected one of {', '.join(FAULTS)}.")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"the strength of {self.name} is {self.strength}, expected 0 to 1.")
        if self.onset < 0:
            raise ValueError(f"the onset of {self.name} is {self.onset}, expected step 0 or later.")

    @property
    def input(self) -> str:
        """Where it is: one of `INPUTS`, "scene", "action" or "push"."""
        return FAULTS[self.name][0]

    @property
    def kind(self) -> str:
        return FAULTS[self.name][1]

    @staticmethod
    def info(fault: Injection | None) -> dict[str, Any]:
        """What an episode's `info` says about its fault, if it has one."""
        return {
            "fault": None if fault is None else fault.name,
            "fault_input": None if fault is None else fault.input,
            "fault_strength": None if fault is None else fault.strength,
            "fault_onset": None if fault is None else fault.onset,
        }


@dataclasses.dataclass(frozen=True)
class Part:
    """A share of the episodes: one fault, or none (`name` None), at one of some strengths."""

    share: float
    name: str | None = None
    strengths: tuple[float, ...] = (1.0,)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Which share of the episodes has which fault.

    Attributes:
        parts: their shares sum to 1.
        onset: first and last step at which a fault begins.
        sensor_noise: whether every episode has ordinary sensor noise.
    """

    parts: tuple[Part, ...] = (Part(1.0),)
    onset: tuple[int, int] = ONSET
    sensor_noise: bool = True

    def __post_init__(self) -> None:
        shares = [part.share for part in self.parts]
        if min(shares, default=-1) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"the shares of a mixture are {shares}: expected to sum to 1.")
        if not 0 <= self.onset[0] <= self.onset[1]:
            raise ValueError(f"onset is {self.onset}: expected the first and the last step.")
        for part in self.parts:
            if part.name is not None and not part.strengths:
                raise ValueError(f"{part.name} has no strength: give at least one.")
            for strength in part.strengths:
                Injection(part.name or "push", strength, 0)  # says what is wrong

    def draw(self, seed: int) -> Injection | None:
        """The fault of an episode; None for an episode without."""
        rng = np.random.default_rng([seed, 0xBA77])
        at = min(int(np.searchsorted(np.cumsum(self._shares), rng.random())), len(self.parts) - 1)
        strength, onset = rng.random(), int(rng.integers(self.onset[0], self.onset[1] + 1))
        part = self.parts[at]
        if part.name is None:
            return None
        return Injection(part.name, part.strengths[int(strength * len(part.strengths))], onset)

    @property
    def _shares(self) -> list[float]:
        return [part.share for part in self.parts]

    @classmethod
    def single(cls, name: str, strength: float = 1.0, **options: Any) -> Mixture:
        """The same fault in every episode."""
        return cls((Part(1.0, name, (strength,)),), **options)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Mixture:
        """The inverse of `to_json`, for JSON written by hand too.

        Raises:
            ValueError: an unknown key, or what `Mixture` and `Injection` refuse.
        """
        try:
            parts = tuple(
                Part(**{**part, "strengths": tuple(part.get("strengths", (1.0,)))})
                for part in data["parts"]
            )
            rest = {name: value for name, value in data.items() if name != "parts"}
            if "onset" in rest:
                rest["onset"] = tuple(rest["onset"])
            return cls(parts, **rest)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"not a mixture of faults ({error}): expected parts, each with share, name and "
                "strengths, and optionally onset and sensor_noise."
            ) from None


def read_mixture(source: str | Path) -> Mixture:
    """A mixture from a JSON file, or a shipped one by name.

    Raises:
        FileNotFoundError: neither; the message lists those that are shipped.
        ValueError: the file holds no mixture.
    """
    named = MIXTURES / f"{source}.json"
    path = named if named.is_file() else Path(source)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in MIXTURES.glob("*.json")))
        raise FileNotFoundError(f"no mixture {source}: give a JSON file, or one of {known}.")
    document = read_json(path)
    try:
        return Mixture.from_json(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def even(
    share: float, names: Sequence[str], strengths: Mapping[str, Sequence[float]]
) -> list[Part]:
    """Parts that divide a share of the episodes equally among several faults."""
    return [Part(share / len(names), name, tuple(strengths.get(name, (1.0,)))) for name in names]

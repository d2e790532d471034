"""How many kernels a compiled program launches, read off its HLO: loops count by their trips.

An estimate: every instruction that computes or copies is one launch, as on a GPU, where programs of
small arrays take as long as their launches. Of a conditional's branches the longest counts.
"""

from __future__ import annotations

import functools
import re

FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "opt-barrier",
    "copy-done",
    "custom-call-done",
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?[\w.\-]+ = (?:\((?:[^()]|\([^()]*\))*\)|\S+) ([\w\-]+)\("
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def count_kernels(hlo: str) -> int:
    """Launches of one run of an optimised module, given as text; a loop whose trips XLA does not
    know counts once."""
    bodies: dict[str, list[tuple[str, str]]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append((found[1], line))
    if entry not in bodies:
        raise ValueError("the text is no HLO module: it has no ENTRY computation.")

    @functools.cache
    def launches(name: str) -> int:
        return sum(_launches(kind, line) for kind, line in bodies[name])

    def _launches(kind: str, line: str) -> int:
        if kind == "while":
            trips = _TRIPS.search(line)
            return (int(trips[1]) if trips else 1) * launches(_called(line, "body"))
        if kind == "call":
            return launches(_called(line, "to_apply"))
        if kind == "conditional":
            return max(launches(name) for name in _branches(line))
        if kind.startswith("async"):
            return launches(_called(line, "calls")) if "calls=" in line else 0
        return kind not in FREE

    return launches(entry)


def _called(line: str, role: str) -> str:
    match = re.search(rf"\b{role}=%?([\w.\-]+)", line)
    if match is None:
        raise ValueError(f"no {role}= in {line.strip()[:200]}")
    return match[1]


def _branches(line: str) -> list[str]:
    if listed := re.search(r"branch_computations=\{([^}]*)\}", line):
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return [_called(line, "true_computation"), _called(line, "false_computation")]

"""All steering vectors of a policy in one call: from words, and from recorded episodes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy
from mistjax.rollouts.run import Run, load_run
from mistjax.steer.artifact import SteeringArtifact, save_steering
from mistjax.steer.concepts import Concept, concept_table, find_concept
from mistjax.steer.groups import outcome_groups
from mistjax.steer.table import Steering
from mistjax.steer.value_vectors import top_names, value_vectors
from mistjax.steer.vectors import SteeringVector, concept_vector, difference_of_means

BOARD_CONCEPTS = {
    word: (word,)
    for word in (
        *("slowly", "quickly", "high", "low", "raise", "lower"),
        *("left", "right", "forward", "back", "open", "close"),
    )
}
"""The board policy's own words for motions."""
BOARD_OPPOSITES = (
    *(("quickly", "slowly"), ("high", "low"), ("raise", "lower")),
    *(("right", "left"), ("forward", "back"), ("open", "close")),
)

_ADDABLE = ("resid", "attn_out", "mlp_out")


def build_vectors(
    policy: Policy,
    concepts: Mapping[str, Sequence[str]],
    *,
    opposites: Sequence[tuple[str, str]] = (),
    run: Run | None = None,
    taps: Sequence[Tap] = (),
    top: int = 5,
    layers: Sequence[int] | None = None,
    limit: int | None = None,
    first: int | None = None,
    causes: Mapping[str, tuple[str, float] | None] | None = None,
) -> SteeringArtifact:
    """Builds steering vectors.

    Args:
        policy: the policy.
        concepts: name -> words, searched in the VLM's value vectors; see `find_concept`.
        opposites: pairs of concepts (a, b) that also give a vector "a-b".
        run: recorded episodes of this policy.
        taps: of the run; each gives a vector "success@<site>" from failure to success.
        top: how many of a neuron's top names count.
        layers: where to look for concepts.
        limit: largest number of neurons per concept.
        first: inferences of an episode that count, see `outcome_groups`.
        causes: what to use the vectors for, by their names.

    Returns:
        An artifact; `notes["concepts"]` is a table for people.

    Raises:
        ValueError: a word or neuron that is not found, a run of another policy, or a run that
            does not hold a tap or both outcomes.
    """
    directions: dict[str, Steering] = {}
    notes: dict[str, Any] = {}
    if concepts:
        values = value_vectors(policy, "vlm")
        names = top_names(values, top)
        found: dict[str, Concept] = {
            name: find_concept(values, names, name, words, layers=layers, limit=limit)
            for name, words in concepts.items()
        }
        directions |= {name: concept_vector(values, concept) for name, concept in found.items()}
        directions |= {
            f"{a}-{b}": concept_vector(values, found[a], against=found[b]) for a, b in opposites
        }
        notes["concepts"] = concept_table(values, names, list(found.values()))
    if run is not None:
        _check_same_policy(run, policy)
        for tap in taps:
            success, failure = outcome_groups(run, tap, first=first)
            directions[f"success@{tap.site}"] = difference_of_means(
                success, failure, tap, policy.spec, groups="success - failure", first=first
            )
    return SteeringArtifact(policy.spec.fingerprint, directions, causes or {}, notes)


def _check_same_policy(run: Run, policy: Policy) -> None:
    recorded = {row["policy_fingerprint"] for row in run.finished}
    if recorded - {policy.spec.fingerprint}:
        raise ValueError(
            f"the run was recorded with policy {sorted(r[:12] for r in recorded)}, not with "
            f"{policy.spec.name!r} ({policy.spec.fingerprint[:12]}): record one with this policy."
        )


def write_vectors(
    policy: Policy,
    out: str | Path,
    *,
    concepts: Mapping[str, Sequence[str]] | None = None,
    run: str | Path | None = None,
) -> str:
    """Builds vectors and writes them; what `mistjax vectors` does.

    With a run, every reduced tap that it recorded in a residual stream gives a vector from failure
    to success, and every modality that can be blamed is answered by one of them: in the action
    expert if there is one, where the prefix need not be computed again.

    Args:
        policy: the policy.
        out: folder to write to.
        concepts: name -> words; by default those of the board that are in the vocabulary.
        run: run folder of the policy.

    Returns:
        The concepts as a table, and one line per direction: name, site, length in each layer.

    Raises:
        ValueError: see `build_vectors`, or the run recorded no such tap.
    """
    recorded = None if run is None else load_run(run)
    taps = [] if recorded is None else _usable_taps(recorded)
    causes: dict[str, tuple[str, float] | None] = {}
    if taps:
        answer = min(taps, key=lambda tap: tap.stack != "action")
        blamed = (*policy.spec.cameras, "text", "state")
        causes = {cause: (f"success@{answer.site}", 1.0) for cause in blamed}
    opposites: Sequence[tuple[str, str]] = ()
    if concepts is None:
        concepts = known_concepts(policy, BOARD_CONCEPTS)
        opposites = [pair for pair in BOARD_OPPOSITES if {*pair} <= {*concepts}]
    artifact = build_vectors(
        policy,
        concepts,
        opposites=opposites,
        run=recorded,
        taps=taps,
        top=1,
        causes=causes,
    )
    save_steering(out, artifact)
    lines = [artifact.notes["concepts"]] if "concepts" in artifact.notes else []
    for name, direction in artifact.directions.items():
        if isinstance(direction, SteeringVector):
            scale = " ".join(f"{x:.2f}" for x in np.asarray(direction.scale))
            lines.append(f"{name:28} {direction.site:16} length by layer {scale}")
    return "\n".join(lines)


def parse_concepts(texts: Mapping[str, str] | None) -> dict[str, list[str]] | None:
    """Concepts as a command line gives them: name -> words, comma-separated.

    Raises:
        ValueError: a word that is empty.
    """
    words = {name: text.split(",") for name, text in (texts or {}).items()}
    for name, some in words.items():
        if not all(word.strip() for word in some):
            raise ValueError(f"concept {name!r} is {','.join(some)!r}: expected words, WORD,WORD.")
    return words or None


def known_concepts(
    policy: Policy, concepts: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Those of which every word is in the policy's vocabulary and some neuron's top name."""
    values = value_vectors(policy, "vlm")
    names, known = top_names(values, 1), {}
    for name, words in concepts.items():
        with contextlib.suppress(ValueError):
            find_concept(values, names, name, words)
            known[name] = words
    return known


def _usable_taps(run: Run) -> list[Tap]:
    """Reduced taps of streams that a vector can be added to, one a site."""
    names = next(run.traces()).features if run.finished else {}
    taps = [Tap.parse(name) for name in names]
    usable = {
        tap.site: tap
        for tap in taps
        if tap.reduce and tap.stack != "vision" and tap.point in _ADDABLE
    }
    if not usable:
        raise ValueError(
            f"the run recorded {sorted(names)}: none is a reduced tap of {_ADDABLE} in the vlm or "
            "action stack; record one, for example 'action.resid@all/action/mean'."
        )
    return list(usable.values())

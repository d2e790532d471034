"""Concepts: neurons whose value vectors write given words.

A concept is searched by words; `slow*` means every name that begins with "slow". Case and the mark
that begins a word do not matter.

Source: Häon et al., arXiv 2509.00328, section 3.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from mistjax.hooks.sites import resolve_layers
from mistjax.policies.value_vectors import ValueVectors
from mistjax.steer.value_vectors import TopNames

_NORM_NEIGHBOURS = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Concept:
    """Neurons that write a concept's words, best first.

    Attributes:
        name: for tables.
        stack: `vlm` or `action`.
        names: the vocabulary entries that count as the concept.
        layers, neurons: where [N].
        scores: sum of the z-scores of the concept's names among the neuron's top names [N].
    """

    name: str
    stack: str
    names: tuple[str, ...]
    layers: Int[np.ndarray, " n"]
    neurons: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.layers)


def matching_names(names: Sequence[str], words: Sequence[str]) -> Int[np.ndarray, " m"]:
    """Indices of the names that match a word, `*` and `?` being wildcards.

    Raises:
        ValueError: a word that matches nothing; names the closest entries.
    """
    plain = [_plain(name) for name in names]
    found: set[int] = set()
    for word in words:
        pattern = re.compile(fnmatch.translate(_plain(word)))
        hits = [i for i, name in enumerate(plain) if pattern.match(name)]
        if not hits:
            near = difflib.get_close_matches(_plain(word).strip("*"), set(plain), cutoff=0.5)
            hint = f"close to it: {near}" if near else f"for example {plain[4:8]}"
            raise ValueError(f"no entry of the vocabulary matches {word!r}; {hint}.")
        found.update(hits)
    return np.array(sorted(found))


def _plain(name: str) -> str:
    return name.replace("▁", " ").strip().lower()


def find_concept(
    values: ValueVectors,
    top: TopNames,
    name: str,
    words: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    limit: int | None = None,
) -> Concept:
    """Neurons with a concept's words among their top names.

    Args:
        values: the stack's value vectors.
        top: their top names; a smaller k is a stricter search.
        name: the concept's name.
        words: its words, see `matching_names`.
        layers: where to look; None means all. In pi0 the last layer of the VLM writes nothing that
            the action expert reads.
        limit: how many of the best to keep.

    Raises:
        ValueError: a word that matches nothing, a layer that does not exist, a limit below 1, or
            no neuron that writes any.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: expected at least 1 neuron, or None for all.")
    ids = matching_names(values.names, words)
    scores = np.where(np.isin(top.ids, ids), top.scores, 0.0).sum(-1)
    if layers is not None:
        chosen = resolve_layers(tuple(layers), len(scores))
        scores[np.setdiff1d(np.arange(len(scores)), chosen)] = 0.0
    found = np.argwhere(scores > 0)
    if not len(found):
        raise ValueError(
            f"no neuron of the {values.stack!r} stack has {list(words)} among its top "
            f"{top.ids.shape[-1]} names: ask for more top names, other words or other layers."
        )
    order = np.argsort(-scores[tuple(found.T)], kind="stable")[:limit]
    layer, neuron = found[order].T
    matched = tuple(values.names[i] for i in ids)
    return Concept(name, values.stack, matched, layer, neuron, scores[layer, neuron])


def control_neurons(values: ValueVectors, concept: Concept, seed: int = 0) -> Concept:
    """Random neurons, as many in each layer as the concept has, of nearly the same norms.

    Each is drawn among the few neurons of its layer whose value vectors have the nearest norm,
    never from the concept, never twice.

    Raises:
        ValueError: the concept fills a layer, so that no other neuron is left.
    """
    rng = np.random.default_rng(seed)
    norms = np.linalg.norm(np.asarray(values.vectors, np.float32), axis=-1)
    free = np.ones(norms.shape, bool)
    free[concept.layers, concept.neurons] = False
    drawn = np.empty_like(concept.neurons)
    for i, (layer, neuron) in enumerate(zip(concept.layers, concept.neurons, strict=True)):
        candidates = np.flatnonzero(free[layer])
        if not len(candidates):
            raise ValueError(
                f"concept {concept.name!r} has more than half of layer {layer}: no neurons are "
                "left for a control; search with a smaller k or a limit."
            )
        gaps = np.abs(norms[layer, candidates] - norms[layer, neuron])
        drawn[i] = rng.choice(candidates[np.argsort(gaps)[:_NORM_NEIGHBOURS]])
        free[layer, drawn[i]] = False
    return dataclasses.replace(
        concept,
        name=f"random neurons for {concept.name}",
        names=(),
        neurons=drawn,
        scores=np.zeros(len(concept)),
    )


def concept_table(values: ValueVectors, top: TopNames, concepts: Sequence[Concept]) -> str:
    """For people: each concept's size, where it lives, and what its best neuron writes."""
    lines = ["| concept | neurons | layers | best neuron |", "|---|---|---|---|"]
    for c in concepts:
        layers = ", ".join(
            f"{layer}: {n}"
            for layer, n in zip(*np.unique(c.layers, return_counts=True), strict=True)
        )
        best = top.describe(values, int(c.layers[0]), int(c.neurons[0]))
        lines.append(f"| {c.name} | {len(c)} | {layers} | {best} |")
    return "\n".join(lines)

"""What all neurons of a stack write: by layer, by word, and in clusters of similar value vectors.

Source: Geva et al., arXiv 2203.14680; clusters of a VLA's value vectors: Häon et al., arXiv
2509.00328, section 4.
"""

from __future__ import annotations

from collections import Counter

import jax.numpy as jnp
import numpy as np
from sklearn.cluster import MiniBatchKMeans

from mistjax.policies.value_vectors import ValueVectors
from mistjax.steer.concepts import Concept
from mistjax.steer.value_vectors import TopNames

_SHOWN = 6


def layer_rows(values: ValueVectors, top: TopNames) -> list[dict[str, str]]:
    """A row for each layer: how many different names its neurons write most, which ones most often,
    and the share of neurons whose strongest name is an action.
    """
    rows = []
    for layer, ids in enumerate(top.ids[..., 0]):
        rows.append(
            {
                "layer": str(layer),
                "neurons": str(len(ids)),
                "different names": str(len(np.unique(ids))),
                "most often": most_written(values, ids),
                "write an action": f"{action_share(values, ids):.0%}",
            }
        )
    return rows


def word_rows(values: ValueVectors, top: TopNames, count: int = 30) -> list[dict[str, str]]:
    """A row for each of the names that most neurons write strongest, the common ones first."""
    ids, scores = top.ids[..., 0], top.scores[..., 0]
    rows = []
    for name, neurons in Counter(ids.ravel().tolist()).most_common(count):
        own = np.where(ids == name, scores, -np.inf)
        layer, neuron = np.unravel_index(np.argmax(own), own.shape)
        found, per_layer = np.unique(np.argwhere(ids == name)[:, 0], return_counts=True)
        layers = ", ".join(f"{at}: {n}" for at, n in zip(found, per_layer, strict=True))
        rows.append(
            {
                "name": shown(values.names[name]),
                "neurons": str(neurons),
                "by layer": layers,
                "strongest": f"layer {layer} neuron {neuron} (z = {own[layer, neuron]:.1f})",
            }
        )
    return rows


def clusters(values: ValueVectors, top: TopNames, count: int, *, seed: int = 0) -> list[Concept]:
    """Neurons whose value vectors point the same way, by k-means; the largest cluster first.

    A cluster's neurons stand in the order of their closeness to its centre, which is their score;
    it is named by what they write most.

    Raises:
        ValueError: fewer than one cluster, or more than neurons.
    """
    depth, width, _ = values.vectors.shape
    if not 1 <= count <= depth * width:
        raise ValueError(f"{count} clusters of {depth * width} neurons: expected 1 or more.")
    read = jnp.asarray(values.vectors, jnp.float32) * values.scale[None, None].astype(jnp.float32)
    flat = np.asarray(read).reshape(depth * width, -1)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    # Batches of all neurons, as long as they are few: then it is Lloyd's algorithm.
    size = min(len(unit), 4096)
    means = MiniBatchKMeans(count, random_state=seed, n_init=3, batch_size=size)  # pyright: ignore
    member = means.fit_predict(unit)
    near = np.sum(unit * np.asarray(means.cluster_centers_)[member], axis=1)
    found = []
    for cluster in range(count):
        neurons = np.flatnonzero(member == cluster)
        neurons = neurons[np.argsort(-near[neurons], kind="stable")]
        if len(neurons):
            layer, neuron = np.unravel_index(neurons, (depth, width))
            ids = top.ids[layer, neuron, 0]
            names = tuple(values.names[i] for i, _ in Counter(ids.tolist()).most_common(_SHOWN))
            found.append(Concept("", values.stack, names, layer, neuron, near[neurons]))
    found.sort(key=len, reverse=True)
    return [_named(cluster, i) for i, cluster in enumerate(found)]


def _named(cluster: Concept, number: int) -> Concept:
    name = f"cluster {number + 1}"
    return Concept(
        name, cluster.stack, cluster.names, cluster.layers, cluster.neurons, cluster.scores
    )


def most_written(values: ValueVectors, ids: np.ndarray, count: int = _SHOWN) -> str:
    """The names that occur most often among ids, with how often."""
    common = Counter(ids.ravel().tolist()).most_common(count)
    return ", ".join(f"{shown(values.names[i])} {n}" for i, n in common)


def action_share(values: ValueVectors, ids: np.ndarray) -> float:
    """Share of ids that name an action."""
    return 0.0 if values.actions is None else float(values.actions[ids].mean())


def shown(name: str) -> str:
    """A vocabulary entry for people."""
    return f"“{name.replace('▁', ' ').strip() or name}”"

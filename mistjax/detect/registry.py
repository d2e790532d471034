"""Every detector by name: `fit_detector(name, episodes, **config)`.

Each entry is `fit(episodes, **config) -> Detector`. Detectors that read something else than one
hidden state (token probabilities, sampled actions) say in their module how the feature vector is
laid out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from mistjax.detect.data import Episodes
from mistjax.detect.detector import Detector
from mistjax.detect.methods.combinators import Standardised, standardise
from mistjax.detect.methods.controls import TrajectoryLength, shuffle_labels
from mistjax.detect.methods.density.density import fit_logpzo, fit_rnd
from mistjax.detect.methods.distance import fit_embedding
from mistjax.detect.methods.ensemble import Ensemble, combine
from mistjax.detect.methods.fiper.alarm import fit_fiper
from mistjax.detect.methods.fiper.fiper import fit_action_chunk_entropy, fit_observation_novelty
from mistjax.detect.methods.linear import fit_linear_probe
from mistjax.detect.methods.safe.heads import SafeLSTM, SafeMLP
from mistjax.detect.methods.safe.recipe import TrainConfig
from mistjax.detect.methods.safe.training import train
from mistjax.detect.methods.samples.action_samples import ActionVariance, ClusterEntropy
from mistjax.detect.methods.samples.consistency import TemporalConsistency
from mistjax.detect.methods.sensitivity import fit_sensitivity_gate
from mistjax.detect.methods.tokens import TokenUncertainty

SAFE_MLP_TRAINING = TrainConfig(learning_rate=1e-3, group=4)
SAFE_LSTM_TRAINING = TrainConfig(learning_rate=3e-4)


def _fit_head(
    kind: type[SafeMLP] | type[SafeLSTM],
    default: TrainConfig,
    episodes: Episodes,
    *,
    training: TrainConfig | None = None,
    seed: int = 0,
    validation: Episodes | None = None,
    progress: bool = False,
    **options: Any,
) -> Detector:
    init, order = jax.random.split(jax.random.key(seed))
    head = kind.create(init, episodes.dim, **options)
    return train(
        head, episodes, training or default, order, validation=validation, progress=progress
    )[0]


def _fit_shuffled(
    episodes: Episodes, *, base: str = "safe_mlp", seed: int = 0, **config: Any
) -> Detector:
    return fit_detector(base, shuffle_labels(episodes, seed), **config)


PROBES = (
    {"name": "linear_probe", "shrinkage": 0.7, "within_tasks": True},
    {"name": "linear_probe", "shrinkage": 0.7, "baseline": 10},
)


def _fit_ensemble(episodes: Episodes, *, members: Sequence[Mapping[str, Any]] = PROBES) -> Ensemble:
    """`members` are the arguments of `fit_detector` for each, by default two linear probes."""
    return combine([fit_detector(episodes=episodes, **member) for member in members], episodes)


def _unfitted(kind: Callable[..., Detector], **fixed: Any) -> Callable[..., Detector]:
    """A detector with options but nothing to learn."""

    def fit(episodes: Episodes, **config: Any) -> Detector:
        del episodes
        return kind(**fixed, **config)

    return fit


DETECTORS: dict[str, Callable[..., Detector]] = {
    "safe_mlp": partial(_fit_head, SafeMLP, SAFE_MLP_TRAINING),
    "safe_lstm": partial(_fit_head, SafeLSTM, SAFE_LSTM_TRAINING),
    "linear_probe": fit_linear_probe,
    "ensemble": _fit_ensemble,
    "mahalanobis": partial(fit_embedding, distance="mahalanobis"),
    "euclid_knn": partial(fit_embedding, distance="euclid"),
    "cosine_knn": partial(fit_embedding, distance="cosine"),
    "pca_kmeans": partial(fit_embedding, distance="pca_kmeans"),
    "mahalanobis_gate": partial(
        fit_embedding, distance="mahalanobis", success_only=True, accumulate="none"
    ),
    "sensitivity_gate": fit_sensitivity_gate,
    "rnd": fit_rnd,
    "logpzo": fit_logpzo,
    "max_token_prob": _unfitted(TokenUncertainty, quantity="probability", statistic="max"),
    "avg_token_prob": _unfitted(TokenUncertainty, quantity="probability", statistic="mean"),
    "max_token_entropy": _unfitted(TokenUncertainty, quantity="entropy", statistic="max"),
    "avg_token_entropy": _unfitted(TokenUncertainty, quantity="entropy", statistic="mean"),
    "action_total_var": _unfitted(ActionVariance, group="total"),
    "action_general_var": _unfitted(ActionVariance, group="generalised"),
    "action_translation_var": _unfitted(ActionVariance, group="translation"),
    "action_rotation_var": _unfitted(ActionVariance, group="rotation"),
    "action_gripper_var": _unfitted(ActionVariance, group="gripper"),
    "cluster_entropy": _unfitted(ClusterEntropy),
    "stac": _unfitted(TemporalConsistency),
    "rnd_oe": fit_observation_novelty,
    "ace": fit_action_chunk_entropy,
    "fiper": fit_fiper,
    "trajectory_length": _unfitted(TrajectoryLength),
    "shuffled_labels": _fit_shuffled,
}


def fit_detector(
    name: str, episodes: Episodes, *, standardised: bool = False, **config: Any
) -> Detector:
    """Fit the detector called `name`.

    Args:
        name: key of `DETECTORS`.
        episodes: training episodes.
        standardised: z-score the features with the training statistics; the returned detector does
            so itself.
        **config: options of that detector's fit; an unknown one raises TypeError.

    Raises:
        ValueError: unknown name.
    """
    if name not in DETECTORS:
        raise ValueError(
            f"no detector is called {name!r}; choose one of {', '.join(sorted(DETECTORS))}."
        )
    if not standardised:
        return DETECTORS[name](episodes, **config)
    mean, scale = Standardised.statistics(episodes)
    if "validation" in config and config["validation"] is not None:
        config["validation"] = standardise(config["validation"], mean, scale)
    inner = DETECTORS[name](standardise(episodes, mean, scale), **config)
    return Standardised(inner, *jax.tree.map(jax.numpy.asarray, (mean, scale)))


def training_config(name: str, **changes: Any) -> TrainConfig:
    """The default training options of a learned head, with some of them changed.

    Raises:
        ValueError: a detector that is not trained by gradient descent on these options.
    """
    defaults = {"safe_mlp": SAFE_MLP_TRAINING, "safe_lstm": SAFE_LSTM_TRAINING}
    if name not in defaults:
        raise ValueError(f"{name!r} has no TrainConfig; only {', '.join(defaults)} have.")
    return dataclasses.replace(defaults[name], **changes)

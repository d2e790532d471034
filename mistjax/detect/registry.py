"""Every detector by name: how it is fitted, what it reads, and what it needs of an episode.

`fit_detector(name, episodes, **config)` fits one to episodes whose features are what it reads;
`detect.from_runs.train_detector` takes them from recorded runs as the record declares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from mistjax.detect.data import Episodes
from mistjax.detect.detector import Detector
from mistjax.detect.inputs import Input, declare
from mistjax.detect.methods.combinators import Pooled, Standardised, pooled, standardise
from mistjax.detect.methods.contrast import fit_contrast_probe
from mistjax.detect.methods.controls import TrajectoryLength, shuffle_labels
from mistjax.detect.methods.density.density import fit_logpzo, fit_rnd
from mistjax.detect.methods.distance import DistanceName, fit_embedding
from mistjax.detect.methods.ensemble import Ensemble, combine
from mistjax.detect.methods.fiper.alarm import fit_fiper
from mistjax.detect.methods.fiper.fiper import fit_action_chunk_entropy, fit_observation_novelty
from mistjax.detect.methods.linear import fit_linear_probe
from mistjax.detect.methods.safe.heads import SafeLSTM, SafeMLP
from mistjax.detect.methods.safe.losses import LossConfig, SeekConfig
from mistjax.detect.methods.safe.recipe import TrainConfig
from mistjax.detect.methods.safe.training import train
from mistjax.detect.methods.samples.action_samples import ActionVariance, ClusterEntropy
from mistjax.detect.methods.samples.consistency import TemporalConsistency
from mistjax.detect.methods.samples.flow import VelocityDisagreement
from mistjax.detect.methods.sensitivity import fit_sensitivity_gate
from mistjax.detect.methods.tokens import TokenUncertainty
from mistjax.rollouts.trace import Trace
from mistjax.tracking import Log, silent

Networks = Literal["small", "source"]
SAFE_MLP_TRAINING = TrainConfig(learning_rate=1e-3, group=4)
SAFE_LSTM_TRAINING = TrainConfig(learning_rate=3e-4)
SEEK_TRAINING = TrainConfig(
    learning_rate=1e-3, epochs=300, batch_size=64, loss=LossConfig(l2=1e-3, seek=SeekConfig())
)
GUARD_TRAINING = TrainConfig(learning_rate=1e-3, epochs=300, batch_size=64)


def _fit_head(
    kind: type[SafeMLP] | type[SafeLSTM],
    default: TrainConfig,
    episodes: Episodes,
    *,
    training: TrainConfig | None = None,
    seed: int = 0,
    validation: Episodes | None = None,
    progress: bool = False,
    log: Log = silent,
    **options: Any,
) -> Detector:
    init, order = jax.random.split(jax.random.key(seed))
    head = kind.create(init, episodes.dim, **options)
    head, history = train(
        head, episodes, training or default, order, validation=validation, progress=progress
    )
    for epoch, loss in enumerate(np.asarray(history.loss), 1):
        log({"loss": float(loss)}, epoch)
    return head


def _fit_seek(episodes: Episodes, *, window: int = 1, **config: Any) -> Detector:
    """`window`: steps that are read as their mean, e.g. the actions of one chunk."""
    if window < 1:
        raise ValueError(f"window is {window}: expected 1 or more steps.")
    if config.get("validation") is not None:
        config["validation"] = pooled(config["validation"], window)
    head = _fit_head(SafeLSTM, SEEK_TRAINING, pooled(episodes, window), **config)
    return head if window == 1 else Pooled(head, window, episodes.dim)


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


def _fit_entropy(episodes: Episodes, **config: Any) -> Detector:
    """The grid is that of the successes."""
    success = np.asarray(episodes.success, bool)
    if not success.any():
        raise ValueError("no successful episode; ACE takes its grid from what successes do.")
    return fit_action_chunk_entropy(episodes.take(success), **config)


@dataclasses.dataclass(frozen=True)
class Method:
    """How a detector is made, and of what.

    Attributes:
        fit: `fit(episodes, **options) -> Detector`.
        reads: parts of its `Input`, joined by "+"; "" for one that only counts.
        source: where it is from.
        standardised: whether features are z-scored first; token statistics and actions have units.
        training: default options of a head that is trained; None for every other.
        seeded: whether `fit` draws at random.
        small: options that make its networks an eighth of the source's width.
        dims: least number of action dimensions.
        overlap: whether consecutive chunks have to overlap.
        control: does not read the features; a detector that does not beat it tells nothing.
    """

    fit: Callable[..., Detector]
    reads: str
    source: str
    standardised: bool = False
    training: TrainConfig | None = None
    seeded: bool = False
    small: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dims: int = 1
    overlap: bool = False
    control: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """See `Input.parts`."""
        return tuple(self.reads.split("+")) if self.reads else ()

    def declare(self, probes: Sequence[Trace], executed: int | None, **options: Any) -> Input:
        """What it reads of recorded runs, see `inputs.declare`.

        Args:
            probes: one episode of each run.
            executed: actions of each chunk that were executed; None if the runs do not say.
            **options: of `inputs.declare`.

        Raises:
            ValueError: why it cannot be made of them, in one sentence.
        """
        found = declare(self.parts, probes, **options)
        layout = found.layout
        if layout and layout.dim < self.dims:
            raise ValueError(
                f"reads {self.dims} action dimensions (x, y, z, three rotations, gripper); these "
                f"actions have {layout.dim}."
            )
        if layout and self.overlap and executed is None:
            raise ValueError("the run does not say how many actions of a chunk are executed.")
        if layout and self.overlap and not (executed or 0) < layout.horizon:
            raise ValueError(
                f"chunks of {layout.horizon} actions, all executed, do not overlap: it compares "
                "consecutive ones."
            )
        return found

    def options(
        self,
        reads: Input,
        executed: int | None,
        *,
        seed: int = 0,
        epochs: int | None = None,
        networks: Networks = "small",
    ) -> dict[str, Any]:
        """Options of `fit` for what it reads.

        Args:
            reads: see `declare`.
            executed: see `declare`.
            seed: of what is drawn at random.
            epochs: of a trained head; None takes the source's 1000.
            networks: "source" gives RND, logpZO, RND-OE and FIPER their original size (62 M
                parameters each: hours on a CPU); "small" an eighth of the width.

        Raises:
            ValueError: a negative seed, or no epochs.
        """
        if seed < 0 or (epochs is not None and epochs < 1):
            raise ValueError(f"seed is {seed} and epochs {epochs}: expected 0 and 1, or more.")
        options: dict[str, Any] = dict(self.small) if networks == "small" else {}
        if reads.layout is not None:
            options["layout"] = reads.layout
        if self.overlap:
            options["executed"] = executed
        if self.seeded:
            options["seed"] = seed
        if self.training is not None and epochs is not None:
            options["training"] = dataclasses.replace(self.training, epochs=epochs)
        return options


_SAFE, _FIPER = "SAFE (arXiv 2506.09937)", "FIPER (NeurIPS 2025)"
_GUARD = "GUARD (arXiv 2608.04510)"
_SMALL_UNET = {"channels": (32, 64, 128), "step_dim": 32}
_SMALL_MLPS = {
    "target_widths": (128, 256, 512, 64),
    "predictor_widths": (128, 256, 512, 256, 128, 64),
}


def _hidden(fit: Callable[..., Detector], source: str = _SAFE, **more: Any) -> Method:
    return Method(fit, "hidden", source, standardised=True, **more)


def _head(kind: type[SafeMLP] | type[SafeLSTM], training: TrainConfig) -> Method:
    return _hidden(partial(_fit_head, kind, training), training=training, seeded=True)


def _distance(distance: DistanceName, **fixed: Any) -> Method:
    return _hidden(_embedding(distance, **fixed), seeded=distance == "pca_kmeans")


def _embedding(distance: DistanceName, **fixed: Any) -> Callable[..., Detector]:
    return partial(fit_embedding, distance=distance, **fixed)


def _gate() -> Callable[..., Detector]:
    return _embedding("mahalanobis", success_only=True, accumulate="none")


def _tokens(quantity: str, statistic: str) -> Method:
    fit = _unfitted(TokenUncertainty, quantity=quantity, statistic=statistic)
    return Method(fit, "probabilities" if quantity == "probability" else "tokens", _SAFE)


def _variance(group: str, dims: int = 1) -> Method:
    return Method(_unfitted(ActionVariance, group=group), "samples", _SAFE, dims=dims)


def _consistency(reads: str) -> Method:
    fit = _unfitted(TemporalConsistency)
    return Method(fit, reads, "Agia et al. (arXiv 2410.04640)", overlap=True)


DETECTORS: dict[str, Method] = {
    "safe_mlp": _head(SafeMLP, SAFE_MLP_TRAINING),
    "safe_lstm": _head(SafeLSTM, SAFE_LSTM_TRAINING),
    "linear_probe": _hidden(fit_linear_probe, "Fisher's discriminant (Friedman, 1989)"),
    "ensemble": _hidden(_fit_ensemble, "here"),
    "mahalanobis": _distance("mahalanobis"),
    "euclid_knn": _distance("euclid"),
    "cosine_knn": _distance("cosine"),
    "pca_kmeans": _distance("pca_kmeans"),
    "mahalanobis_gate": _hidden(_gate()),
    "sensitivity_gate": Method(fit_sensitivity_gate, "sensitivity", "SafeFlow"),
    "velocity_disagreement": Method(_unfitted(VelocityDisagreement), "velocity", "here"),
    "hide_and_seek": _hidden(
        _fit_seek, "Hide-and-Seek (arXiv 2605.30834)", training=SEEK_TRAINING, seeded=True
    ),
    "contrast_probe": _hidden(
        partial(fit_contrast_probe, fit=partial(_fit_head, SafeMLP, SAFE_MLP_TRAINING)),
        "SAFECAST (arXiv 2608.04246)",
        training=SAFE_MLP_TRAINING,
        seeded=True,
    ),
    "guard": Method(
        partial(_fit_head, SafeLSTM, GUARD_TRAINING, hidden=32),
        "grounding",
        _GUARD,
        standardised=True,
        training=GUARD_TRAINING,
        seeded=True,
    ),
    "guard_gate": Method(_gate(), "grounding", _GUARD, standardised=True),
    "rnd": Method(
        fit_rnd, "hidden+chunk", _SAFE, standardised=True, seeded=True, small=_SMALL_UNET
    ),
    "logpzo": _hidden(fit_logpzo, seeded=True, small=_SMALL_UNET),
    "max_token_prob": _tokens("probability", "max"),
    "avg_token_prob": _tokens("probability", "mean"),
    "max_token_entropy": _tokens("entropy", "max"),
    "avg_token_entropy": _tokens("entropy", "mean"),
    "action_total_var": _variance("total"),
    "action_general_var": _variance("generalised"),
    "action_translation_var": _variance("translation", 3),
    "action_rotation_var": _variance("rotation", 7),
    "action_gripper_var": _variance("gripper", 7),
    "cluster_entropy": Method(_unfitted(ClusterEntropy), "samples", _SAFE),
    "stac": _consistency("samples"),
    "stac_single": _consistency("chunk"),
    "rnd_oe": _hidden(fit_observation_novelty, _FIPER, seeded=True, small=_SMALL_MLPS),
    "ace": Method(_fit_entropy, "positions", _FIPER, dims=3),
    "fiper": Method(fit_fiper, "hidden+positions", _FIPER, seeded=True, small=_SMALL_MLPS, dims=3),
    "trajectory_length": Method(_unfitted(TrajectoryLength), "", "here", control=True),
    "shuffled_labels": _hidden(
        _fit_shuffled, "here", training=SAFE_MLP_TRAINING, seeded=True, control=True
    ),
}


def method(name: str) -> Method:
    """The record of the detector called `name`; ValueError lists the known ones."""
    if name not in DETECTORS:
        raise ValueError(
            f"no detector is called {name!r}; choose one of {', '.join(sorted(DETECTORS))}."
        )
    return DETECTORS[name]


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
    fit = method(name).fit
    if not standardised:
        return fit(episodes, **config)
    mean, scale = Standardised.statistics(episodes)
    if "validation" in config and config["validation"] is not None:
        config["validation"] = standardise(config["validation"], mean, scale)
    inner = fit(standardise(episodes, mean, scale), **config)
    return Standardised(inner, *jax.tree.map(jax.numpy.asarray, (mean, scale)))


def training_config(name: str, **changes: Any) -> TrainConfig:
    """The default training options of a learned head, with some of them changed.

    Raises:
        ValueError: a detector that is not trained by gradient descent on these options.
    """
    default = method(name).training
    if default is None:
        known = [other for other, record in DETECTORS.items() if record.training]
        raise ValueError(f"{name!r} has no TrainConfig; only {', '.join(known)} have.")
    return dataclasses.replace(default, **changes)

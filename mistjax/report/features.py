"""`mistjax train-sae`: sparse features of a tap, success while they stand in for it, and a card for
each of the most telling ones.

A feature's card shows the moments at which it is strongest, what its direction writes, whether it
tells failures from successes, and what steering along it does beside random directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from mistjax.attribute.questions import raw_observation
from mistjax.detect.methods.sparse import SparseCoder
from mistjax.detect.sparse import SparseArtifact, save_sparse
from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy
from mistjax.policies.value_vectors import ValueVectors
from mistjax.report.blocks import Block, Picture, Quote, Row, Table, Text
from mistjax.report.html import Section, write_report
from mistjax.report.words import scenes
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run
from mistjax.rollouts.summary import compare, summarize
from mistjax.stats import holm
from mistjax.steer.artifact import SteeringArtifact, save_steering
from mistjax.steer.effects import control_responses, dose_response
from mistjax.steer.policy import SteeredPolicy
from mistjax.steer.sparse import (
    Epoch,
    feature_vector,
    principal,
    random_coder,
    replacements,
    token_activations,
    train_coder,
    unexplained,
)
from mistjax.steer.value_vectors import value_vectors
from mistjax.steer.words import shown
from mistjax.tracking import Log, silent

_MOMENTS, _NAMES, _SURE = 4, 4, 0.05
_HELD_OUT = 0.2


@dataclasses.dataclass(frozen=True)
class SparseConfig:
    """How an autoencoder is trained and examined.

    Attributes:
        tap: a tap of one layer that keeps its tokens.
        features, k, epochs, batch, learning_rate, seed: see `train_coder`.
        cards: number of features shown, the most telling ones.
        episodes: of each arm in which something stands in for the tap; 0 plays none.
        first_seed: of these episodes.
        scenes: number of recorded observations that features are steered on.
        controls: random directions beside each feature.
        num_envs: environments in lock-step; None is the default of `EpisodePlan`.
    """

    tap: Tap
    features: int = 512
    k: int = 16
    epochs: int = 20
    batch: int = 512
    learning_rate: float = 1e-3
    seed: int = 0
    cards: int = 6
    episodes: int = 0
    first_seed: int = 6_000_000
    scenes: int = 16
    controls: int = 8
    num_envs: int | None = None


@dataclasses.dataclass(frozen=True)
class Features:
    """What was found.

    Attributes:
        coder: the autoencoder.
        history: of its training.
        left: name of what stands in -> share of the variance left unexplained on held-out episodes.
        active: share of tokens that use each feature [F].
        strong: activation that a feature exceeds in 1% of the tokens that use it [F].
        peaks: mean over tokens and flow steps at each inference, by episode [N,F].
        auc: of the mean activation up to the end of the shortest episode, failures above successes
            [F]; NaN unless there are both.
        p_values: feature -> p-value with Holm's correction over the features in use.
    """

    coder: SparseCoder
    history: Sequence[Epoch]
    left: dict[str, float]
    active: np.ndarray
    strong: np.ndarray
    peaks: list[np.ndarray]
    auc: np.ndarray
    p_values: dict[int, float]

    def telling(self, count: int) -> list[int]:
        """The features that best tell outcomes apart; the most used ones if all ended alike."""
        if self.p_values:
            return sorted(self.p_values, key=lambda f: self.p_values[f])[:count]
        return np.argsort(-self.active)[:count].tolist()


def find_features(run: Run, config: SparseConfig) -> tuple[Features, np.ndarray]:
    """Trains on the first episodes of a run and measures on its last fifth; returns the tokens too.

    Raises:
        ValueError: see `token_activations` and `train_coder`; or fewer than two episodes.
    """
    tokens, episode = token_activations(run, config.tap)
    count = len(run.finished)
    if count < 2:
        raise ValueError(f"{count} finished episodes: expected at least two, to train and test on.")
    last = max(1, round(_HELD_OUT * count))
    training = episode < count - last
    coder, history = train_coder(
        tokens[training],
        features=config.features,
        k=config.k,
        epochs=config.epochs,
        batch=config.batch,
        learning_rate=config.learning_rate,
        seed=config.seed,
    )
    encode = jax.jit(coder.encode)
    # Codes are wide: an episode at a time.
    codes = [np.asarray(encode(tokens[episode == e])) for e in range(count)]
    held = np.concatenate(codes[count - last :])
    seen = tokens[~training]
    left = {"features": unexplained(np.asarray(coder.decode(jnp.asarray(held))), seen)}
    mean, onto = principal(tokens[training], coder.k)
    left["principal_components"] = unexplained((seen - mean) @ onto + mean, seen)
    drawn = random_coder(coder, tokens[training])
    left["random_directions"] = unexplained(
        np.asarray(drawn.decode(drawn.encode(jnp.asarray(seen)))), seen
    )
    every = np.concatenate(codes)
    active = (every > 0).mean(0)
    strong = np.array([np.quantile(c[c > 0], 0.99) if (c > 0).any() else 0.0 for c in every.T])
    steps = [len(trace.inference_step) for trace in run.traces()]
    peaks = [c.reshape(n, -1, c.shape[1]).mean(1) for c, n in zip(codes, steps, strict=True)]
    first = min(map(len, peaks))  # failures last longer: what comes late would tell them
    auc, p = _outcomes(np.stack([c[:first].mean(0) for c in peaks]), run)
    return Features(coder, history, left, active, strong, peaks, auc, p), tokens


def _outcomes(means: np.ndarray, run: Run) -> tuple[np.ndarray, dict[int, float]]:
    """AUC and corrected p-value (Mann-Whitney) of each feature's mean in an episode."""
    success = np.array([bool(row["success"]) for row in run.finished])
    used = np.flatnonzero(np.ptp(means, axis=0) > 0)
    auc = np.full(means.shape[1], np.nan)
    if success.all() or not success.any():
        return auc, {}
    found = stats.mannwhitneyu(means[~success][:, used], means[success][:, used])
    auc[used] = found.statistic / (success.sum() * (~success).sum())
    p = holm({str(f): float(v) for f, v in zip(used, found.pvalue, strict=True)})
    return auc, {int(f): value for f, value in p.items()}


def replaced(
    policy: Policy,
    coder: SparseCoder,
    tokens: np.ndarray,
    run: Run,
    config: SparseConfig,
    out: Path,
) -> dict[str, Run]:
    """Plays the bare policy, bare and with each stand-in for the tap, on the same seeds."""
    plan = EpisodePlan(
        episodes=config.episodes,
        first_seed=config.first_seed,
        env=run.config["env_id"],
        perturbation=run.config.get("perturbation") or {},
        num_envs=config.num_envs,
    )
    arms: dict[str, Policy] = {"bare": policy}
    for name, edit in replacements(coder, tokens, config.tap, policy.spec).items():
        arms[name] = SteeredPolicy(policy, edit, name=name)
    options = policy.preset.env_options
    return {name: collect(arm, out / name, plan, env_options=options) for name, arm in arms.items()}


def train_features(
    policy: Policy, run: Run, config: SparseConfig, out: Path, log: Log = silent
) -> str:
    """Trains, plays, and writes the autoencoder, its most telling directions and the page to a
    folder.

    The directions are `feature_N` of a `SteeringArtifact`, so `mistjax collect --steer` takes them.
    `log` gets the numbers of every epoch.

    Raises:
        ValueError: see `find_features`, or a run of another policy.
    """
    if run.config["policy_fingerprint"] != policy.spec.fingerprint:
        raise ValueError(f"{run.path} was recorded with another policy than {policy.spec.name}.")
    found, tokens = find_features(run, config)
    for epoch, numbers in enumerate(found.history, 1):
        log(numbers._asdict(), epoch)
    chosen = found.telling(config.cards)
    directions = {
        f"feature_{f}": feature_vector(
            found.coder, f, float(found.strong[f]), config.tap, policy.spec
        )
        for f in chosen
        if found.strong[f] > 0
    }
    notes = {
        "unexplained": found.left,
        "dead": found.history[-1].dead,
        "seed": config.seed,
        "episodes": len(run.finished),
    }
    played: dict[str, Run] = {}
    if config.episodes:
        played = replaced(policy, found.coder, tokens, run, config, out)
        notes["success"] = {name: str(summarize(r).success) for name, r in played.items()}
    fingerprint = policy.spec.fingerprint
    save_sparse(out, SparseArtifact(fingerprint, config.tap, found.coder, notes))
    save_steering(out, SteeringArtifact(fingerprint, directions))
    sections = [training(found, config)]
    if played:
        sections.append(standing_in(played))
    sections += cards(policy, run, found, directions, config)
    write_report(
        sections,
        out / "features.html",
        f"Sparse features of {config.tap}",
        f"{policy.spec.name}, {len(run.finished)} episodes.",
    )
    return told(found, played, config)


def told(found: Features, played: dict[str, Run], config: SparseConfig) -> str:
    """What was found, in a few lines."""
    sure = sum(p < _SURE for p in found.p_values.values())
    lines = [
        f"{config.features} features, {config.k} per token: {found.left['features']:.1%} of the "
        f"variance of held-out tokens is left ({found.left['principal_components']:.1%} by "
        f"{config.k} principal components); {found.history[-1].dead} are dead.",
    ]
    lines += [f"{name}: success {summarize(run).success}" for name, run in played.items()]
    if found.p_values:
        lines.append(
            f"{sure} of {len(found.p_values)} features tell failures from successes (p < {_SURE} "
            "after Holm's correction)."
        )
    return "\n".join(lines)


def training(found: Features, config: SparseConfig) -> Section:
    """How well the features reconstruct the tokens."""
    epochs = np.unique(np.linspace(0, len(found.history) - 1, 6).round().astype(int))
    rows = [
        {
            "epoch": str(i + 1),
            "variance left": f"{found.history[i].unexplained:.1%}",
            "dead features": str(found.history[i].dead),
        }
        for i in epochs
    ]
    return Section(
        "How well they reconstruct it",
        [
            Quote(told(found, {}, config).split("\n")[0]),
            Table(rows, "On the training tokens, before dead features were reset."),
        ],
    )


def standing_in(played: dict[str, Run]) -> Section:
    """Success while something stands in for every token of the tap."""
    bare = played["bare"]
    rows = [
        {
            "in place of the tokens": name.replace("_", " "),
            "success": str(summarize(run).success),
            "against bare": "–" if run is bare else str(compare(bare, run)),
        }
        for name, run in played.items()
    ]
    return Section(
        "What stands in for them",
        [
            Text(
                "The same episodes, while every token of the tap is replaced at every inference: "
                "by the sum of its features or of as many random directions, by as many principal "
                "components, or by the mean."
            ),
            Table(rows, "Brackets are 95% Wilson intervals; McNemar's exact test by seed."),
        ],
    )


def cards(
    policy: Policy, run: Run, found: Features, directions: dict[str, Any], config: SparseConfig
) -> list[Section]:
    """A section for each direction."""
    pictured = any(run.video(seed) is not None for seed in run.seeds)
    seen = scenes(policy, run, config.scenes) if pictured else []
    values = _values(policy, config.tap)
    return [
        Section(
            name.replace("_", " ").capitalize(),
            _card(policy, run, found, vector, values, seen, config),
        )
        for name, vector in directions.items()
    ]


def _values(policy: Policy, tap: Tap) -> ValueVectors | None:
    """Value vectors that name a direction of the tap's stream; None where there are none."""
    readable = tap.stack in ("vlm", "action") and tap.point in ("resid", "attn_out", "mlp_out")
    return value_vectors(policy, tap.stack) if readable else None


def _card(policy, run, found, vector, values, seen, config) -> list[Block]:
    feature = vector.provenance.details["feature"]
    facts = [
        {"": "used by", "value": f"{found.active[feature]:.1%} of the tokens"},
        {"": "strong", "value": f"{found.strong[feature]:.2f} (99% of its uses are below)"},
    ]
    if np.isfinite(found.auc[feature]):
        facts.append(
            {
                "": "failures above successes",
                "value": f"AUC {found.auc[feature]:.2f}, p {found.p_values[feature]:.2g}",
            }
        )
    if values is not None:
        logits = np.asarray(values.decode(found.coder.decoder[feature][None]))[0]
        names = ", ".join(shown(values.names[i]) for i in np.argsort(-logits)[:_NAMES])
        facts.append({"": "writes", "value": names})
    blocks: list[Block] = [Table(facts)]
    if seen:
        blocks.append(_steered(policy, seen, vector, config))
    pictures = _strongest(policy, run, found, feature)
    return [*blocks, Row(pictures, least=210)] if pictures else blocks


def _steered(policy, seen, vector, config) -> Table:
    """What adding the feature does to the next chunk, beside random directions."""
    key, ends = jax.random.key(config.seed), (-1.0, 1.0)
    response = dose_response(policy, seen, vector, ends, key)
    random = control_responses(policy, seen, vector, ends, key, controls=config.controls)
    rows = []
    for statistic in response.statistics:
        low, high = response.effect(statistic)
        spans = [np.diff(control.effect(statistic))[0] for control in random]
        chance = float(np.sqrt(np.mean(np.square(spans))))
        rows.append(
            {
                "action": statistic,
                "at -1": f"{low:+.3f}",
                "at +1": f"{high:+.3f}",
                "z": f"{(high - low) / chance:.1f}" if chance else "–",
            }
        )
    return Table(
        rows,
        f"Change of the mean executed action on {len(seen)} scenes where the feature's strong "
        f"activation is subtracted (-1) or added (+1); z against {config.controls} random "
        "directions of the same length.",
        "Steering along it",
    )


def _strongest(policy: Policy, run: Run, found: Features, feature: int) -> list[Block]:
    """Pictures of the moments at which it is strongest, one per episode."""
    moments = []
    for row, activations in zip(run.finished, found.peaks, strict=True):
        if run.video(row["seed"]) is not None:
            at = int(np.argmax(activations[:, feature]))
            moments.append((float(activations[at, feature]), row["seed"], at))
    pictures: list[Block] = []
    for value, seed, at in sorted(moments, reverse=True)[:_MOMENTS]:
        trace = run.trace(seed)
        raw = raw_observation(policy, trace, at)
        key = next(iter(policy.spec.cameras.values()))
        picture = np.asarray(raw[key])
        factor = max(1, 256 // picture.shape[0])
        pictures.append(
            Picture(
                picture.repeat(factor, 0).repeat(factor, 1),
                f"Episode {seed}, step {trace.inference_step[at]}: mean {value:.2f}. "
                f"“{trace.prompt}”",
            )
        )
    return pictures

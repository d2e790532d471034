"""Embedding distances, RND and logpZO, hand-crafted scores and pooling commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.conformance.rows import Row, compare
from mistjax.detect.data import Episodes, split_tasks
from mistjax.detect.detector import score_episodes
from mistjax.detect.inputs import ChunkLayout
from mistjax.detect.methods.combinators import Standardised, standardise
from mistjax.detect.methods.density.density import RND, LogpZO
from mistjax.detect.methods.density.unet import sinusoidal_embedding, to_sequence
from mistjax.detect.methods.distance import EmbeddingDetector, NearestCentroid, fit_embedding
from mistjax.detect.methods.samples.action_samples import ActionVariance, ClusterEntropy
from mistjax.detect.methods.samples.consistency import TemporalConsistency
from mistjax.detect.methods.tokens import TokenUncertainty
from mistjax.hooks.pooling import pool
from mistjax.untrusted import read_npz


def recorded_episodes(folder: Path) -> Episodes:
    """The data set, as episodes."""
    data = read_npz(folder / "dataset.npz")
    cuts = np.cumsum(data["lengths"])[:-1]
    features = np.split(data["features"].astype(np.float32), cuts)
    return Episodes.from_sequences(features, data["success"], data["task_id"])


def splits(folder: Path) -> list[Row]:
    """Seen and unseen splits from the seed alone, and earliest stops."""
    recorded = read_npz(folder / "splits.npz")
    episodes = recorded_episodes(folder)
    rows = [
        compare("splits", "earliest stop", episodes.earliest_stop, recorded["task_min_step"], 0.0)
    ]
    for seed in range(5):
        for name, index in split_tasks(episodes.task_id, seed)._asdict().items():
            wanted = recorded[f"seed{seed}_{name}"]
            rows.append(compare("splits", f"seed {seed} {name}", index, wanted, 0.0))
    return rows


def normalisation(folder: Path) -> list[Row]:
    """The first five episodes, z-scored by their own statistics."""
    wanted = read_npz(folder / "normalize.npz")["first5_normalized"]
    episodes = recorded_episodes(folder).take(np.arange(5))
    mean, scale = Standardised.statistics(episodes)
    scaled = standardise(episodes, mean, scale)
    return [compare("normalisation", "features", scaled.frames(), wanted, 1e-5)]


def embedding(folder: Path) -> list[Row]:
    """Distances on the recorded reference and evaluation episodes."""
    recorded = read_npz(folder / "embed.npz")
    episodes = recorded_episodes(folder)
    mask = recorded["eval_mask"] > 0
    train, test = episodes.take(recorded["train_idx"]), episodes.take(recorded["eval_idx"])
    x = jnp.asarray(test.features[:, : mask.shape[1]])
    basis = [jnp.asarray(recorded[k]) for k in ("pca_mean", "pca_components")]
    centroids = [
        NearestCentroid(basis[0], basis[1], jnp.asarray(recorded[k]))
        for k in ("centroids_succ", "centroids_fail")
    ]
    rows = []
    for key in recorded:
        name = key.split("_k1")[0]
        if name not in ("mahala", "euclid", "cosine", "pca_kmeans") or key.endswith("f64"):
            continue
        one_class = "succ" in key
        accumulate = "sum" if key.endswith("cumsum") else "none"
        if name == "pca_kmeans":
            far = None if one_class else centroids[1]
            detector = EmbeddingDetector(centroids[0], far, accumulate)
        else:
            k: dict[str, Any] = {} if name == "mahala" else {"k": 1 if "_k1_" in key else 10}
            distance: Any = "mahalanobis" if name == "mahala" else name
            detector = fit_embedding(
                train, distance, success_only=one_class, accumulate=accumulate, **k
            )
        scores = jnp.where(mask, score_episodes(detector, x, jnp.asarray(mask)), 0.0)
        # the original inverts the covariance in float32: its float64 run is the reference, if kept
        exact = key + "_f64" if key + "_f64" in recorded else key
        tolerance = 2e-4 if exact == key and name == "mahala" else 3e-5
        rows.append(compare("embedding", key, scores, recorded[exact] * mask, tolerance))
    return rows


def recorded_unet(arrays: Any, prefix: str) -> dict[str, Any]:
    """PyTorch parameters under `prefix` as the parameters of `UNet1D`."""

    def conv(name: str) -> dict[str, Any]:
        w = arrays[f"{prefix}{name}.weight"]
        return {"kernel": w.transpose(2, 1, 0), "bias": arrays[f"{prefix}{name}.bias"]}

    def grow(name: str) -> dict[str, Any]:
        w = arrays[f"{prefix}{name}.weight"]
        return {"kernel": w.transpose(2, 0, 1)[::-1], "bias": arrays[f"{prefix}{name}.bias"]}

    def dense(name: str) -> dict[str, Any]:
        w = arrays[f"{prefix}{name}.weight"]
        return {"kernel": w.T, "bias": arrays[f"{prefix}{name}.bias"]}

    def block(name: str) -> dict[str, Any]:
        norm = {
            "scale": arrays[f"{prefix}{name}.block.1.weight"],
            "bias": arrays[f"{prefix}{name}.block.1.bias"],
        }
        return {"conv": conv(f"{name}.block.0"), "norm": norm}

    def residual(name: str) -> dict[str, Any]:
        tree = {
            "block_0": block(f"{name}.blocks.0"),
            "block_1": block(f"{name}.blocks.1"),
            "condition": dense(f"{name}.cond_encoder.1"),
        }
        if f"{prefix}{name}.residual_conv.weight" in arrays:
            tree["residual"] = conv(f"{name}.residual_conv")
        return tree

    tree = {
        "step_in": dense("diffusion_step_encoder.1"),
        "step_out": dense("diffusion_step_encoder.3"),
        "final": block("final_conv.0"),
        "out": conv("final_conv.1"),
        **{f"mid_{i}": residual(f"mid_modules.{i}") for i in range(2)},
        **{f"down_{i}_{j}": residual(f"down_modules.{i}.{j}") for i in range(3) for j in range(2)},
        **{f"up_{i}_{j}": residual(f"up_modules.{i}.{j}") for i in range(2) for j in range(2)},
        **{f"shrink_{i}": conv(f"down_modules.{i}.2.conv") for i in range(2)},
        **{f"grow_{i}": grow(f"up_modules.{i}.2.conv") for i in range(2)},
    }
    return jax.tree.map(jnp.asarray, tree)


def density(folder: Path) -> list[Row]:
    """RND and logpZO with a small U-Net: scores and losses for recorded weights and draws."""
    arrays = read_npz(folder / "rnd_logpzo_tiny.npz")
    shape: dict[str, Any] = {"channels": (8, 16, 32), "step_dim": 16}
    valid, success = arrays["valid_masks"] > 0, arrays["success_labels"] > 0
    n, t, d = arrays["features"].shape
    rows = [
        compare(
            "unet",
            "step embedding",
            sinusoidal_embedding(jnp.asarray(arrays["posemb_t"]), 32),
            arrays["posemb_32"],
            2e-6,
        )
    ]
    for width in (20, 7):
        ours = to_sequence(jnp.asarray(arrays["adjust_in"]), width)
        rows.append(compare("unet", f"rows of {width}", ours, arrays[f"adjust_out_{width}"], 0.0))
    nets = [
        recorded_unet(arrays, f"rnd/w/{p}.")
        for p in ("target", "predictor_success", "predictor_failure")
    ]
    for actions in ("actions1", "actions5"):
        chunk = arrays[actions]
        features = jnp.asarray(np.concatenate([arrays["features"], chunk], -1).reshape(n * t, -1))
        rnd = RND(nets[0], nets[1], nets[2], 7, chunk.shape[-1], **shape)
        errors = [np.asarray(rnd.error(p, features)).reshape(n, t) for p in nets[1:]]
        wanted = arrays[f"rnd/diff/{actions}/scores"]
        # rows of zero padding make tiny normalisation groups: their float32 noise is amplified
        rows.append(compare("rnd", f"{actions} scores", errors[0] - errors[1], wanted, 1e-4))
        wanted = arrays[f"rnd/succ/{actions}/scores"]
        rows.append(compare("rnd", f"{actions} success scores", errors[0], wanted, 1e-4))
        # the original counts padded steps in the mean
        losses = [(errors[0] * valid)[success].mean(), (errors[1] * valid)[~success].mean()]
        wanted = arrays[f"rnd/diff/{actions}/losses_monitor_succ_fail"]
        rows.append(compare("rnd", f"{actions} losses", [sum(losses), *losses], wanted, 1e-5))
    flows = [recorded_unet(arrays, f"logpzo/w/{p}.") for p in ("net_succ", "net_fail")]
    logpzo = LogpZO(flows[0], flows[1], **shape)
    draws = [jnp.asarray(arrays[f"logpzo/diff/draw{i}"]) for i in range(4)]
    frames = [jnp.asarray(arrays["features"][c][valid[c]]) for c in (success, ~success)]
    losses = [
        logpzo.flow_loss(flows[0], frames[0], draws[0], draws[1]),
        logpzo.flow_loss(flows[1], frames[1], draws[2], draws[3]),
    ]
    wanted = arrays["logpzo/diff/losses_monitor_succ_fail"]
    rows.append(compare("logpzo", "losses", [losses[0] + losses[1], *losses], wanted, 1e-5))
    x = jnp.asarray(arrays["features"].reshape(n * t, d))
    scores = np.asarray(logpzo.logit(None, x)).reshape(n, t)
    # One recorded step has a normalisation group of vanishing variance: float32 and float64 runs of
    # the same network differ by more than 0.1 there. The largest error of the others is reported.
    wanted = arrays["logpzo/diff/scores"]
    rest = np.sort(np.abs(scores - wanted).ravel())[-2] / np.abs(wanted).max()
    rows.append(Row("logpzo", "scores, worst step left out", float(rest), 1e-3))
    return rows


def token_statistics(logits: Float[Array, "*b n v"]) -> Float[Array, "*b m"]:
    """Largest probability of each token, then each token's entropy: m = 2 n.

    Args:
        logits: over the action part of the vocabulary only.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1)
    return jnp.concatenate([p.max(-1), entropy], axis=-1)


def handcrafted(folder: Path) -> list[Row]:
    """Token, action-variance, cluster and temporal-consistency scores."""
    recorded = read_npz(folder / "handcrafted.npz")
    rows = []
    statistics = token_statistics(jnp.asarray(recorded["logits"]))
    quantities: dict[Any, str] = {"probability": "prob", "entropy": "entropy"}
    reductions: dict[Any, str] = {"max": "max", "mean": "avg"}
    for quantity, short in quantities.items():
        for statistic, prefix in reductions.items():
            key = f"{prefix}_token_{short}"
            ours = TokenUncertainty(quantity, statistic).logit(None, statistics)
            rows.append(compare("tokens", key, ours, recorded[f"token/{key}"], 1e-6))
    chunks = jnp.asarray(recorded["sampled_actions"])
    n = len(chunks)
    parts = {
        "unc": (ChunkLayout(*chunks.shape[1:]), chunks),
        "unc_h1": (ChunkLayout(10, 1, 7), chunks[:, :, 0]),
    }
    groups: dict[Any, str] = {
        "total": "total_var",
        "generalised": "general_var",
        "translation": "pos_var",
        "rotation": "rot_var",
        "gripper": "gripper_var",
    }
    for folder_key, (layout, values) in parts.items():
        flat = values.reshape(n, -1)
        for group, key in groups.items():
            # the release indexes the flat chunk: translation and rotation are of its first action,
            # "gripper" is everything after index 5
            one = ChunkLayout(layout.samples, 1, layout.horizon * layout.dim)
            ours = ActionVariance(one, group).logit(None, flat)
            rows.append(compare(folder_key, key, ours, recorded[f"{folder_key}/{key}"], 1e-6))
        for threshold in (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0):
            key = f"entropy_linkage{threshold}"
            ours = ClusterEntropy(layout, threshold).logit(None, flat)
            rows.append(compare(folder_key, key, ours, recorded[f"{folder_key}/{key}"], 1e-6))
    for key, executed, samples, bandwidth in (
        ("stac_mmd_exec1", 1, 10, 1.0),
        ("stac_mmd_exec4", 4, 10, 1.0),
        ("stac_mmd_exec4_beta0.1", 4, 10, 0.1),
        ("stac_single_exec1", 1, 1, 1.0),
        ("stac_single_exec4", 4, 1, 1.0),
    ):
        detector = TemporalConsistency(ChunkLayout(samples, *chunks.shape[2:]), executed, bandwidth)
        flat = chunks[:, :samples].reshape(1, n, -1)
        ours = score_episodes(detector, flat, jnp.ones((1, n), bool))[0]
        rows.append(compare("stac", key, ours, recorded[key], 2e-6))
    return rows


def pooling(folder: Path) -> list[Row]:
    """Every recorded pooling command."""
    recorded = read_npz(folder / "index_ops.npz")
    values = jnp.asarray(recorded["A"], jnp.float32)
    commands = [k for k in recorded if k.startswith("cmd:")]
    return [compare("pooling", k[4:], pool(values, k[4:]), recorded[k], 1e-6) for k in commands]


GROUPS = {
    ("dataset.npz", "splits.npz"): splits,
    ("dataset.npz", "normalize.npz"): normalisation,
    ("dataset.npz", "embed.npz"): embedding,
    ("rnd_logpzo_tiny.npz",): density,
    ("handcrafted.npz",): handcrafted,
    ("index_ops.npz",): pooling,
}

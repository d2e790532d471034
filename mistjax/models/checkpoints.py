"""Policies on disk, in openpi's checkpoint layout.

    <folder>/params/                        orbax PyTree {"params": tree}
    <folder>/assets/<asset_id>/norm_stats.json
    <folder>/assets/tokenizer.model         ours: SentencePiece
    <folder>/config.json                    ours: the model's configuration

openpi's own training adds one path element `value` under every leaf; it is taken off on loading.
Published openpi checkpoints have no config.json: pass the configuration in code for those.

A training state holds two trees: `ema_params`, the moving average over steps, with which openpi
acts if there is one, and `params`, those of the last step. In openpi's folders the first is in
`params/` and the second in `train_state/`; a state saved as one tree has both in `params/`.
LoRA factors stored beside a weight are merged into it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from mistjax.files import atomic, read_json
from mistjax.models.config import FastConfig, Pi0Config
from mistjax.models.normalize import NormStats, load_norm_stats, save_norm_stats
from mistjax.models.sources import fetch
from mistjax.models.tokenizers import BOS, EOS, PAD, UNKNOWN, PromptTokenizer

Config = TypeVar("Config", bound=Pi0Config | FastConfig)
PALIGEMMA_TOKENIZER = "gs://big_vision/paligemma_tokenizer.model"
SHOWN = 10  # leaves named per kind of mistake


def save_checkpoint(
    folder: str | Path,
    params: PyTree,
    *,
    config: Mapping[str, Any],
    norm_stats: Mapping[str, NormStats],
    asset_id: str,
    tokenizer: PromptTokenizer,
) -> None:
    """Writes a whole policy; a write that dies leaves no checkpoint, and can be repeated.

    Args:
        folder: created when needed.
        params: the model's parameters, without the outer `params` key.
        config: the model's configuration as JSON values.
        norm_stats: usually of "state" and "actions".
        asset_id: names the robot or data set that the statistics belong to.
        tokenizer: the prompt tokenizer.

    Raises:
        ValueError: the folder already holds parameters.
    """
    folder = Path(folder).resolve()
    if (folder / "params").exists():
        raise ValueError(f"{folder} already holds parameters: choose another folder or remove it.")
    save_norm_stats(folder / "assets" / asset_id / "norm_stats.json", norm_stats)
    with atomic(folder / "assets" / "tokenizer.model") as temporary:
        temporary.write_bytes(tokenizer.serialized)
    with atomic(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
    with atomic(folder / "params") as temporary:  # last: without it there is no checkpoint
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(temporary, {"params": params})
        # for buckets, which cannot rename; on a disk it only says where the folder was written
        (temporary / "commit_success.txt").unlink(missing_ok=True)


def load_params(
    folder: str | Path,
    expected: PyTree[jax.ShapeDtypeStruct],
    dtype: Any = None,
    tree: str | None = None,
) -> PyTree[jax.Array]:
    """Reads the parameters onto the default device, however many devices wrote them.

    Names and shapes are compared before any array is read, so a mistake costs nothing.

    Args:
        folder: a checkpoint folder.
        expected: the model's tree, e.g. `jax.eval_shape(model.init, ...)["params"]`. Its dtypes
            are not compared.
        dtype: what to convert to; None keeps what is stored, float64 as float32.
        tree: which tree of a training state, `ema_params` or `params`; None takes the first that
            is there, and warns if both are.

    Raises:
        FileNotFoundError: no parameters in the folder.
        ValueError: a PyTorch checkpoint, an incomplete one, no tree of that name, a tree that
            differs (names the leaves that do), or weights that are not finite numbers.
    """
    folder = Path(folder).resolve()
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {dtype!r}: weights are floating-point numbers.")
    path, name, content = _chosen(folder, tree)
    factors = _lora_factors(folder, _by_name(content))
    added = {leaf for pair in factors.values() for leaf in pair}
    own = {k: leaf for k, leaf in _by_name(content).items() if k not in added}
    _compare(folder, own, _by_name(expected))
    stored = {name: content}
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def restore(leaf):
        kept: Any = np.float32 if leaf.dtype == np.float64 else None
        return ocp.ArrayRestoreArgs(
            restore_type=jax.Array, sharding=sharding, dtype=kept if dtype is None else dtype
        )

    args = ocp.args.PyTreeRestore(
        item=stored,
        restore_args=jax.tree.map(restore, stored),
        transforms={},  # what else is stored is left out
    )
    logging.getLogger("absl").addFilter(_news)
    with _naming(folder), ocp.PyTreeCheckpointer() as checkpointer:
        leaves = _by_name(checkpointer.restore(path, args=args)[name])
    leaves = _merge_lora(folder, leaves, factors)
    sound = jax.device_get(_finite(leaves))
    if wrong := sorted(name for name, fine in sound.items() if not fine):
        raise ValueError(
            f"{folder} holds weights that are NaN or Inf in {len(wrong)} of {len(sound)} leaves, "
            f"{', '.join(wrong[:SHOWN])} among them: "
            + ("it is damaged." if dtype is None else f"it is damaged, or too large for {dtype}.")
        )
    return unflatten_dict(leaves, sep="/")


@jax.jit
def _finite(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.all(jnp.isfinite(leaf)) for name, leaf in leaves.items()}


def _news(record: logging.LogRecord) -> bool:
    """Whether a line of Orbax is for the user: not what it says of its own plans."""
    return "transformations API" not in record.getMessage()


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """ValueError that names the folder where its parameters cannot be read: orbax does not
    document what it raises for a missing or truncated file.
    """
    report = sys.unraisablehook
    if not isinstance(report, _WithoutGivenUpReads):
        sys.unraisablehook = _WithoutGivenUpReads(report)
    try:
        yield
        sys.unraisablehook = report
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ValueError(
            f"{folder}/params cannot be read: it is incomplete or damaged, so copy it again "
            f"({type(error).__name__}: {reason})."
        ) from None


@dataclasses.dataclass(frozen=True)
class _WithoutGivenUpReads:
    """An `unraisablehook`: once a read has failed, each of the others, for which nobody waits any
    more, would print a traceback when it ends or is collected.
    """

    report: Callable[[Any], None]

    def __call__(self, what: Any) -> None:
        closed = isinstance(what.exc_value, RuntimeError) and "loop is closed" in str(
            what.exc_value
        )
        if not (closed or inspect.iscoroutine(what.object)):
            self.report(what)


def leaf_names(folder: str | Path) -> frozenset[str]:
    """Names of the stored parameters, such as `action_in_proj/kernel`; reads no array; of a
    training state, the names of the tree to act with.
    """
    trees = _trees(Path(folder).resolve())
    return frozenset(_by_name(next(iter(trees.values()))[2]))


def _chosen(folder: Path, tree: str | None) -> tuple[Path, str, dict[str, Any]]:
    trees = _trees(folder)
    if tree is not None and tree not in trees:
        raise ValueError(f"{folder} holds no tree {tree!r}: it has {', '.join(trees)}.")
    if tree is None and len(trees) > 1:
        warnings.warn(
            f"{folder} is a training state: its ema_params, with which openpi acts, are loaded; "
            "those of the last step are tree 'params'.",
            stacklevel=4,
        )
    return trees[tree or next(iter(trees))]


def _trees(folder: Path) -> dict[str, tuple[Path, str, dict[str, Any]]]:
    """Trees of parameters by the name they have in training: where each is, its name there, and
    what it looks like. The one to act with is first. Raises as `load_params` does.
    """
    path = folder / "params"
    if not path.is_dir():
        if (folder / "model.safetensors").exists():
            raise ValueError(
                f"{folder} holds model.safetensors, openpi's PyTorch format: use the JAX "
                "checkpoint of the same name, which has a params/ folder."
            )
        raise FileNotFoundError(f"{folder} has no params/: expected an openpi checkpoint folder.")
    if not (path / "_METADATA").is_file():
        raise FileNotFoundError(f"{path} has no _METADATA: it is incomplete, so copy it again.")
    stored = _content(folder, path)
    trees = [name for name in ("ema_params", "params") if stored.get(name)]
    if not trees or (trees == ["params"] and set(stored) - {"params", *_TRAINING}):
        raise ValueError(
            f"{path} holds {sorted(stored)}: expected one tree named 'params'. Save it as "
            "{'params': ...} if these are the parameters."
        )
    if trees != ["params"]:
        return {name: (path, name, stored[name]) for name in trees}
    found = {"params": (path, "params", stored["params"])}
    beside = folder / "train_state"
    if (beside / "_METADATA").is_file() and (last := _content(folder, beside).get("params")):
        return {"ema_params": found["params"], "params": (beside, "params", last)}
    return found


_TRAINING = ("ema_params", "ema_decay", "opt_state", "step")  # what else a training state holds


def _content(folder: Path, path: Path) -> dict[str, Any]:
    """What an orbax tree holds, as shapes."""
    with _naming(folder), ocp.PyTreeCheckpointer() as checkpointer:
        about: Any = checkpointer.metadata(path)
        about = getattr(about, "item_metadata", about)  # itself in orbax before 0.11.14
        if about is None:
            raise ValueError("the list of its arrays is unreadable")
    return about.tree


def _lora_factors(folder: Path, names: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Weight -> names of the two LoRA factors stored beside it; ValueError where one of the three
    is missing.
    """
    factors = {}
    for name in names:
        head, found, _ = name.rpartition("lora_a")
        if found and name == head + found:
            weight = head + "w" if head.endswith("/") else head.removesuffix("_")
            factors[weight] = name, head + "lora_b"
    wanted = {*factors, *(leaf for pair in factors.values() for leaf in pair)}
    alone = {name for name in names if name.endswith(("lora_a", "lora_b"))} - wanted
    if wrong := sorted((wanted - set(names)) | alone):
        raise ValueError(f"{folder} holds LoRA factors, and {wrong[0]} has no counterpart.")
    return factors


def _merge_lora(
    folder: Path, leaves: Mapping[str, jax.Array], factors: Mapping[str, tuple[str, str]]
) -> dict[str, jax.Array]:
    """The weights with the products of their factors added, without the factors.

    The scale of the products, alpha / rank, is not stored; it is 1 in openpi's configurations.
    openpi's output projection of attention reads the heads into one low-rank vector before the
    second factors write it, so every head's first factor meets the sum of the second ones.
    """
    if not factors:
        return dict(leaves)
    warnings.warn(
        f"{folder} holds LoRA factors of {len(factors)} weights: they are merged with the scale "
        "alpha / rank = 1 of openpi's configurations.",
        stacklevel=4,
    )
    merged = {name: leaf for name, leaf in leaves.items() if "lora_" not in name}
    for weight, pair in factors.items():
        a, b = (leaves[name].astype(jnp.float32) for name in pair)
        if "attn_vec_einsum" in weight:
            b = b.sum(axis=-3, keepdims=True)
        whole = leaves[weight].astype(jnp.float32) + jnp.matmul(a, b, precision="highest")
        merged[weight] = whole.astype(leaves[weight].dtype)
    return merged


def _by_name(tree: PyTree) -> dict[str, Any]:
    """Leaves by slash-separated name, without openpi's trailing `value`."""
    flat = flatten_dict(tree)
    if all(path[-1] == "value" for path in flat):
        flat = {path[:-1]: leaf for path, leaf in flat.items()}
    return {"/".join(path): leaf for path, leaf in flat.items()}


def _compare(folder: Path, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    shape = {name: list(leaf.shape) for name, leaf in {**stored, **expected}.items()}
    missing = [f"{name} {shape[name]}" for name in expected if name not in stored]
    surplus = [f"{name} {list(stored[name].shape)}" for name in stored if name not in expected]
    misshapen = [
        f"{name}: checkpoint {list(stored[name].shape)}, model {shape[name]}"
        for name in expected
        if name in stored and list(stored[name].shape) != shape[name]
    ]
    kinds = {"missing": missing, "surplus": surplus, "misshapen": misshapen}
    numbers = {name: leaf.dtype for name, leaf in stored.items()}
    if odd := [name for name, kind in numbers.items() if not jnp.issubdtype(kind, jnp.floating)]:
        raise ValueError(
            f"{folder}: {odd[0]} is {numbers[odd[0]]}: expected floating-point weights."
        )
    lines = []
    for kind, names in kinds.items():
        lines += [f"  {kind}: {name}" for name in sorted(names)[:SHOWN]]
        lines += [f"  {kind}: and {len(names) - SHOWN} more"] * (len(names) > SHOWN)
    if lines:
        raise ValueError(
            f"{folder} does not fit the model ({len(missing)} leaves missing, {len(surplus)} "
            f"surplus, {len(misshapen)} misshapen): is it the right configuration?\n"
            + "\n".join(lines)
        )


def refuse_foreign(folder: str | Path) -> None:
    """ValueError that says what a folder is, where it is not a checkpoint that we can read."""
    folder = Path(folder)

    def steps() -> list[str]:
        return sorted(path.parent.name for path in folder.glob("*/params") if path.is_dir())

    config = load_config(folder) if has_config(folder) else {}
    if (folder / "meta" / "info.json").exists():
        found = "a LeRobot data set, not a policy"
    elif "input_features" in config:
        found = (
            f"a LeRobot policy of type {config.get('type')!r}, in PyTorch: open it with "
            "`interop.lerobot.policy.LeRobotPolicy.load` in the environment of `make test-lerobot` "
            "(docs/another_vla.md), or use openpi's JAX checkpoint"
        )
    elif (folder / "adapter_config.json").exists():
        found = "a LoRA adapter of PEFT: merge it into its model first"
    elif config.get("model_type", "openvla") != "openvla":
        found = f"a Hugging Face model of type {config['model_type']!r}, not a policy"
    elif (folder / "run.json").exists() or (folder / "detector.json").exists():
        found = "a run or a monitor of mistjax, not a policy"
    elif not config and not (folder / "params").exists() and steps():
        found = f"a training run with the checkpoints {steps()}: name one of these folders"
    else:
        return
    raise ValueError(f"{folder} is {found}.")


def has_config(folder: str | Path) -> bool:
    """Whether the folder says its model's configuration; openpi's published ones do not."""
    return (Path(folder) / "config.json").exists()


def load_config(folder: str | Path) -> dict[str, Any]:
    """The model's configuration as JSON values, as given to `save_checkpoint`.

    Raises:
        FileNotFoundError: no config.json, as in openpi's published checkpoints.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: pass the model's configuration yourself.")
    return read_json(path)


def read_config(folder: str | Path, kind: type[Config]) -> Config:
    """The model's configuration of that kind; raises as `load_config` and `from_json`."""
    data = load_config(folder)
    try:
        return kind.from_json(data)
    except ValueError as error:
        raise ValueError(f"{folder}/config.json: {error}") from error


def load_assets(folder: str | Path, asset_id: str | None = None) -> dict[str, NormStats]:
    """The normalisation statistics of a checkpoint.

    Args:
        folder: a checkpoint folder.
        asset_id: whose statistics; None takes the only ones there are.

    Raises:
        FileNotFoundError: there are none, or none of that name.
        ValueError: several, and no `asset_id`.
    """
    assets = Path(folder) / "assets"
    found = {
        path.parent.relative_to(assets).as_posix(): path
        for path in sorted(assets.rglob("norm_stats.json"))
    }
    if asset_id is None and len(found) > 1:
        raise ValueError(f"{assets} holds statistics of {list(found)}: pass one as asset_id.")
    if not found or (asset_id is not None and asset_id not in found):
        raise FileNotFoundError(
            f"{assets} holds no <asset_id>/norm_stats.json"
            + (f" of {asset_id!r}; it has {list(found)}: is it of another robot?" if found else ".")
        )
    return load_norm_stats(found[asset_id] if asset_id is not None else next(iter(found.values())))


def load_tokenizer(folder: str | Path, max_tokens: int) -> PromptTokenizer:
    """The tokenizer that was saved with the parameters, or the one of openpi's published
    checkpoints, which is PaliGemma's and downloaded once.

    Raises:
        FileNotFoundError: no checkpoint, or one of ours (with a config.json) without its tokenizer.
        ConnectionError, ImportError: see `sources.fetch`.
        ValueError: not a tokenizer, or one with other special tokens.
    """
    path = Path(folder) / "assets" / "tokenizer.model"
    if not path.exists():
        if has_config(folder) or not (Path(folder) / "params").is_dir():
            raise FileNotFoundError(f"{path} does not exist: the checkpoint is incomplete.")
        path = fetch(PALIGEMMA_TOKENIZER)
    tokenizer = PromptTokenizer.from_file(path, max_tokens)
    if tokenizer.special != (PAD, EOS, BOS, UNKNOWN):
        raise ValueError(
            f"{path} numbers pad, end, begin and unknown {tokenizer.special}: expected "
            f"{(PAD, EOS, BOS, UNKNOWN)}, as PaliGemma's does."
        )
    return tokenizer


def fingerprint(
    params: PyTree,
    config: Mapping[str, Any],
    norm_stats: Mapping[str, NormStats],
    tokenizer: bytes,
    options: Mapping[str, Any] | None = None,
) -> str:
    """SHA-256 (hex) of everything that decides what a policy does; independent of sharding.

    `options` are the rest, of JSON values and dataclasses; None where the other arguments imply
    them. Parameters converted to another dtype make a different policy. Reads every parameter once:
    seconds for the 3 B model, which is copied to the host leaf by leaf.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(_by_name(params).items()):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, stats in sorted(norm_stats.items()):
        digest.update(name.encode())
        for path, leaf in jax.tree.leaves_with_path(stats):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.asarray(leaf, np.float32).tobytes())
    digest.update(hashlib.sha256(tokenizer).digest())
    if options is not None:
        digest.update(json.dumps(options, sort_keys=True, default=_described).encode())
    return digest.hexdigest()


def _described(value: Any) -> str:
    kind = type(value)
    return repr(value) if dataclasses.is_dataclass(value) else f"{kind.__module__}.{kind.__name__}"

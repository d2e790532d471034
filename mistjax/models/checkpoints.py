"""Policies on disk, in openpi's checkpoint layout.

    <folder>/params/                        orbax PyTree {"params": tree}
    <folder>/assets/<asset_id>/norm_stats.json
    <folder>/assets/tokenizer.model         ours: SentencePiece
    <folder>/config.json                    ours: the model's configuration

openpi's own training adds one path element `value` under every leaf; it is taken off on loading.
Published openpi checkpoints have no config.json: say the configuration in code for those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from mistjax.files import atomic, read_json
from mistjax.models.normalize import NormStats, load_norm_stats, save_norm_stats
from mistjax.models.sources import fetch
from mistjax.models.tokenizers import PromptTokenizer

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
    folder: str | Path, expected: PyTree[jax.ShapeDtypeStruct], dtype: Any = None
) -> PyTree[jax.Array]:
    """Reads the parameters onto the default device, however many devices wrote them.

    Names and shapes are compared before any array is read, so a mistake costs nothing.

    Args:
        folder: a checkpoint folder.
        expected: the model's tree, e.g. `jax.eval_shape(model.init, ...)["params"]`. Its dtypes
            are not compared.
        dtype: what to convert to; None keeps what is stored.

    Raises:
        FileNotFoundError: no parameters in the folder.
        ValueError: a PyTorch checkpoint, or a tree that differs; names the leaves that differ.
    """
    folder = Path(folder).resolve()
    stored = _stored(folder)
    with ocp.PyTreeCheckpointer() as checkpointer:
        _compare(folder, _by_name(stored["params"]), _by_name(expected))
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        restore = ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding, dtype=dtype)
        args = ocp.args.PyTreeRestore(
            item=stored, restore_args=jax.tree.map(lambda _: restore, stored)
        )
        tree = checkpointer.restore(folder / "params", args=args)["params"]
    return unflatten_dict(_by_name(tree), sep="/")


def leaf_names(folder: str | Path) -> frozenset[str]:
    """Names of the stored parameters, such as `action_in_proj/kernel`; reads no array."""
    return frozenset(_by_name(_stored(Path(folder).resolve())["params"]))


def _stored(folder: Path) -> dict[str, Any]:
    """What the parameters on disk look like; raises as `load_params` does."""
    path = folder / "params"
    if not path.is_dir():
        if (folder / "model.safetensors").exists():
            raise ValueError(
                f"{folder} holds model.safetensors, openpi's PyTorch format: use the JAX "
                "checkpoint of the same name, which has a params/ folder."
            )
        raise FileNotFoundError(f"{folder} has no params/: expected an openpi checkpoint folder.")
    with ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.metadata(path).item_metadata.tree
    if "params" not in stored:
        raise ValueError(f"{path} holds {sorted(stored)}: expected one tree named 'params'.")
    return {"params": stored["params"]}


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
            + (f" of {asset_id!r}; it has {list(found)}." if found else ".")
        )
    return load_norm_stats(found[asset_id] if asset_id is not None else next(iter(found.values())))


def load_tokenizer(folder: str | Path, max_tokens: int) -> PromptTokenizer:
    """The tokenizer that was saved with the parameters, or the one of openpi's published
    checkpoints, which is PaliGemma's and downloaded once.

    Raises:
        FileNotFoundError: no checkpoint, or one of ours (with a config.json) without its tokenizer.
        ConnectionError, ImportError: see `sources.fetch`.
    """
    path = Path(folder) / "assets" / "tokenizer.model"
    if not path.exists():
        if has_config(folder) or not (Path(folder) / "params").is_dir():
            raise FileNotFoundError(f"{path} does not exist: the checkpoint is incomplete.")
        path = fetch(PALIGEMMA_TOKENIZER)
    return PromptTokenizer.from_file(path, max_tokens)


def fingerprint(
    params: PyTree,
    config: Mapping[str, Any],
    norm_stats: Mapping[str, NormStats],
    tokenizer: bytes,
) -> str:
    """SHA-256 (hex) of all that decides what a policy does; the same however it was sharded.

    Parameters converted to another dtype are another policy. Reads every parameter once: seconds
    for the 3 B model, which is copied to the host leaf by leaf.
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
    return digest.hexdigest()

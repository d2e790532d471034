"""Load and save a Hugging Face folder: safetensors shards and their index, config.json,
dataset_statistics.json.

Names and shapes are compared with the model's before a single array is read, so a wrong folder
fails at once and says how. Cost: one copy of the weights in `dtype`; shards are read one array at
a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mistjax.interop.openvla.config import OpenVLAConfig
from mistjax.interop.openvla.model import OpenVLA

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def empty_model(config: OpenVLAConfig, attention: str = "sdpa") -> OpenVLA:
    """The model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return OpenVLA(config, attention).requires_grad_(False).eval()


def check_names(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError naming the missing, surplus and misshapen arrays."""
    missing = sorted(set(expected) - set(given))
    surplus = sorted(set(given) - set(expected))
    misshapen = sorted(k for k in set(expected) & set(given) if expected[k] != given[k])
    if not (missing or surplus or misshapen):
        return
    shapes = [f"{k} is {given[k]}, expected {expected[k]}" for k in misshapen]
    report = {"missing": missing, "surplus": surplus, "misshapen": shapes}
    raise ValueError(
        "these weights do not fit this model. "
        + " ".join(
            f"{len(names)} {what}: {'; '.join(names[:8])}{' ...' if len(names) > 8 else ''}."
            for what, names in report.items()
            if names
        )
        + " Check that config.json belongs to the weights."
    )


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def install(
    model: OpenVLA,
    weights: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> OpenVLA:
    """Gives an `empty_model` its weights; ValueError if names or shapes differ."""
    check_names(shapes_of(model), {name: tuple(value.shape) for name, value in weights.items()})
    own = {name: value.to(device=device, dtype=dtype) for name, value in weights.items()}
    return _assign(model, own, device)


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
) -> OpenVLA:
    """Reads a folder as published for openvla-7b and its fine-tuned versions.

    Args:
        folder: local path; nothing is downloaded.
        dtype: float32, or bfloat16 as published (15 GB for 7B).
        device: where the weights go.
        attention: "sdpa" or "eager".

    Raises:
        FileNotFoundError: no weights or no config.json.
        ValueError: names or shapes differ from the model's.
    """
    folder = Path(folder)
    model = empty_model(OpenVLAConfig.load(folder), attention)
    files = _files(folder)
    given = {}
    for file in files:
        with safe_open(file, "pt") as shard:
            given |= {n: tuple(shard.get_slice(n).get_shape()) for n in shard.keys()}  # noqa: SIM118
    check_names(shapes_of(model), given)
    weights = {}
    for file in files:
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                weights[name] = shard.get_tensor(name).to(device=device, dtype=dtype)
    return _assign(model, weights, device)


def save(model: OpenVLA, folder: str | Path, *, shard_bytes: int = 5_000_000_000) -> None:
    """Writes weights, `config.json` and `dataset_statistics.json`.

    Args:
        model: what to write.
        folder: where to; weights that are there already are removed.
        shard_bytes: weights that need more than this become several files and an index.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in model.state_dict().items():
        if shards[-1] and size + value.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = value.contiguous()
        size += value.nbytes
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE)
    else:
        where = {}
        for i, shard in enumerate(shards, 1):
            file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            save_file(shard, folder / file)
            where |= dict.fromkeys(shard, file)
        total = sum(value.nbytes for value in model.state_dict().values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    dtype = str(model.dtype).removeprefix("torch.")
    _write_json(folder / "config.json", {**model.config.to_json(), "torch_dtype": dtype})
    _write_json(folder / "dataset_statistics.json", dict(model.config.norm_stats))


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        return [folder / name for name in sorted(names)]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    raise FileNotFoundError(
        f"{folder} holds neither {INDEX} nor {SINGLE}: expected a Hugging Face model folder."
    )


def _assign(model: OpenVLA, weights: dict[str, Tensor], device: str | torch.device) -> OpenVLA:
    model.load_state_dict(weights, assign=True)
    # The rotary table is a buffer that no file holds; on the meta device it has no values yet.
    llama = model.language_model.model
    llama.rotary_emb = type(llama.rotary_emb)(llama.config).to(device)
    return model.requires_grad_(False).eval()

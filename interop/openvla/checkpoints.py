"""Load and save a Hugging Face folder: safetensors shards and their index, config.json,
dataset_statistics.json.

Names and shapes are compared with the model's before a single array is read, so a wrong folder
fails at once and says how. Cost: one copy of the weights in `dtype`; shards are read one array at
a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interop.openvla.config import OpenVLAConfig, named_dtype
from interop.openvla.model import OpenVLA
from mistjax.files import read_json
from mistjax.untrusted import reading, refuse_stand_in

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
QUANTISED = "of quantised weights, and this port reads floats: save the model without quantisation"
FOREIGN = {
    r"\.lora_": "a factor of LoRA: merge the adapter into its model and save that",
    r"(^|[._])ema[._]": "a moving average beside the weights: save the one that is to act, alone",
    r"^optim": "of a training state: save the model's weights alone",
    r"\.(absmax|quant_map|quant_state|qweight|qzeros|SCB|weight_scale)": QUANTISED,
}
"""Names that tell what a tree of weights is, where it is none of this model."""
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
    for pattern, what in FOREIGN.items():
        if names := [n for n in given if n not in expected and re.search(pattern, n)]:
            raise ValueError(f"{names[0]} is {what}.")
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
    """The shape of each parameter by its name."""
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
    config: OpenVLAConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
) -> OpenVLA:
    """Reads a folder as published for openvla-7b and its fine-tuned versions.

    Args:
        folder: local path; nothing is downloaded.
        config: None reads the folder's.
        dtype: float32, or bfloat16 as published (15 GB for 7B).
        device: where the weights go.
        attention: "sdpa" or "eager".

    Raises:
        FileNotFoundError: no weights, not all of them, or no config.json.
        ValueError: names or shapes differ from the model's, or weights that are quantised or not
            finite.
    """
    folder = Path(folder)
    model = empty_model(config or OpenVLAConfig.load(folder), attention)
    files = _files(folder)
    given = _stored(files)
    with reading(folder, "an OpenVLA"):
        check_names(shapes_of(model), {name: shape for name, (shape, _) in given.items()})
    weights = {}
    for file in files:
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                weights[name] = shard.get_tensor(name).to(device=device, dtype=dtype)
                if not torch.isfinite(weights[name]).all():
                    raise ValueError(
                        f"{file}: {name} holds NaN or Inf as {dtype}: it is damaged, or too large."
                    )
    return _assign(model, weights, device)


def own_dtype(folder: Path) -> torch.dtype:
    """The dtype that `config.json` names, else that of the weights.

    Raises:
        ValueError: it names another dtype than floats, or none while the weights have several.
    """
    with reading(folder / "config.json", "an OpenVLA's configuration"):
        named = named_dtype(read_json(folder / "config.json"))
    if named is None:
        found = {DTYPES[kind] for _, kind in _stored(_files(folder)).values()}
        if len(found) > 1:
            raise ValueError(
                f"{folder}/config.json names no dtype, and its weights have {sorted(found)}: pass "
                "the one to run in."
            )
        (named,) = found
    return getattr(torch, named)


def _stored(files: Sequence[Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each array, without reading any.

    Raises:
        ValueError: a file is damaged or a pointer, an array is there twice or quantised.
    """
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        with file.open("rb") as start:
            refuse_stand_in(file, start.read(256))
        with reading(file, "a whole safetensors file"), safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                if name in found:
                    raise ValueError(f"{name} is in two files of the folder.")
                about = shard.get_slice(name)
                found[name] = tuple(about.get_shape()), about.get_dtype()
                if about.get_dtype() not in DTYPES:
                    raise ValueError(f"{name} ({about.get_dtype()}) is {QUANTISED}.")
    return found


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
        places = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else [""]
        for name in names:
            if not name.endswith(".safetensors") or Path(name).name != name:
                raise ValueError(
                    f"{folder / INDEX} names the file {name!r}: expected safetensors files in this "
                    "folder."
                )
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name} is missing, and {INDEX} names it: the copy is incomplete."
                )
        return [folder / name for name in names]
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

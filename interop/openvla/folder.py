"""A policy as a Hugging Face folder.

    config.json, dataset_statistics.json   sizes, action statistics; see `config` for our own keys
    model-00001-of-0000N.safetensors       the network, with an index; or one model.safetensors
    tokenizer.model                        SentencePiece
    action_head.safetensors                OpenVLA-OFT: the head
    proprio_projector.safetensors          OpenVLA-OFT with state: its projector

OFT publishes its last two as pickles: `interop.convert_pt.convert` makes safetensors of them, and
`config.json` needs the key `oft`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mistjax.interop.openvla import actions, checkpoints
from mistjax.interop.openvla.decoders import ChunkDecoder, Decoder, TokenDecoder
from mistjax.interop.openvla.model import OpenVLA
from mistjax.interop.openvla.oft import OFTParts
from mistjax.interop.openvla.oft_components import load_component
from mistjax.models.tokenizers import PromptTokenizer

HEAD, PROPRIO, TOKENIZER = (
    "action_head.safetensors",
    "proprio_projector.safetensors",
    "tokenizer.model",
)


def load_parts(
    folder: str | Path,
    unnorm_key: str | None,
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> tuple[OpenVLA, Decoder, PromptTokenizer]:
    """What a folder holds; arguments and errors as `OpenVLAPolicy.load`."""
    folder = Path(folder)
    if dtype is None:
        dtype = _named_dtype(folder)
    model = checkpoints.load(folder, dtype=dtype, device=device)
    stats = actions.statistics(model.config.norm_stats, unnorm_key, "action")
    action_dim = len(stats["q01"])
    tokenizer = PromptTokenizer.from_file(folder / TOKENIZER, model.config.max_prompt_tokens)
    if model.config.oft is None:
        return model, TokenDecoder(model, action_dim), tokenizer
    with torch.device("meta"):
        parts = OFTParts.empty(model.config, action_dim)
    load_component(parts.head, folder / HEAD, dtype=dtype, device=device)
    if parts.proprio is not None:
        load_component(parts.proprio, folder / PROPRIO, dtype=dtype, device=device)
    return model, ChunkDecoder(model, parts), tokenizer


def save_parts(
    folder: str | Path,
    model: OpenVLA,
    decoder: Decoder,
    tokenizer: PromptTokenizer,
    shard_bytes: int,
) -> None:
    """Writes what `load_parts` reads."""
    folder = Path(folder)
    checkpoints.save(model, folder, shard_bytes=shard_bytes)
    (folder / TOKENIZER).write_bytes(tokenizer.serialized)
    if isinstance(decoder, ChunkDecoder):
        save_file(decoder.parts.head.state_dict(), folder / HEAD)
        if decoder.parts.proprio is not None:
            save_file(decoder.parts.proprio.state_dict(), folder / PROPRIO)


def _named_dtype(folder: Path) -> torch.dtype:
    name = json.loads((folder / "config.json").read_text()).get("torch_dtype", "bfloat16")
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"{folder}/config.json has torch_dtype {name!r}: one of {sorted(known)}.")
    return known[name]

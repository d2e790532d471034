"""A policy as a Hugging Face folder.

    config.json, dataset_statistics.json   sizes, action statistics; see `config` for our own keys
    model-00001-of-0000N.safetensors       the network, with an index; or one model.safetensors
    tokenizer.model                        SentencePiece
    action_head.safetensors                OpenVLA-OFT: the head
    proprio_projector.safetensors          OpenVLA-OFT with state: its projector
    vision_backbone.safetensors            OpenVLA-OFT+: towers with FiLM, in place of the network's

OFT publishes its last three as pickles: `interop.convert_pt.convert` makes safetensors of them, and
`config.json` needs the key `oft`, for the last one `film`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file

from interop.openvla import checkpoints
from interop.openvla.config import OpenVLAConfig
from interop.openvla.decoders import ChunkDecoder, Decoder, TokenDecoder
from interop.openvla.model import OpenVLA
from interop.openvla.oft import OFTParts
from interop.openvla.oft_components import load_component, load_film
from mistjax.files import read_json
from mistjax.models.checkpoints import refuse_foreign
from mistjax.models.tokenizers import PromptTokenizer

HEAD, PROPRIO, FILM, TOKENIZER = (
    "action_head.safetensors",
    "proprio_projector.safetensors",
    "vision_backbone.safetensors",
    "tokenizer.model",
)


def load_parts(
    folder: str | Path,
    config: OpenVLAConfig,
    action_dim: int,
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> tuple[OpenVLA, Decoder, PromptTokenizer]:
    """What a folder holds; arguments and errors as `OpenVLAPolicy.load`."""
    folder = Path(folder)
    tokenizer = _tokenizer(folder, config)
    if dtype is None:
        dtype = checkpoints.own_dtype(folder)
    apart = config.film and (folder / FILM).exists()
    plain = dataclasses.replace(config, film=False) if apart else config
    model = checkpoints.load(folder, plain, dtype=dtype, device=device)
    if apart:
        load_film(model, folder / FILM)
    if config.oft is None:
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


def load_config(folder: str | Path) -> tuple[OpenVLAConfig, str | None]:
    """The configuration of a folder that is an OpenVLA in all that its files say, and the only data
    set of its `dataset_statistics.json`.

    Raises:
        FileNotFoundError: no `config.json`.
        ValueError: something else, or files of OpenVLA-OFT whose use `config.json` does not say.
    """
    folder = Path(folder)
    refuse_foreign(folder)
    if (folder / "params").is_dir():
        raise ValueError(f"{folder} is a checkpoint of openpi, not an OpenVLA.")
    config = OpenVLAConfig.load(folder)
    parts = {
        "action_head": config.oft is not None,
        "proprio_projector": config.oft is not None and config.oft.state_dim is not None,
        "vision_backbone": config.film,
        "noisy_action_projector": False,
    }
    for part, used in parts.items():
        if not used and (found := sorted(path.name for path in folder.glob(f"{part}*"))):
            raise ValueError(
                f"{folder} holds {found[0]} of OpenVLA-OFT, and its config.json does not say how "
                "it is used: without it another policy would act. "
                + (
                    "A head that denoises is not implemented."
                    if part == "noisy_action_projector"
                    else 'Give config.json the key "oft" (and "film": true where the towers have '
                    "it), see interop.openvla.config."
                )
            )
    statistics = folder / "dataset_statistics.json"
    tuned_on = list(read_json(statistics)) if statistics.exists() else []
    return config, tuned_on[0] if len(tuned_on) == 1 else None


def _tokenizer(folder: Path, config: OpenVLAConfig) -> PromptTokenizer:
    file = folder / TOKENIZER
    if not file.exists():
        has = (
            " It has tokenizer.json, which is another format."
            * (folder / "tokenizer.json").exists()
        )
        raise FileNotFoundError(f"{file} does not exist: expected Llama-2's SentencePiece.{has}")
    tokenizer = PromptTokenizer.from_file(file, config.max_prompt_tokens)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise ValueError(
            f"{file} has {tokenizer.vocab_size} pieces, and the model {config.text.vocab_size} "
            "tokens: it is of another model."
        )
    return tokenizer

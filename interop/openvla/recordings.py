"""Outputs recorded from the original OpenVLA implementation, and the passes that repeat them.

A folder of recordings holds `config.json`, `weights.npz` (small random weights under the published
names), `inputs.npz` and one file for each group of outputs. All are arrays; none is a pickle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from interop.openvla import actions, checkpoints, generation
from interop.openvla.config import OpenVLAConfig, dinov2, siglip
from interop.openvla.hooks import Hooks, token_layouts
from interop.openvla.model import OpenVLA
from mistjax.files import read_json
from mistjax.untrusted import read_npz


def recorded_model(folder: str | Path, attention: str = "sdpa") -> OpenVLA:
    """The small model of a folder of recordings."""
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json: expected a folder of recordings.")
    raw = read_json(folder / "config.json")

    def tower(make, sizes):
        hidden = int(sizes["embed_dim"] * sizes.get("mlp_ratio", 4.0))
        return make(sizes["embed_dim"], sizes["depth"], sizes["num_heads"], hidden)

    towers = tower(dinov2, raw["vit_dino"]), tower(siglip, raw["vit_siglip"])
    config = OpenVLAConfig.from_json(
        {**raw, "vision_towers": [dataclasses.asdict(tower) for tower in towers]}
    )
    weights = {
        name: torch.tensor(array) for name, array in read_npz(folder / "weights.npz").items()
    }
    return checkpoints.install(checkpoints.empty_model(config, attention), weights)


class Recordings:
    """The recorded inputs, and the passes that several groups of outputs share."""

    def __init__(self, folder: Path, model: OpenVLA):
        self.model = model
        self.inputs = read_npz(folder / "inputs.npz")
        raw = read_json(folder / "config.json")
        self.stats = actions.statistics(raw["norm_stats"], raw["unnorm_key"], "action")
        self.norm_stats = raw["norm_stats"]

    def ids(self, prompt: int) -> torch.Tensor:
        """The prompt without the empty token."""
        return torch.tensor(self.inputs[f"prompt_ids_{prompt}"])

    def pixels(self, image: int) -> torch.Tensor:
        return torch.tensor(self.inputs[f"pixel_values_{image}"])

    def embedded(self, prompt: int, image: int, hooks: Hooks) -> generation.Embedded:
        ids = self.ids(prompt)
        inputs = generation.Inputs(
            self.model.embed_tokens(ids),
            torch.ones_like(ids, dtype=torch.bool),
            self.pixels(image),
            torch.ones(1, 1, dtype=torch.bool),
            torch.zeros(1, 0),
        )
        return generation.embed(self.model, inputs, hooks)

    def hooks(self, prompt: int, taps=(), edits=()) -> Hooks:
        length = self.ids(prompt).shape[1]
        layouts = token_layouts(self.model.config.num_patches, ("image_0",), length)
        return Hooks(self.model, layouts, taps, edits)

    @torch.no_grad()
    def decode(self, prompt: int, image: int, edits=()) -> generation.Decoded:
        with self.hooks(prompt, edits=edits) as hooks:
            prefix = generation.prefill(self.model, self.embedded(prompt, image, hooks), hooks)
            return generation.decode(self.model, prefix, 7, hooks)

    def action_logits(self, logits: torch.Tensor) -> np.ndarray:
        """The recorded slice of the vocabulary: action ids and what lies above them."""
        config = self.model.config
        return logits[..., config.action_vocab - config.n_action_bins :].numpy(force=True)

    def check_decoded(self, decoded: generation.Decoded, golden: Mapping) -> dict[str, float]:
        tokens = decoded.tokens[0].numpy()
        normalised = actions.decode(tokens, self.model.config.action_vocab)
        return {
            "wrong_tokens": wrong(tokens, golden["tokens"]),
            "step_logits": error(
                self.action_logits(decoded.logits[0]), golden["step_logits_action"]
            ),
            "actions": error(actions.unnormalise(normalised, self.stats), golden["actions"]),
        }


def error(got, expected: np.ndarray) -> float:
    """max |got - expected| / max(1, max |expected|); inf for another shape or a NaN."""
    got = np.asarray(got.numpy(force=True) if isinstance(got, torch.Tensor) else got)
    if got.shape != expected.shape or not np.all(np.isfinite(got)):
        return float("inf")
    return float(np.max(np.abs(got - expected)) / max(1.0, np.max(np.abs(expected))))


def wrong(got, expected: np.ndarray) -> float:
    """How many entries differ."""
    return float(np.sum(np.asarray(got) != expected))


def levels(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of two uint8 pictures."""
    return float(np.max(np.abs(got.astype(int) - expected.astype(int))))

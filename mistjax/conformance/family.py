"""What the runner needs to know of one family of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mistjax.models.config import FastConfig, Pi0Config

Arrays = Mapping[str, Any]
Config = Pi0Config | FastConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        init: configuration and key -> variables.
        inputs: names of the inputs besides `obs/...`.
        random_inputs: configuration, seed -> inputs of two examples, observation included.
        outputs: configuration, variables, inputs -> outputs; jitted, in float32.
        prefix_mask: the output that says which prefix tokens are valid [B,P].
        prefix_rows: outputs with an entry per prefix token -> how many axes come before [B,P].
    """

    init: Callable[[Any, Any], Any]
    inputs: frozenset[str]
    random_inputs: Callable[[Any, int], dict[str, Any]]
    outputs: Callable[[Any, Any, Arrays], dict[str, Any]]
    prefix_mask: str
    prefix_rows: Mapping[str, int]


def branch(arrays: Arrays, prefix: str) -> dict[str, Any]:
    """The arrays under a prefix, named without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def random_observation(config: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two examples with prompts of different lengths, under `obs/`; every camera present."""
    c, length = config, config.max_token_len
    real = np.arange(length) < np.array([[length - 1], [length // 2]])
    prompt = rng.integers(1, c.vocab_size, (2, length), dtype=np.int32)
    size = (2, c.image_size, c.image_size, 3)
    pictures = {k: np.tanh(rng.standard_normal(size, dtype=np.float32)) for k in c.image_keys}
    return {
        **{f"obs/images/{key}": picture for key, picture in pictures.items()},
        **{f"obs/image_masks/{key}": np.ones(2, bool) for key in c.image_keys},
        "obs/state": rng.standard_normal((2, c.action_dim), dtype=np.float32),
        "obs/tokenized_prompt": np.where(real, prompt, 0),
        "obs/tokenized_prompt_mask": real,
    }

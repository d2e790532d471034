"""openpi's own models at sizes of ours: its code has none without a vision tower of 400 M weights.

Its modules read sizes from functions and constants of theirs, which are replaced: nothing of how
they compute is. Needs openpi in the environment or its `src` folder on the path.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mistjax.models.config import FastConfig, GemmaConfig, Pi0Config

SOURCE = "OPENPI_SRC"


def put_on_path() -> None:
    """Makes `import openpi` find the checkout that OPENPI_SRC names: its folder, or its `src`."""
    root = Path(os.environ[SOURCE]).resolve()
    root = root.parent if root.name == "src" else root
    for folder in (root / "src", root / "packages" / "openpi-client" / "src"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


def resize(config: Pi0Config | FastConfig, patch: Callable[[Any, str, Any], Any] = setattr) -> None:
    """Makes openpi build models of these sizes from now on.

    Args:
        config: the sizes.
        patch: what sets an attribute, such as pytest's `monkeypatch.setattr`.
    """
    import ml_collections
    from openpi.models import gemma, gemma_fast, model, siglip

    tower, side = config.siglip, config.image_size

    def tower_sizes(_variant):
        return dataclasses.asdict(tower)

    def expert(variant):
        return gemma.Config(**_sizes(config.experts[-1 if "300m" in variant else 0]))

    def writer(variant):
        rest = {"variant": variant, "norm_eps": 1e-6, "vocab_size": config.vocab_size}
        rest |= {"scan": True, "remat_policy": "nothing_saveable"}
        return ml_collections.ConfigDict(_sizes(config.vlm) | rest)

    patch(siglip, "decode_variant", tower_sizes)
    patch(gemma, "get_config", expert)
    patch(gemma, "PALIGEMMA_VOCAB_SIZE", config.vocab_size)
    patch(gemma_fast, "get_config", writer)
    patch(model, "IMAGE_RESOLUTION", (side, side))
    preprocess = model.preprocess_observation
    defaults = preprocess.__kwdefaults__ | {"image_resolution": (side, side)}
    patch(preprocess, "__kwdefaults__", defaults)


def _sizes(config: GemmaConfig) -> dict[str, int]:
    return dataclasses.asdict(config)


def model_config(config: Pi0Config | FastConfig) -> Any:
    """openpi's configuration of such a model; `resize` comes first."""
    from openpi.models.pi0_config import Pi0Config as StockConfig
    from openpi.models.pi0_fast import Pi0FASTConfig

    common = {
        "dtype": config.dtype,
        "action_dim": config.action_dim,
        "action_horizon": config.action_horizon,
        "max_token_len": config.max_token_len,
    }
    if isinstance(config, FastConfig):
        return Pi0FASTConfig(**common)
    return StockConfig(pi05=config.pi05, **common)


def observation_of(obs: Any) -> Any:
    """Our observation as openpi's."""
    import jax.numpy as jnp
    from openpi.models.model import Observation

    return Observation(
        images={k: jnp.asarray(v) for k, v in obs.images.items()},
        image_masks={k: jnp.asarray(v) for k, v in obs.image_masks.items()},
        state=jnp.asarray(obs.state),
        tokenized_prompt=jnp.asarray(obs.tokenized_prompt),
        tokenized_prompt_mask=jnp.asarray(obs.tokenized_prompt_mask),
        token_ar_mask=jnp.zeros_like(jnp.asarray(obs.tokenized_prompt)),
    )

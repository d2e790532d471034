"""Compares our models with a recorded file, and records such files.

One `.npz` holds the parameters (`params/...`), the inputs (`obs/...`, `sample/noise`, ...) and the
outputs; a `.json` beside it holds the model's sizes. Everything runs in float32 at the highest
matmul precision. The goldens under `tests/` were recorded from openpi, the original
implementation; `record` writes the same format from our own models, so that another version,
machine or accelerator can be compared.

Outputs at invalid prefix tokens (padding, absent cameras) are left out: openpi lets a query that
may see nothing attend to everything alike, so their values depend on how many keys there are, and
no other token ever reads them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mistjax.conformance.family import Config, Family, branch
from mistjax.conformance.fast import FAST
from mistjax.conformance.pi import PI
from mistjax.conformance.rows import Row
from mistjax.files import read_json
from mistjax.models import checkpoints
from mistjax.models.config import FastConfig, GemmaConfig, Pi0Config, SiglipConfig
from mistjax.untrusted import read_npz, reading


def run_conformance(
    npz: str | Path, json_file: str | Path | None = None, atol: float = 2e-5
) -> list[Row]:
    """The largest absolute error of every output stored in a file, beside what our models compute
    from its inputs.

    Args:
        npz: the recorded arrays.
        json_file: the model's sizes; None means the npz's name with `.json`.
        atol: largest absolute error that passes.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: an unknown model, parameters that do not fit it, or an output that no model here
            has or that has another shape.
    """
    npz = Path(npz)
    arrays = read_npz(npz)
    described = Path(json_file or npz.with_suffix(".json"))
    sizes = read_json(described)
    with reading(described, "the sizes of a model"):
        config = _config(sizes, tuple(branch(arrays, "obs/images/")))
    family = _family(config)
    variables = {"params": unflatten_dict(branch(arrays, "params/"), sep="/")}
    _check_tree(family, config, variables)
    inputs = {k: v for k, v in arrays.items() if k in family.inputs or k.startswith("obs/")}
    got = jax.device_get(family.outputs(config, variables, inputs))
    wanted = {k: v for k, v in arrays.items() if k not in inputs and not k.startswith("params/")}
    wrong = [
        f"{name} {value.shape}"
        for name, value in wanted.items()
        if name not in got or got[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(f"{npz}: {sizes['name']} has no outputs {wrong}; it has {sorted(got)}.")
    valid = got[family.prefix_mask]
    return [
        Row(
            sizes["name"],
            name,
            _error(got[name], value, family.prefix_rows.get(name), valid),
            atol,
        )
        for name, value in wanted.items()
    ]


def record(config: Config, variables: Any, npz: str | Path, *, seed: int = 0) -> None:
    """Writes parameters, random inputs and our own outputs as `<npz>` and its `.json`.

    The file is as large as the parameters in float32.

    Args:
        config: model sizes, e.g. `policy.config`.
        variables: `{"params": tree}`, e.g. `policy.variables`.
        npz: the file to write; its name must end in `.npz`.
        seed: of the inputs: two examples with prompts of different lengths and, in pi0's second,
            an absent last camera.

    Raises:
        ValueError: another file name, or parameters that do not fit the configuration.
    """
    npz, family = Path(npz), _family(config)
    if npz.suffix != ".npz":
        raise ValueError(f"{npz} does not end in .npz.")
    _check_tree(family, config, variables)
    config = dataclasses.replace(config, dtype="float32", remat=False)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    inputs = family.random_inputs(config, seed)
    outputs = jax.device_get(family.outputs(config, variables, inputs))
    params = {f"params/{k}": v for k, v in flatten_dict(variables["params"], sep="/").items()}
    npz.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {**params, **inputs, **outputs}
    np.savez_compressed(npz, **arrays)
    npz.with_suffix(".json").write_text(json.dumps(_sizes(config), indent=1) + "\n")


def record_checkpoint(folder: str | Path, npz: str | Path) -> None:
    """`record` of a checkpoint folder of a pi0, pi0.5 or pi0-FAST."""
    stored = checkpoints.load_config(folder)
    kind = FastConfig if "max_decoding_steps" in stored else Pi0Config
    config = kind.from_json(stored)
    params = checkpoints.load_params(folder, _expected(_family(config), config))
    record(config, {"params": params}, npz)


def _family(config: Config) -> Family:
    return FAST if isinstance(config, FastConfig) else PI


_SAME = ("vocab_size", "action_horizon", "action_dim", "max_token_len")


def _config(sizes: Mapping[str, Any], image_keys: tuple[str, ...]) -> Config:
    name = sizes["name"]
    if name not in ("pi0", "pi05", "pi0_fast"):
        raise ValueError(f"model {name!r}: expected 'pi0', 'pi05' or 'pi0_fast'.")
    common: dict[str, Any] = {
        "siglip": SiglipConfig(
            **{**sizes["siglip"], "patch_size": tuple(sizes["siglip"]["patch_size"])}
        ),
        "vlm": GemmaConfig(**sizes["vlm"]),
        "image_size": sizes["image_resolution"],
        "image_keys": image_keys,
        "dtype": "float32",
        "remat": False,
        **{key: sizes[key] for key in _SAME},
    }
    if name == "pi0_fast":
        return FastConfig(max_decoding_steps=sizes["max_decoding_steps"], **common)
    expert = GemmaConfig(**sizes["action_expert"])
    return Pi0Config(
        action_expert=expert, num_steps=sizes["num_steps"], pi05=name == "pi05", **common
    )


def _sizes(config: Config) -> dict[str, Any]:
    sizes = config.to_json()
    for ours in ("dtype", "remat", "image_keys"):
        del sizes[ours]
    name = "pi0_fast"
    if "pi05" in sizes:
        name = "pi05" if sizes.pop("pi05") else "pi0"
    return {"name": name, "image_resolution": sizes.pop("image_size"), **sizes}


def _expected(family: Family, config: Config) -> Any:
    return jax.eval_shape(lambda: family.init(config, jax.random.key(0)))["params"]


def _check_tree(family: Family, config: Config, variables: Any) -> None:
    def shapes(tree: Any) -> set[str]:
        flat: dict[str, Any] = flatten_dict(tree, sep="/")
        return {f"{name} {list(leaf.shape)}" for name, leaf in flat.items()}

    model, given = shapes(_expected(family, config)), shapes(variables["params"])
    if model != given:
        raise ValueError(
            f"the parameters do not fit the sizes: only the model has {sorted(model - given)}, "
            f"only the parameters have {sorted(given - model)}."
        )


def _error(got: np.ndarray, want: np.ndarray, axes: int | None, valid: np.ndarray) -> float:
    """`axes` before [B,P], of which only the valid tokens are compared; None compares all."""
    rows = ... if axes is None else (slice(None),) * axes + (valid,)
    return float(np.max(np.abs(got.astype(np.float32)[rows] - want.astype(np.float32)[rows])))

"""Does this code compute what another did? A recorded file of parameters, inputs and outputs says.

One `.npz` holds the parameters (`params/...`), the inputs (`obs/...`, `suffix/x_t`, `sample/noise`,
...) and the outputs; a `.json` beside it holds the model's sizes. Everything runs in float32 at the
highest matmul precision. The goldens under `tests/` were recorded from openpi, the original
implementation; `record` writes the same format from our own models, so that another version,
machine or accelerator can be compared.

Rows of invalid prefix tokens (padding, absent cameras) are left out: openpi lets a query that may
see nothing attend to everything alike, so their values depend on how many keys there are, and no
other token ever reads them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mistjax.hooks.interceptor import Tokens, hooked_apply
from mistjax.hooks.sites import Tap
from mistjax.models import checkpoints, pi0
from mistjax.models.config import GemmaConfig, Pi0Config, SiglipConfig
from mistjax.models.observation import Observation
from mistjax.models.pi0 import Pi0
from mistjax.models.sampling import denoise, prefill, scanned_stacks, token_layouts

Arrays = Mapping[str, Any]

_POINTS = ("attn_out", "mlp_out", "resid")
_CAPTURES = {"vlm": ("attn_0.out", "mlp.out", "resid_post_0")}
_CAPTURES["action"] = ("attn_1.out", "mlp_1.out", "resid_post_1")
# Outputs with one row per prefix token -> the axes before [B,P].
_PREFIX_ROWS = {"joint/prefix_out": 0, "prefill/k": 1, "prefill/v": 1} | {
    f"{part}/capture/{name}": 1 for part in ("joint", "prefill") for name in _CAPTURES["vlm"]
}
_INPUTS = {"suffix/x_t", "suffix/t", "sample/noise", "sample/num_steps", "loss/actions"}
_INPUTS |= {"loss/rng_seed"}


@dataclasses.dataclass(frozen=True)
class Report:
    """The largest absolute error of each output of one file."""

    file: str
    atol: float
    errors: Mapping[str, float]

    @property
    def failed(self) -> tuple[str, ...]:
        """Outputs above the tolerance; NaN counts as above."""
        return tuple(name for name, error in self.errors.items() if not error <= self.atol)

    def __str__(self) -> str:
        rows = [
            f"{error:10.2e}  {name}{'  above atol' if name in self.failed else ''}"
            for name, error in self.errors.items()
        ]
        verdict = f"{len(self.failed)} of {len(rows)} outputs above atol {self.atol:g}"
        return "\n".join([self.file, *rows, verdict])


def run_conformance(
    npz: str | Path, json_file: str | Path | None = None, atol: float = 2e-5
) -> Report:
    """Compares every output stored in a file with what our models compute from its inputs.

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
    with np.load(npz, allow_pickle=False) as stored:
        arrays = dict(stored)
    sizes = json.loads(Path(json_file or npz.with_suffix(".json")).read_text())
    config = _config(sizes, tuple(_branch(arrays, "obs/images/")))
    variables = {"params": unflatten_dict(_branch(arrays, "params/"), sep="/")}
    _check_tree(config, variables)
    inputs = {k: v for k, v in arrays.items() if k in _INPUTS or k.startswith("obs/")}
    got = jax.device_get(_outputs(config, variables, inputs))
    wanted = {k: v for k, v in arrays.items() if k not in inputs and not k.startswith("params/")}
    wrong = [
        f"{name} {value.shape}"
        for name, value in wanted.items()
        if name not in got or got[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(f"{npz}: {sizes['name']} has no outputs {wrong}; it has {sorted(got)}.")
    valid = got["prefix/mask"]
    return Report(str(npz), atol, {n: _error(n, got[n], wanted[n], valid) for n in wanted})


def record(config: Pi0Config, variables: Any, npz: str | Path, *, seed: int = 0) -> None:
    """Writes parameters, random inputs and our own outputs as `<npz>` and its `.json`.

    The file is as large as the parameters in float32.

    Args:
        config: model sizes, e.g. `policy.config`.
        variables: `{"params": tree}`, e.g. `policy.variables`.
        npz: the file to write; its name must end in `.npz`.
        seed: of the inputs: two examples with prompts of different lengths and, in the second, an
            absent last camera.

    Raises:
        ValueError: another file name, or parameters that do not fit the configuration.
    """
    npz = Path(npz)
    if npz.suffix != ".npz":
        raise ValueError(f"{npz} does not end in .npz.")
    _check_tree(config, variables)
    config = dataclasses.replace(config, dtype="float32", remat=False)
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    inputs = _random_inputs(config, seed)
    arrays: dict[str, Any] = {
        **{f"params/{k}": v for k, v in flatten_dict(variables["params"], sep="/").items()},
        **inputs,
        **jax.device_get(_outputs(config, variables, inputs)),
    }
    npz.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(npz, **arrays)
    npz.with_suffix(".json").write_text(json.dumps(_sizes(config), indent=1) + "\n")


def main(file: Path, *, atol: float = 2e-5, record_from: Path | None = None) -> int:
    """Compares FILE.npz with this code, output by output.

    Args:
        file: the recorded arrays; its model sizes lie beside it as FILE.json.
        atol: largest absolute error that passes.
        record_from: a checkpoint folder; writes FILE.npz from it before comparing.

    Returns:
        The exit code: 1 when an output is off by more than `atol`.
    """
    if record_from is not None:
        config = Pi0Config.from_json(checkpoints.load_config(record_from))
        params = checkpoints.load_params(record_from, _expected(config))
        record(config, {"params": params}, file)
    report = run_conformance(file, atol=atol)
    print(report)
    return int(bool(report.failed))


def _branch(arrays: Arrays, prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _config(sizes: Mapping[str, Any], image_keys: tuple[str, ...]) -> Pi0Config:
    if sizes["name"] not in ("pi0", "pi05"):
        raise ValueError(f"model {sizes['name']!r}: expected 'pi0' or 'pi05'.")
    patch = tuple(sizes["siglip"]["patch_size"])
    same = ("vocab_size", "action_horizon", "action_dim", "max_token_len", "num_steps")
    return Pi0Config(
        siglip=SiglipConfig(**{**sizes["siglip"], "patch_size": patch}),
        vlm=GemmaConfig(**sizes["vlm"]),
        action_expert=GemmaConfig(**sizes["action_expert"]),
        image_size=sizes["image_resolution"],
        image_keys=image_keys,
        pi05=sizes["name"] == "pi05",
        dtype="float32",
        remat=False,
        **{name: sizes[name] for name in same},
    )


def _sizes(config: Pi0Config) -> dict[str, Any]:
    sizes = config.to_json()
    for ours in ("dtype", "remat", "image_keys"):
        del sizes[ours]
    name = "pi05" if sizes.pop("pi05") else "pi0"
    return {"name": name, "image_resolution": sizes.pop("image_size"), **sizes}


def _expected(config: Pi0Config) -> Any:
    return jax.eval_shape(lambda: pi0.init(config, jax.random.key(0)))["params"]


def _check_tree(config: Pi0Config, variables: Any) -> None:
    def shapes(tree: Any) -> set[str]:
        flat: dict[str, Any] = flatten_dict(tree, sep="/")
        return {f"{name} {list(leaf.shape)}" for name, leaf in flat.items()}

    model, given = shapes(_expected(config)), shapes(variables["params"])
    if model != given:
        raise ValueError(
            f"the parameters do not fit the sizes: only the model has {sorted(model - given)}, "
            f"only the parameters have {sorted(given - model)}."
        )


def _error(name: str, got: np.ndarray, want: np.ndarray, valid: np.ndarray) -> float:
    got, want = got.astype(np.float32), want.astype(np.float32)
    if name in _PREFIX_ROWS:
        rows = (slice(None),) * _PREFIX_ROWS[name] + (valid,)
        got, want = got[rows], want[rows]
    return float(np.max(np.abs(got - want)))


def _random_inputs(config: Pi0Config, seed: int) -> dict[str, Any]:
    rng, c = np.random.default_rng(seed), config

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((2, *shape), dtype=np.float32)

    size, last = (c.image_size, c.image_size, 3), c.image_keys[-1]
    lengths = np.array([[c.max_token_len - 1], [c.max_token_len // 2]])
    real = np.arange(c.max_token_len) < lengths
    prompt = rng.integers(1, c.vocab_size, (2, c.max_token_len), dtype=np.int32)
    chunk = (c.action_horizon, c.action_dim)
    return {
        **{f"obs/images/{key}": np.tanh(normal(*size)) for key in c.image_keys},
        **{f"obs/image_masks/{key}": np.array([True, key != last]) for key in c.image_keys},
        "obs/state": normal(c.action_dim),
        "obs/tokenized_prompt": np.where(real, prompt, 0),
        "obs/tokenized_prompt_mask": real,
        "suffix/x_t": normal(*chunk),
        "suffix/t": rng.uniform(0.1, 0.9, 2).astype(np.float32),
        "sample/noise": normal(*chunk),
        "sample/num_steps": np.int32(c.num_steps),
        "loss/actions": normal(*chunk),
        "loss/rng_seed": np.int32(seed),
    }


@jax.default_matmul_precision("highest")
@functools.partial(jax.jit, static_argnames="config")
def _outputs(config: Pi0Config, variables: Any, inputs: Arrays) -> dict[str, Any]:
    model = Pi0(config)
    fields: dict[str, Any] = unflatten_dict(_branch(inputs, "obs/"), sep="/")
    obs, x_t, t = Observation(**fields), inputs["suffix/x_t"], inputs["suffix/t"]

    def taps(stack: str) -> list[Tap]:
        return [Tap(f"{stack}.{point}") for point in _POINTS]

    out: dict[str, Any] = dict(
        zip(
            ("prefix/tokens", "prefix/mask", "prefix/ar_mask"),
            model.apply(variables, obs, method=Pi0.embed_prefix),
            strict=True,
        )
    )
    suffix: Any = model.apply(variables, obs.state, x_t, t, method=Pi0.embed_suffix)
    names = ("tokens", "mask", "ar_mask", "adarms_cond")
    out |= {f"suffix/{k}": v for k, v in zip(names, suffix, strict=True) if v is not None}

    prefix = prefill(model, variables, obs, taps=taps("vlm"))
    out |= {"prefill/k": prefix.cache[0], "prefill/v": prefix.cache[1]}
    out["joint/prefix_out"] = prefix.hidden
    layout = token_layouts(config)["action"]
    (out["joint/v_t"], out["joint/suffix_out"]), found = hooked_apply(
        model,
        variables,
        prefix.cache,
        prefix.valid,
        obs.state,
        x_t,
        t,
        method=Pi0.velocity,
        stacks=scanned_stacks(config),
        tokens={"action": Tokens(layout, suffix[1])},
        taps=taps("action"),
    )
    for name, tap in zip(_CAPTURES["vlm"], taps("vlm"), strict=True):
        out[f"joint/capture/{name}"] = out[f"prefill/capture/{name}"] = prefix.taps[str(tap)]
    for name, tap in zip(_CAPTURES["action"], taps("action"), strict=True):
        out[f"joint/capture/{name}"] = found[str(tap)]

    out["sample/actions"], _, _ = denoise(
        model,
        variables,
        prefix,
        obs.state,
        inputs["sample/noise"],
        num_steps=config.num_steps,
    )
    key = jax.random.key(inputs["loss/rng_seed"])
    out["loss/value"] = pi0.compute_loss(model, variables, key, obs, inputs["loss/actions"])
    return out

"""openpi's own sampler beside the same model under our hooks, and beside ours, on the same weights.

    OPENPI_SRC=openpi python -m experiments.bench.bench_openpi --results FILE

in an environment with openpi's packages (`make test-openpi OPENPI_SRC=openpi` makes one). Random
weights in float32, narrow enough for a CPU; openpi's modules are built at that size
(`openpi_sizes`). How much ours saves hangs on the length of the prefix, so patches of a picture are
pi0's own of 14 pixels, 256 tokens a camera, and of 28, a quarter of that. The arms in turns
(`turns`), ratios to the first:

- `openpi`: its `sample_actions`, jitted as its policy does
- `wrapped`: `interop.openpi` without a hook, with one tap, with one edit; same bits as openpi
- `ours`: `mistjax.models`, its largest difference from openpi beside it

Two clocks: the wall's, and the time that the process computed on any core, which other processes
disturb far less. Models that are not timed this time keep their rows in FILE.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench import openpi_sizes
from experiments.bench.bench_full_size import make_policy, one_edit, random_observation
from experiments.bench.turns import Ratio, ratio, take_turns
from experiments.record import command, write_results
from mistjax.hooks import Tap
from mistjax.models import pi0
from mistjax.models.config import IMAGE_KEYS, PI0, GemmaConfig, Pi0Config, SiglipConfig

KEY = jax.random.key(0)
SMALL = dataclasses.replace(
    PI0,
    siglip=SiglipConfig(width=384, depth=6, mlp_dim=1536, num_heads=6),
    vlm=GemmaConfig(512, 8, 2048, num_heads=8, num_kv_heads=1, head_dim=64),
    action_expert=GemmaConfig(256, 8, 1024, num_heads=8, num_kv_heads=1, head_dim=64),
    vocab_size=32_768,
    image_keys=IMAGE_KEYS,
    dtype="float32",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
        models: of pi0 and pi0.5.
        patches: sides of a picture's patches, in pixels.
        steps: of the flow.
        turns: timed bursts of each arm.
        burst: calls of each.
        seed: of weights, of the order of the arms, and of the bootstrap.
        results: JSON file to write.
    """

    models: tuple[Literal["pi0", "pi05"], ...] = ("pi0", "pi05")
    patches: tuple[int, ...] = (14, 28)
    steps: int = 10
    turns: int = 15
    burst: int = 1
    seed: int = 0
    results: Path | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm: tokens of the prefix, median milliseconds, ratios to openpi, largest difference from
    its actions.
    """

    prefix: int
    arm: str
    milliseconds: float
    wall: Ratio
    cpu: Ratio
    difference: float | None


def random_variables(config: Pi0Config, seed: int) -> Any:
    """Normal weights at the scale that keeps activations in place, no leaf of zeros."""
    shapes = jax.eval_shape(lambda: pi0.init(config, KEY))
    rng = np.random.default_rng(seed)

    def leaf(shape):
        fan_in = shape.shape[-2] if len(shape.shape) > 1 else 100
        return jnp.asarray(rng.normal(0, fan_in**-0.5, shape.shape), jnp.float32)

    return jax.tree.map(leaf, shapes)


def make_arms(config: Pi0Config, seed: int) -> dict[str, Callable[[], Any]]:
    """Each arm's actions of one observation from one noise."""
    openpi_sizes.resize(config)
    from openpi.shared import nnx_utils

    from interop.openpi import wrap

    obs = random_observation(config, seed)
    own = make_policy(config, random_variables(config, seed))
    stock = openpi_sizes.model_config(config).load(own.variables["params"])
    wrapped: Any = wrap(stock, own.preset, own.tokenizer, own.norm_stats)
    theirs, noise = openpi_sizes.observation_of(obs), wrapped.noise(KEY, 1)
    sample = nnx_utils.module_jit(stock.sample_actions)
    tap = Tap("vlm.resid", (config.vlm.depth // 2,), "text", "mean")
    edit = one_edit(config)
    return {
        "openpi": lambda: sample(KEY, theirs, num_steps=config.num_steps, noise=noise),
        "wrapped": lambda: wrapped.sample(obs, KEY).actions,
        "wrapped, one tap": lambda: wrapped.sample(obs, KEY, taps=(tap,)).actions,
        "wrapped, one edit": lambda: wrapped.sample(obs, KEY, edits=(edit,)).actions,
        "ours": lambda: own.sample(obs, KEY).actions,
        "ours, one edit": lambda: own.sample(obs, KEY, edits=(edit,)).actions,
    }


def time_model(name: str, config: Config) -> list[Row]:
    """Times every arm of one model at every size of the patches; prints the rows."""
    rows = []
    for side in config.patches:
        tower = dataclasses.replace(SMALL.siglip, patch_size=(side, side))
        sizes = dataclasses.replace(
            SMALL, siglip=tower, pi05=name == "pi05", num_steps=config.steps
        )
        calls = make_arms(sizes, config.seed)
        actions = {arm: np.asarray(call()) for arm, call in calls.items()}
        rng = np.random.default_rng(config.seed)
        taken = take_turns(calls, turns=config.turns, burst=config.burst, warm=1, rng=rng)
        base = taken["openpi"]
        for arm, s in taken.items():
            off = None if "edit" in arm else float(np.abs(actions[arm] - actions["openpi"]).max())
            wall, cpu = (ratio(s[:, clock], base[:, clock], rng) for clock in (0, 1))
            ms = 1e3 * float(np.median(s[:, 0]))
            rows.append(Row(sizes.prefix_len, arm, ms, wall, cpu, off))
            print(
                f"{name:5} {sizes.prefix_len:4} {arm:20} {ms:8.1f} ms  "
                "wall x {:.3f} [{:.3f}, {:.3f}]  ".format(*rows[-1].wall)
                + "CPU x {:.3f} [{:.3f}, {:.3f}]  ".format(*rows[-1].cpu)
                + ("" if off is None else f"off by {off:.1e}"),
                flush=True,
            )
    return rows


def main(config: Config) -> dict[str, Any]:
    """Times the models; writes their rows beside those of the others."""
    openpi_sizes.put_on_path()
    device = jax.devices()[0]
    machine = (
        f"{device.device_kind} ({device.platform}), jax {jax.__version__}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}"
    )
    print(machine, flush=True)
    file = config.results
    models = json.loads(file.read_text())["models"] if file is not None and file.exists() else {}
    for name in config.models:
        loads = [os.getloadavg()[0]]
        rows = time_model(name, config)
        loads.append(os.getloadavg()[0])
        shapes = jax.eval_shape(
            lambda name=name: pi0.init(dataclasses.replace(SMALL, pi05=name == "pi05"), KEY)
        )
        models[name] = {
            "command": command("experiments.bench.bench_openpi"),
            "machine": machine,
            "load": loads,
            "turns": config.turns,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        write_results(file, {"models": models})
    return {"models": models}


if __name__ == "__main__":
    main(tyro.cli(Config))

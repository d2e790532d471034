"""What taps cost in memory, known before anything is loaded: what they return, and what running
them takes.

Only shapes are traced and compiled, so a machine that cannot hold a 3 B model can answer. Cost: two
compilations, some 10 s each at that size. Source of the numbers: `jax.eval_shape`, and the memory
analysis of XLA for the backend at hand, which another backend need not share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mistjax.hooks.edits import Edit
from mistjax.hooks.hooks import Hooks
from mistjax.hooks.sites import Tap
from mistjax.models import checkpoints, fast, pi0
from mistjax.models.config import FastConfig, Pi0Config
from mistjax.models.fast import Pi0Fast, write
from mistjax.models.pi0 import Pi0
from mistjax.models.sampling import denoise, prefill
from mistjax.policies.presets import PRESETS, preset_of

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one inference.

    Attributes:
        taps: `str(tap)` -> shape and dtype of what it returns.
        temporary: bytes that the program needs besides weights, inputs and results.
        bare: the same without taps and edits.
        backend: what it was compiled for.
    """

    taps: Mapping[str, jax.ShapeDtypeStruct]
    temporary: int
    bare: int
    backend: str

    @property
    def returned(self) -> int:
        """Bytes of all taps."""
        return sum(map(_bytes, self.taps.values()))

    def describe(self) -> str:
        """A line for each tap, and the sums."""
        width = max(map(len, self.taps), default=0)
        lines = [
            f"{name:{width}}  {s.shape!s:28} {s.dtype}  {_bytes(s) / MIB:9.3f} MiB"
            for name, s in self.taps.items()
        ]
        return "\n".join(
            [
                *lines,
                f"returned by an inference: {self.returned / MIB:.3f} MiB",
                f"temporary memory: {self.temporary / MIB:.1f} MiB, without taps "
                f"{self.bare / MIB:.1f} MiB ({self.backend})",
            ]
        )


def memory(
    config: Pi0Config | FastConfig,
    taps: Sequence[Tap],
    *,
    batch: int = 1,
    edits: Sequence[Edit] = (),
) -> Memory:
    """What taps and edits add to an inference of a pi0, pi0.5 or pi0-FAST.

    Args:
        config: sizes of the model; parameters are counted in its `dtype`.
        taps: what would be recorded.
        batch: observations of one inference.
        edits: what would be changed.

    Raises:
        ValueError: a stack, layer or token selector that the model does not have, or a backend that
            does not report memory.
    """
    variables = variable_shapes(config)
    obs = jax.eval_shape(lambda: pi0.example_observation(config, batch))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))

    def temporary(hooks: Hooks) -> int:
        jitted = jax.jit(lambda v, o, k, h: infer(config, v, o, k, h))
        found = jitted.lower(variables, obs, keys, hooks).compile().memory_analysis()
        if found is None:
            raise ValueError(f"{jax.default_backend()} does not report the memory of a program.")
        return found.temp_size_in_bytes

    hooks = Hooks.of(edits, taps)
    shapes = jax.eval_shape(
        lambda v, o, k, h: infer(config, v, o, k, h)[1], variables, obs, keys, hooks
    )
    return Memory(
        {str(tap): shapes[str(tap)] for tap in taps},
        temporary(hooks),
        temporary(Hooks()),
        jax.default_backend(),
    )


def infer(
    config: Pi0Config | FastConfig,
    variables: Any,
    obs: Any,
    keys: Any,
    hooks: Hooks = Hooks(),
) -> tuple[Any, dict[str, Any]]:
    """One inference of the network alone: (action chunk or tokens, taps). A flow starts from
    zeros.
    """
    if isinstance(config, FastConfig):
        model = Pi0Fast(config)
        prefix = prefill(model, variables, obs, hooks)
        written = write(model, variables, prefix, keys, hooks)
        return written.tokens, {**prefix.taps, **written.taps}
    model = Pi0(config)
    prefix = prefill(model, variables, obs, hooks)
    noise = jnp.zeros((obs.batch_size, config.action_horizon, config.action_dim))
    actions, found, _ = denoise(
        model, variables, prefix, obs.state, noise, hooks, num_steps=config.num_steps
    )
    return actions, {**prefix.taps, **found}


def variable_shapes(config: Pi0Config | FastConfig) -> Any:
    """Shapes of a model's variables, in the dtype that it computes in."""
    init = fast.init if isinstance(config, FastConfig) else pi0.init
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))  # pyright: ignore[reportArgumentType]
    dtype = jnp.dtype(config.dtype)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), shapes)


def config_of(source: str | Path) -> Pi0Config | FastConfig:
    """Sizes of a model by its checkpoint folder, or by the name of a published one, which is not
    downloaded.

    Raises:
        ValueError: neither is known, or a model of another kind.
    """
    folder = Path(source)
    if folder.is_dir() and checkpoints.has_config(folder):
        stored = checkpoints.load_config(folder)
        if "siglip" not in stored:
            raise ValueError(f"{source} is not a pi0, pi0.5 or pi0-FAST: expected one of those.")
        return checkpoints.read_config(
            folder, FastConfig if "max_decoding_steps" in stored else Pi0Config
        )
    model = PRESETS[preset_of(source, folder)].model
    if model is None:
        known = sorted(name for name, preset in PRESETS.items() if preset.model is not None)
        raise ValueError(f"{source} is not a checkpoint folder, and names none of {known}.")
    return model


def _bytes(shape: jax.ShapeDtypeStruct) -> int:
    return math.prod(shape.shape) * shape.dtype.itemsize

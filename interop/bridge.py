"""Calling PyTorch from JAX code, traced or not.

Outside of a trace arrays are handed over by DLPack and nothing is copied on a shared device. Inside
(jit, grad, scan, cond) the same function becomes a host callback, so that a monitor compiled for a
JAX policy also runs a PyTorch one. Cost of the callback: its arrays travel through host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from interop.arrays import to_jax, to_numpy, to_torch


def call_torch(fn: Callable[..., Any], shapes: Any, *args: Any, rows: bool = False) -> Any:
    """`fn(*args)` with tensors for arrays on both sides.

    Args:
        fn: takes and returns pytrees of tensors (dicts, tuples, lists).
        shapes: what `fn` returns, as a pytree of `jax.ShapeDtypeStruct`.
        *args: pytrees of arrays.
        rows: every array, in and out, has the batch axis first and `fn` treats its rows apart, so
            that `vmap` makes one call with more rows; else it makes a call for each.

    Returns:
        What `fn` returns, as JAX arrays.
    """
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args)):
        return jax.tree.map(to_jax, fn(*jax.tree.map(to_torch, args)))

    axes = jnp.ndim(jax.tree.leaves(args)[0])

    # No JAX inside the callback: it would wait for the runtime that waits for the callback.
    def on_host(*arrays):
        tensors = jax.tree.map(to_torch, arrays)
        first = jax.tree.leaves(tensors)[0]
        more = first.ndim - axes  # axes of `vmap`, in front of the rows
        if more:
            tensors = jax.tree.map(lambda x: x.reshape(-1, *x.shape[more + 1 :]), tensors)
        found = fn(*tensors)
        if more:
            lead = first.shape[: more + 1]
            found = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), found)
        return jax.tree.map(to_numpy, found)

    method = "broadcast_all" if rows else "sequential"
    return jax.pure_callback(on_host, shapes, *args, vmap_method=method)


def differentiable(
    fn: Callable[..., Any], shapes: Any, *, rows: bool = False
) -> Callable[..., Any]:
    """A JAX function that runs `fn` in PyTorch, with PyTorch's gradients.

    The backward pass runs `fn` again, so a gradient costs two forward passes and one backward.
    First derivatives only.

    Args:
        fn: pytrees of tensors to a pytree of tensors, without side effects.
        shapes: what `fn` returns, as a pytree of `jax.ShapeDtypeStruct`.
        rows: see `call_torch`.
    """

    def apply(*args):
        leaves, tree = jax.tree.flatten(args)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        plain = _without_grad(fn, tree)
        run = jax.custom_vjp(lambda *leaves: call_torch(plain, shapes, leaves, rows=rows))
        run.defvjp(
            lambda *leaves: (run(*leaves), leaves),
            lambda leaves, cotangents: _pull_back(fn, tree, shapes, rows, leaves, cotangents),
        )
        return run(*leaves)

    return apply


def _is_float(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _without_grad(fn, tree):
    import torch

    def run(leaves):
        with torch.no_grad():
            return fn(*tree.unflatten(leaves))

    return run


def _pull_back(fn, tree, shapes, rows, leaves, cotangents):
    import torch

    pairs = zip(jax.tree.leaves(cotangents), jax.tree.leaves(shapes), strict=True)
    given = [cotangent for cotangent, shape in pairs if _is_float(shape)]

    def backward(leaves, given):
        inputs = [leaf.detach().requires_grad_(leaf.is_floating_point()) for leaf in leaves]
        with torch.enable_grad():
            outputs = jax.tree.leaves(fn(*tree.unflatten(inputs)))
        outputs = [output for output in outputs if output.is_floating_point()]
        used = [(o, g.to(o)) for o, g in zip(outputs, given, strict=True) if o.requires_grad]
        wanted = [leaf for leaf in inputs if leaf.requires_grad]
        grads = _vjp(used, wanted)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)]

    wanted = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves if _is_float(leaf)]
    grads = iter(call_torch(backward, wanted, leaves, given, rows=rows))
    return tuple(
        next(grads) if _is_float(leaf) else np.zeros(leaf.shape, jax.dtypes.float0)
        for leaf in leaves
    )


def _vjp(used, wanted):
    import torch

    if not used:
        return [None] * len(wanted)
    outputs, cotangents = zip(*used, strict=True)
    return torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True)

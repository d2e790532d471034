"""Reading and changing activations inside `nn.scan`, with `flax.linen.intercept_methods` and
nothing else.

The interceptor runs once, when the block is traced, not once per layer. So captures leave the block
as an additional scan output, and what an edit needs for its layer enters as additional leaves of
the scanned `params`, of which each layer receives its own slice. Neither needs the model's source
to know.

A tap sees the value after every edit at its site. Cost: a tap with `reduce` emits [L,B,D]; the scan
emits all layers and `Tap.layers` picks afterwards, so an unreduced tap of one layer costs the
stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mistjax.hooks.adapters import Point, ScannedStack, Stream
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import (
    PROJECTED,
    Tap,
    TokenLayout,
    join_parts,
    layers_at,
    reduce_tokens,
    resolve_layers,
)

_LEAVES = "mistjax_edits"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of one stack in one call: which positions have which name, and which are real."""

    layout: TokenLayout
    valid: Bool[Array, "b t"]


@dataclasses.dataclass
class _Frame:
    """What one trace of one block needs: its layer's slice of the edits, and what it captured."""

    edits: dict[str, dict[str, Array]]
    captures: dict[str, Array] = dataclasses.field(default_factory=dict)
    calls: dict[tuple, int] = dataclasses.field(default_factory=dict)


def hooked_apply(
    module: nn.Module,
    variables: Mapping[str, Any],
    *args,
    method: Callable,
    stacks: Sequence[ScannedStack],
    tokens: Mapping[str, Tokens],
    taps: Sequence[Tap] = (),
    edits: Sequence[Edit] = (),
    step: Array | int | None = None,
) -> tuple[Any, dict[str, Array]]:
    """`module.apply(variables, *args, method=method)` with taps read and edits made.

    Args:
        module: an unbound linen module.
        variables: its variables.
        *args: arguments of the method.
        method: the method to apply.
        stacks: the module's scanned stacks.
        tokens: stack name -> its tokens in this call; taps and edits of other stacks are left out.
        taps: what to record.
        edits: what to change.
        step: index into `Edit.step_weights`; None (prefill) means weight 1.

    Returns:
        (the method's result, `str(tap)` -> recorded array).

    Raises:
        ValueError: a stack that the module does not have, an unknown token selector or layer, or an
            edit whose arrays do not fit the stack.
    """
    known = {name for stack in stacks for name in stack.streams}
    for hook in (*taps, *edits):
        if hook.stack not in known:
            raise ValueError(
                f"{hook.site!r}: the model has no stack {hook.stack!r}, only {sorted(known)}."
            )
    taps = [tap for tap in taps if tap.stack in tokens]
    edits = [edit for edit in edits if edit.stack in tokens]
    if not taps and not edits:
        return module.apply(variables, *args, method=method), {}
    active = [stack for stack in stacks if any(name in tokens for name in stack.streams)]
    params = variables["params"]
    for stack in active:
        leaves = _edit_leaves(stack, edits, tokens, step)
        if leaves:
            params = _insert(params, (*stack.path, _LEAVES), leaves)
    found: dict[str, Array] = {}
    interceptors = [_Interceptor(stack, taps, edits, tokens, found, step) for stack in active]

    def intercept(next_fun, args, kwargs, context):
        for interceptor in interceptors:
            if interceptor.covers(context):
                return interceptor(next_fun, args, kwargs, context)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(intercept):
        out = module.apply({**variables, "params": params}, *args, method=method)
    missing = [str(tap) for tap in taps if str(tap) not in found]
    if missing:
        raise ValueError(f"nothing passed through {missing}: the adapter of that stack is wrong.")
    return out, found


class _Interceptor:
    """The interceptor of one scanned stack."""

    def __init__(self, stack: ScannedStack, taps, edits, tokens, found, step):
        self.stack, self.tokens, self.found = stack, tokens, found
        self.exits = {s.exit: name for name, s in stack.streams.items() if s.exit}
        self.behind = _edit_leaves(stack, edits, tokens, step, behind=True)
        self.taps = [tap for tap in taps if tap.stack in stack.streams]
        self.edits = {str(i): e for i, e in enumerate(edits) if e.stack in stack.streams}
        self.frames: list[_Frame] = []
        self.parts: list[dict[str, Array]] = []  # captures of each call of the host
        self.ends: list[dict[str, Array]] = []  # and of the exit
        self.points: dict[tuple, list[tuple[str, str, Point, Stream]]] = {}
        for name, stream in stack.streams.items():
            for point, where in stream.points.items():
                key = (*stack.path, *where.path), where.method
                self.points.setdefault(key, []).append((name, point, where, stream))

    def covers(self, context) -> bool:
        host, path = self.stack.path[:-1], context.module.path
        return path[: len(host)] == host or path in self.exits

    def __call__(self, next_fun, args, kwargs, context):
        path, method = context.module.path, context.method_name
        if method == "__call__" and path == self.stack.path:
            return self.block(next_fun, args, kwargs, context)
        if method == "__call__" and path == self.stack.path[:-1]:
            return self.host(next_fun, args, kwargs)
        if method == "__call__" and path in self.exits:
            return self.exit(next_fun(*args, **kwargs), self.exits[path])
        if self.frames and (path, method) in self.points:
            return self.point(next_fun, args, kwargs, (path, method))
        return next_fun(*args, **kwargs)

    def block(self, next_fun, args, kwargs, context):
        slices = context.module.variables["params"].get(_LEAVES, {})
        self.frames.append(_Frame(slices))
        try:
            carry, y = next_fun(*args, **kwargs)
            for name, stream in self.stack.streams.items():
                i = stream.carry_index
                value: Any = carry if i is None else carry[i]
                if value is None or name not in self.tokens:
                    continue
                value = self.through(name, "resid", stream, value)
                if i is None:
                    carry = value
                else:
                    carry = type(carry)((*carry[:i], value, *carry[i + 1 :]))
            return carry, (y, self.frames[-1].captures)
        finally:
            self.frames.pop()

    def host(self, next_fun, args, kwargs):
        result, captures = self.stack.take(next_fun(*args, **kwargs))
        self.parts.append(captures)
        for tap in self.taps:
            if (value := self.whole(tap, self.parts)) is not None:
                self.found[str(tap)] = value[
                    jnp.array(resolve_layers(tap.layers, self.stack.depth))
                ]
        return result

    def exit(self, result: Any, name: str) -> Any:
        """What leaves the stack: one layer, outside of the scan."""
        if name not in self.tokens:
            return result
        value, *rest = result if isinstance(result, tuple) else (result,)
        self.frames.append(_Frame(jax.tree.map(lambda leaf: leaf[0], self.behind)))
        try:
            stream = self.stack.streams[name]
            value = self.through(name, "projected", stream, value, len(self.ends))
            captures = self.frames[-1].captures
        finally:
            self.frames.pop()
        self.ends.append({tap: captured[None] for tap, captured in captures.items()})
        for tap in self.taps:
            if (captured := self.whole(tap, self.ends)) is not None:
                resolve_layers(tap.layers, layers_at(tap.site, self.stack.depth))
                self.found[str(tap)] = captured
        return (value, *rest) if isinstance(result, tuple) else value

    def whole(self, tap: Tap, calls: Sequence[Mapping[str, Array]]) -> Array | None:
        """A tap's value once its stack was called for all tokens; None before that."""
        parts = [captures[str(tap)] for captures in calls if str(tap) in captures]
        if len(parts) < self.stack.streams[tap.stack].calls:
            return None
        return parts[0] if len(parts) == 1 else join_parts(parts, tap)

    def point(self, next_fun, args, kwargs, key):
        calls = self.frames[-1].calls
        count = calls.get(key, 0)
        calls[key] = count + 1
        here = [entry for entry in self.points[key] if entry[2].call == count]
        args = list(args)
        for name, point, where, stream in here:
            if where.argument is not None and name in self.tokens:
                value = args[where.argument]
                args[where.argument] = self.through(name, point, stream, value)
        out = next_fun(*args, **kwargs)
        for name, point, where, stream in here:
            if where.argument is None and name in self.tokens:
                out = self.through(name, point, stream, out)
        return out

    def through(
        self, name: str, point: str, stream: Stream, value: Array, call: int | None = None
    ) -> Array:
        """Applies this site's edits to a value and records its taps."""
        frame, tokens = self.frames[-1], self.tokens[name]
        shape = value.shape
        value = value.reshape(-1, stream.groups * shape[1], *shape[2:])
        own = slice(None)  # which of the stack's tokens these are
        if stream.calls > 1:
            call = len(self.parts) if call is None else call
            own = slice(call * shape[1], (call + 1) * shape[1])
        for index, edit in self.edits.items():
            if (edit.stack, edit.point) == (name, point):
                leaves = dict(frame.edits[index])
                coefficient = leaves.pop("coefficient")
                edit.check(leaves, (value.shape[0], coefficient.shape[1], *value.shape[2:]))
                coefficient = coefficient[:, own]
                leaves = {k: _aligned(array, value.ndim, own) for k, array in leaves.items()}
                coefficient = coefficient.reshape(*coefficient.shape, *(1,) * (value.ndim - 2))
                changed = edit.transform(value, coefficient, leaves)
                value = jnp.where(coefficient != 0, changed, value)
        for tap in self.taps:
            if (tap.stack, tap.point) == (name, point):
                if tap.reduce is None and tap.tokens != "last":
                    before = own.start or 0
                    bounds = (max(at - before, 0) for at in tokens.layout.select(tap.tokens))
                    frame.captures[str(tap)] = value[:, slice(*bounds)]
                else:
                    mask = tokens.layout.mask(tap.tokens, tokens.valid)
                    every = mask if stream.calls > 1 else None
                    picked = reduce_tokens(value, mask[:, own], tap.reduce or "mean", every)
                    frame.captures[str(tap)] = picked if tap.reduce else picked[:, None]
        return value.reshape(shape)


def _aligned(array: Array, ndim: int, own: slice) -> Array:
    """The array with leading axes of size 1 up to `ndim`; of one value per token, those of the
    `own` tokens.
    """
    array = array[:, own] if array.ndim == ndim and array.shape[1] > 1 else array
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def _edit_leaves(
    stack: ScannedStack, edits, tokens, step, behind: bool = False
) -> dict[str, dict[str, Array]]:
    """Each edit's arrays for this stack with the layer axis first, plus its coefficient [L,B,T].

    `behind` takes the edits behind the last layer, else those in the layers.
    """
    leaves, depth = {}, 1 if behind else stack.depth
    for i, edit in enumerate(edits):
        if edit.stack not in stack.streams or (edit.site == PROJECTED) != behind:
            continue
        here = tokens[edit.stack]
        gate = jnp.ones(depth) if edit.gate is None else jnp.asarray(edit.gate)
        if gate.shape != (depth,):
            raise ValueError(f"Edit.gate has shape {gate.shape}: {edit.site!r} has {depth} layers.")
        strength = jnp.asarray(edit.strength, jnp.float32)
        if strength.shape not in ((), here.valid.shape[:1]):
            raise ValueError(
                f"Edit.strength has shape {strength.shape}: expected a scalar, or one for each of "
                f"the {here.valid.shape[0]} batch elements."
            )
        if step is not None and edit.step_weights is not None:
            strength = strength * edit.step_weights[step]
        mask = here.layout.mask(edit.tokens, here.valid)
        weight = jnp.reshape(strength, (1, -1, 1)) * mask[None].astype(jnp.float32)
        coefficient = gate[:, None, None] * weight
        leaves[str(i)] = {"coefficient": coefficient, **edit.layer_data(depth)}
    return leaves


def _insert(tree: Mapping[str, Any], path: tuple[str, ...], leaf: Any) -> dict[str, Any]:
    """A copy of a nested dict with one more entry; ValueError when the path does not exist."""
    head, *rest = path
    if not rest:
        return {**tree, head: leaf}
    if head not in tree:
        raise ValueError(f"the parameters have no {head!r} (there are {sorted(tree)}).")
    return {**tree, head: _insert(tree[head], tuple(rest), leaf)}

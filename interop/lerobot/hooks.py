"""Taps and edits on LeRobot's modules, with the same names and meaning as in `mistjax.hooks`.

Hooks live inside a `with` block and nowhere else: none survives it, however it ends. Modules that
no tap or edit names get no hook, so without any the policy runs untouched. What they see is named
by position in a `TokenLayout` of fixed length: LeRobot pads a prompt to the longest of its batch,
so missing words are filled in for taps and edits and left out again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interop.edits import Change, EditSite
from interop.lerobot.smolvla import Network, Point
from interop.taps import record, select
from mistjax.hooks.sites import Tap, resolve_layers, split_site


class Hooks:
    """Reads `taps` and makes `edits` while the `with` block runs, which is one inference.

    Args:
        network: whose modules.
        taps: what to record; `values()` returns them afterwards, float32.
        edits: what to change. A tap sees the value after the edits of its site.
        valid: `vlm` and `vision` -> which tokens of the whole layout are real.
        words: tokens of the prompts that the network is given.
        embedding: what stands in for the embedded prompts, [B,words,D].
    """

    def __init__(
        self,
        network: Network,
        taps: Sequence[Tap],
        edits: Sequence[tuple[EditSite, Mapping[str, Any]]],
        valid: Mapping[str, Bool[Tensor, "b t"]],
        words: int,
        embedding: Float[Tensor, "b l d"] | None = None,
    ):
        self._network, self._taps, self._valid = network, tuple(taps), valid
        self._embedding = embedding
        device = next(network.embedding.parameters()).device
        stacks = network.stacks
        self._edits = [
            Change(where, arrays, stacks[where.stack].spec.depth, device) for where, arrays in edits
        ]
        self._layers = {
            tap: resolve_layers(tap.layers, stacks[tap.stack].spec.depth) for tap in taps
        }
        for named in (*taps, *(where for where, _ in edits)):
            stacks[named.stack].spec.layout.select(named.tokens)
        text, end = stacks["vlm"].spec.layout.select("text")
        length = stacks["vlm"].spec.layout.length
        self._given = torch.tensor([*range(text + words), *range(end, length)], device=device)
        self._found: dict[tuple[Tap, int], list[Tensor]] = {}
        self._before: dict[tuple[str, int], Tensor] = {}
        self._camera = self._step = -1
        self._handles = ExitStack()

    def values(self) -> dict[str, Tensor]:
        """`str(tap)` -> what it recorded, layers first; for `action` [S,L,B,...]."""
        values = {}
        for tap in self._taps:
            passes = [self._found[tap, layer] for layer in self._layers[tap]]
            if tap.stack == "action":
                values[str(tap)] = torch.stack([torch.stack(steps) for steps in passes], dim=1)
            elif tap.stack == "vision":  # one pass a camera, each zero where the others are
                whole = [self._record(tap, sum(cameras[1:], cameras[0])) for cameras in passes]
                values[str(tap)] = torch.stack(whole)
            else:
                values[str(tap)] = torch.stack([once for (once,) in passes])
        return values

    def __enter__(self) -> Hooks:
        with ExitStack() as handles:
            starts = {"_camera": self._network.camera_start, "_step": self._network.step_start}
            for counter, module in starts.items():
                count = module.register_forward_pre_hook(
                    lambda *_, counter=counter: setattr(self, counter, getattr(self, counter) + 1)
                )
                handles.callback(count.remove)
            if self._embedding is not None:
                given = self._network.embedding.register_forward_hook(
                    lambda _, args, out: self._embedding if args[0].ndim == 2 else out
                )
                handles.callback(given.remove)
            for stack, part in self._network.stacks.items():
                for name, point in part.points.items():
                    for layer in self._touched(stack, name):
                        self._attach(handles, part.blocks[layer], point, (stack, name, layer))
            self._handles = handles.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._handles.close()

    def _touched(self, stack: str, point: str) -> Sequence[int]:
        """Layers in which a tap or an edit names this point."""
        depth = self._network.stacks[stack].spec.depth
        if any(split_site(change.where.site) == (stack, point) for change in self._edits):
            return range(depth)
        taps = [tap for tap in self._taps if (tap.stack, tap.point) == (stack, point)]
        return [layer for layer in range(depth) if any(layer in self._layers[tap] for tap in taps)]

    def _attach(self, handles: ExitStack, block: nn.Module, point: Point, site) -> None:
        module = point.module(block)
        if point.is_input:
            hook = module.register_forward_pre_hook(
                lambda _, args: (self._through(args[0], *site), *args[1:])
            )
        elif point.before is None:
            hook = module.register_forward_hook(
                lambda _, args, out: self._through(out, *site)  # pyright: ignore[reportArgumentType]
            )
        else:
            keep = point.before(block).register_forward_pre_hook(
                lambda _, args: self._before.update({site: args[0]})
            )
            handles.callback(keep.remove)
            hook = module.register_forward_hook(
                lambda _, args, out: self._residual(out, site)  # pyright: ignore[reportArgumentType]
            )
        handles.callback(hook.remove)

    def _residual(self, added: Tensor, site) -> Tensor:
        """What to add instead of `added`, so that the residual stream becomes the edited one; right
        to rounding where it is edited, and to the bit where it is not."""
        before = self._before.pop(site)
        plain = added + before
        changed = self._through(plain, *site)
        if changed is plain:
            return added
        return torch.where(changed != plain, changed - before, added)

    def _through(self, x: Tensor, stack: str, point: str, layer: int) -> Tensor:
        """Applies this site's edits to x [B,T,D] and records its taps."""
        spec = self._network.stacks[stack].spec
        at = self._positions(stack)
        named = x[:, : len(at)]
        if point == "attn_heads":
            named = named.unflatten(-1, (spec.heads, spec.head_dim))
        whole, here = named, at.new_ones(len(at), dtype=torch.bool)
        if len(at) < spec.layout.length:
            empty = named.new_zeros(len(x), spec.layout.length, *named.shape[2:])
            whole = empty.index_copy(1, at, named)
            here = here.new_zeros(spec.layout.length).index_fill(0, at, True)
        untouched, step = whole, self._step if stack == "action" else None
        for change in self._edits:
            if split_site(change.where.site) == (stack, point):
                mask = here & select(spec.layout, change.where.tokens, self._real(stack, x))
                whole = change(whole, layer, mask, step)
        for tap in self._taps:
            if (tap.stack, tap.point) == (stack, point) and layer in self._layers[tap]:
                found = whole if stack == "vision" else self._record(tap, whole)
                # LeRobot goes on to add to this very tensor
                self._found.setdefault((tap, layer), []).append(found.clone())
        if whole is untouched:
            return x
        back = whole if len(at) == spec.layout.length else whole[:, at]
        return torch.cat([back.reshape(len(x), len(at), -1), x[:, len(at) :]], dim=1)

    def _record(self, tap: Tap, whole: Tensor) -> Tensor:
        layout = self._network.stacks[tap.stack].spec.layout
        return record(tap, whole.float(), layout, self._real(tap.stack, whole))

    def _real(self, stack: str, x: Tensor) -> Bool[Tensor, "b t"]:
        if stack in self._valid:
            return self._valid[stack]
        length = self._network.stacks[stack].spec.layout.length
        return torch.ones(len(x), length, dtype=torch.bool, device=x.device)

    def _positions(self, stack: str) -> Tensor:
        """Where in the layout the first tokens of this call are; later ones have no name."""
        if stack == "vlm":
            return self._given
        layout = self._network.stacks[stack].spec.layout
        if stack == "action":
            return torch.arange(layout.length, device=self._given.device)
        patches = layout.length // sum(name != "image" for name in layout.segments)
        return torch.arange(patches, device=self._given.device) + self._camera * patches

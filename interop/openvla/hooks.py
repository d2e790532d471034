"""Taps and edits on the PyTorch model, with the same names and meaning as in `mistjax.hooks`.

Stacks: `vision` (the SigLIP tower, as in pi0), `dino` (the DINOv2 tower), `vlm` (the Llama while it
reads images and prompt) and `action` (the same Llama while it decodes; taps have the decoded token
as leading axis). Both towers show their patches only; class and register tokens are no site.
`vision.projected` is what the projector makes of both towers.

Hooks live inside a `with` block and nowhere else: none survives it, however it ends. Modules that
no tap or edit names get no hook, so without any the model runs untouched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from interop.edits import Change, EditSite, take_apart
from interop.openvla.model import OpenVLA
from interop.openvla.vision import FilmBlock
from interop.taps import record, select
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import PROJECTED, Tap, TokenLayout, layers_at, resolve_layers, split_site


def token_layouts(
    num_patches: int,
    cameras: Sequence[str],
    prompt_tokens: int,
    extra: int = 0,
    action_tokens: int = 1,
) -> dict[str, TokenLayout]:
    """Names of token positions.

    Args:
        num_patches: patches of one image.
        cameras: in the order of their images.
        prompt_tokens: length of the padded prompt, BOS included.
        extra: tokens between the patches and the prompt (`state`).
        action_tokens: tokens of one decoding step.
    """
    image = num_patches * len(cameras)
    patches = {c: (i * num_patches, (i + 1) * num_patches) for i, c in enumerate(cameras)}
    prefix = {name: (1 + a, 1 + b) for name, (a, b) in patches.items()}
    length = image + extra + prompt_tokens
    prefix |= {"bos": (0, 1), "image": (1, 1 + image), "text": (1 + image + extra, length)}
    if extra:
        prefix["state"] = (1 + image, 1 + image + extra)
    tower = TokenLayout(image, {**patches, "image": (0, image)})
    return {
        "vision": tower,
        "dino": tower,
        "vlm": TokenLayout(length, prefix),
        "action": TokenLayout(action_tokens, {"action": (0, action_tokens)}),
    }


@dataclasses.dataclass(frozen=True)
class Call:
    """What the tokens of one pass through the Llama are: [prefix][steps x width][others].

    Attributes:
        prefix: length of the `vlm` part; 0 while decoding from a cache.
        steps: decoding steps in this pass.
        width: tokens of one step.
    """

    prefix: int
    steps: range
    width: int = 1


@dataclasses.dataclass(frozen=True)
class _Point:
    """A submodule of a block, and whether its input or its output is the site."""

    module: Callable[[Any], nn.Module]
    is_input: bool = False


_LLAMA_POINTS = {
    "resid": _Point(lambda layer: layer),
    "attn_heads": _Point(lambda layer: layer.self_attn.o_proj, is_input=True),
    "attn_out": _Point(lambda layer: layer.self_attn.o_proj),
    "mlp_neurons": _Point(lambda layer: layer.mlp.down_proj, is_input=True),
    "mlp_out": _Point(lambda layer: layer.mlp),
}


def _inner(block: Any) -> Any:
    return block.block if isinstance(block, FilmBlock) else block


_TOWER_POINTS = {
    "resid": _Point(lambda block: block),
    "attn_heads": _Point(lambda block: _inner(block).attn.proj, is_input=True),
    "attn_out": _Point(lambda block: _inner(block).ls1),
    "mlp_neurons": _Point(lambda block: _inner(block).mlp.fc2, is_input=True),
    "mlp_out": _Point(lambda block: _inner(block).ls2),
}


class Hooks:
    """Reads `taps` and makes `edits` while the `with` block runs.

    Args:
        model: the network.
        layouts: token names of the stacks, see `token_layouts`.
        taps: what to record; `values()` returns them afterwards.
        edits: what to change, taken apart or not. A tap sees the value after the edits of its site.
    """

    def __init__(
        self,
        model: OpenVLA,
        layouts: Mapping[str, TokenLayout],
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit | tuple[EditSite, Mapping[str, Any]]] = (),
    ):
        llama = model.language_model.model.layers
        towers = model.vision_backbone
        self._blocks: dict[str, Sequence[nn.Module]] = {
            "vision": list(towers.fused_featurizer.used_blocks),
            "dino": list(towers.featurizer.used_blocks),
            "vlm": list(llama),
            "action": list(llama),
        }
        self._skip = {
            "vision": towers.fused_featurizer.config.num_prefix,
            "dino": towers.featurizer.config.num_prefix,
        }
        self._heads = {
            "vision": towers.fused_featurizer.config.num_heads,
            "dino": towers.featurizer.config.num_heads,
            "vlm": model.config.text.num_attention_heads,
            "action": model.config.text.num_attention_heads,
        }
        self._layouts, self._taps, self._model = layouts, tuple(taps), model
        parts = [take_apart(edit) if isinstance(edit, Edit) else edit for edit in edits]
        self._edits = [
            Change(where, arrays, self._depth(where), model.device) for where, arrays in parts
        ]
        self._layers = {tap: resolve_layers(tap.layers, self._depth(tap)) for tap in taps}
        for named in (*taps, *(where for where, _ in parts)):
            layouts[named.stack].select(named.tokens)
        self._found: dict[tuple[Tap, int], list[Tensor]] = {}
        self._valid: dict[str, Tensor] = {}
        self._call = Call(0, range(0))
        self._handles = ExitStack()

    def _depth(self, named: Tap | EditSite) -> int:
        return layers_at(named.site, len(self._blocks[named.stack]))

    @property
    def read_towers(self) -> bool:
        """Whether a tap or an edit is in a tower or right behind them."""
        return any(named.stack in ("vision", "dino") for named in self._named)

    @property
    def _named(self) -> tuple[Tap | EditSite, ...]:
        return (*self._taps, *(change.where for change in self._edits))

    def expect(self, call: Call, valid: Bool[Tensor, "b t"] | None = None) -> None:
        """Says what the next pass through the Llama holds.

        Args:
            call: which tokens are prefix and which are steps.
            valid: which prefix tokens are real.
        """
        self._call = call
        if valid is not None:
            self._valid["vlm"] = valid

    def expect_images(self, valid: Bool[Tensor, "b t"]) -> None:
        """Says which patches the next pass through the towers really has."""
        self._valid["vision"] = self._valid["dino"] = valid

    def values(self) -> dict[str, Tensor]:
        """`str(tap)` -> what it recorded, layers first; for `action` [S,L,B,...]."""
        values = {}
        for tap in self._taps:
            layers = [self._found[tap, layer] for layer in self._layers[tap]]
            if tap.stack == "action":
                values[str(tap)] = torch.stack([torch.stack(steps) for steps in layers], dim=1)
            else:
                values[str(tap)] = torch.stack([passes[-1] for passes in layers])
        return values

    def __enter__(self) -> Hooks:
        with ExitStack() as handles:
            for name, point in _TOWER_POINTS.items():
                self._register(handles, ("vision",), name, point, self._tower)
                self._register(handles, ("dino",), name, point, self._tower)
            for name, point in _LLAMA_POINTS.items():
                self._register(handles, ("vlm", "action"), name, point, self._llama)
            if any(named.site == PROJECTED for named in self._named):
                hook = self._model.projector.register_forward_hook(self._projected)
                handles.callback(hook.remove)
            self._handles = handles.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._handles.close()

    def _register(self, handles: ExitStack, stacks, name: str, point: _Point, through):
        sites = {(stack, name) for stack in stacks}
        edited = any(split_site(change.where.site) in sites for change in self._edits)
        taps = [tap for tap in self._taps if (tap.stack, tap.point) in sites]
        for layer, block in enumerate(self._blocks[stacks[0]]):
            if not edited and not any(layer in self._layers[tap] for tap in taps):
                continue
            handles.callback(self._attach(point, block, stacks[0], name, layer, through).remove)

    @staticmethod
    def _attach(
        point: _Point, block, stack: str, name: str, layer: int, through
    ) -> RemovableHandle:
        module = point.module(block)
        if point.is_input:
            return module.register_forward_pre_hook(
                lambda _, args: (through(args[0], stack, name, layer), *args[1:])
            )
        return module.register_forward_hook(
            lambda _, args, output: through(output, stack, name, layer)
        )

    def _tower(self, x: Tensor, stack: str, point: str, layer: int) -> Tensor:
        skip, valid = self._skip[stack], self._valid[stack]
        batch, tokens = len(valid), x.shape[1] - skip
        images = len(x) // batch
        patches = x[:, skip:].reshape(batch, images * tokens, -1)
        changed = self._through(patches, stack, point, layer, valid, None)
        if changed is patches:
            return x
        return torch.cat([x[:, :skip], changed.reshape(batch * images, tokens, -1)], dim=1)

    def _projected(self, module: nn.Module, args: Any, x: Tensor) -> Tensor:
        return self._through(x, *split_site(PROJECTED), 0, self._valid["vision"], None)

    def _llama(self, x: Tensor, stack: str, point: str, layer: int) -> Tensor:
        call, start, parts, changed = self._call, 0, [], False
        if call.prefix:
            parts.append(x[:, : call.prefix])
            after = self._through(parts[0], "vlm", point, layer, self._valid["vlm"], None)
            changed, parts[0], start = after is not parts[0], after, call.prefix
        for step in call.steps:
            before = x[:, start : start + call.width]
            here = torch.ones(before.shape[:2], dtype=torch.bool, device=x.device)
            parts.append(self._through(before, "action", point, layer, here, step))
            changed, start = changed or parts[-1] is not before, start + call.width
        return torch.cat([*parts, x[:, start:]], dim=1) if changed else x

    def _through(
        self, x: Tensor, stack: str, point: str, layer: int, valid: Tensor, step: int | None
    ) -> Tensor:
        """Applies this site's edits to x [B,T,D] and records its taps."""
        value = x
        if point == "attn_heads":
            value = x.unflatten(-1, (self._heads[stack], -1))
        untouched, layout = value, self._layouts[stack]
        for change in self._edits:
            if split_site(change.where.site) == (stack, point):
                mask = select(layout, change.where.tokens, valid)
                value = change(value, layer, mask, step)
        for tap in self._taps:
            if (tap.stack, tap.point) == (stack, point) and layer in self._layers[tap]:
                self._found.setdefault((tap, layer), []).append(record(tap, value, layout, valid))
        return x if value is untouched else value.reshape(x.shape)

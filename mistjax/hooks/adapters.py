"""How a scanned layer stack is described to the interceptor. Supporting another network means
writing one `ScannedStack`, nothing else.

Everything is found by parameter path: the path of the scanned block, the path of a submodule inside
of it, and which argument or result of which method carries the value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a value passes inside a block.

    Attributes:
        path: of the submodule, relative to the block.
        argument: which positional argument carries the value; None means the result.
        method: of the submodule.
        call: which call of that method within one block (0 = first), for a method that the block
            calls more than once.
    """

    path: tuple[str, ...]
    argument: int | None = None
    method: str = "__call__"
    call: int = 0


@dataclasses.dataclass(frozen=True)
class Stream:
    """One stack's way through a block.

    Attributes:
        points: point name -> where its value passes (`resid` is read off the block's result).
        carry_index: which element of the scan carry is this stack's residual stream; None when
            the carry is the stream itself.
        groups: how many consecutive batch elements are one example's tokens (cameras of a vision
            tower that runs on all cameras as one batch).
        calls: how many consecutive calls of the stack an example's tokens are spread over (cameras
            of a tower that runs once per camera).
        exit: parameter path of the module whose (first) result leaves the stack, projected to
            another width; None where that is not a site.
    """

    points: Mapping[str, Point]
    carry_index: int | None = None
    groups: int = 1
    calls: int = 1
    exit: tuple[str, ...] | None = None


def take_second(result: Any) -> tuple[Any, Any]:
    """Splits a host's `(out, (y, captures))` into `((out, y), captures)`."""
    out, (y, captures) = result
    return (out, y), captures


@dataclasses.dataclass(frozen=True)
class ScannedStack:
    """A layer stack under `nn.scan`.

    The block is called as `block(carry, ...) -> (carry, y)` with the module path `path`; its host
    (the module one level up) returns the stacked y somewhere in its result.

    Attributes:
        path: parameter path of the block: its leaves have the layer axis first.
        depth: number of layers.
        streams: stack name -> its way through the block.
        take: how to find `(y, captures)` in the host's result, and to give back the result without
            the captures.
    """

    path: tuple[str, ...]
    depth: int
    streams: Mapping[str, Stream]
    take: Callable[[Any], tuple[Any, Any]] = take_second

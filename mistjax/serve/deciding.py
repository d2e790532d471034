"""Which policy answers a request, and by when: the monitored one, the bare one, or neither."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

from mistjax.serve.lane import Answer, BadObservation, Lane, Request
from mistjax.serve.settings import Settings

LOG = logging.getLogger("mistjax.serve")
Decision = tuple[str, Answer | None]
"""(who answered, the answer): `monitored`; `bare` without a monitor; `pass_through` with the
monitor off; `late` for the bare policy in its place; `fallback` with None where neither did."""


async def decide(
    bare: Lane,
    monitored: Lane,
    request: Request,
    settings: Settings,
    *,
    off: bool,
    dropped: Callable[[], None],
) -> Decision:
    """Submits a request to the lanes, and waits for the first answer that may go out.

    Args:
        bare, monitored: the lanes; the same one without a monitor.
        request: the request.
        settings: deadline and watchdog.
        off: whether the monitor is switched off.
        dropped: called when the monitored policy's answer comes too late.

    Raises:
        BadObservation: the policy does not take the observation.
    """
    ends = request.since + settings.watchdog_ms / 1e3
    if off:
        return _or_fallback("pass_through", await _ask(bare, request, ends))
    if monitored is bare:
        return _or_fallback("bare", await _ask(bare, request, ends))
    deadline_s = settings.deadline_ms / 1e3
    if monitored.busy_s > deadline_s:  # it hangs in an earlier inference
        return _or_fallback("late", await _ask(bare, request, ends))
    asked = asyncio.wrap_future(monitored.submit(request))
    found = await _until(asked, request.since + deadline_s / 2)
    if found is None:
        twin = dataclasses.replace(request, done=concurrent.futures.Future())
        base = asyncio.wrap_future(bare.submit(twin))
        found = await _until(asked, request.since + deadline_s)
        if found is None:
            asked.add_done_callback(lambda _: dropped())
            _forget(request, asked)
            found = await _until(base, ends)
            _forget(twin, base)
            return _or_fallback("late", found)
        _forget(twin, base)
    return "bare" if monitored.policy is bare.policy else "monitored", found


async def _until(future: asyncio.Future, ends: float) -> Any:
    """The result by then; None if it is late or failed. BadObservation is raised."""
    done, _ = await asyncio.wait((future,), timeout=max(ends - time.monotonic(), 0))
    if not done:
        return None
    try:
        return future.result()
    except BadObservation:
        raise
    except Exception as error:
        LOG.error("the policy failed: %s: %s", type(error).__name__, error)
        return None


async def _ask(lane: Lane, request: Request, ends: float) -> Answer | None:
    """A lane's answer by then; None if it is late or failed."""
    future = asyncio.wrap_future(lane.submit(request))
    found = await _until(future, ends)
    _forget(request, future)
    return found


def _forget(request: Request, future: asyncio.Future) -> None:
    """Withdraws a request that still waits, and ignores its result otherwise."""
    request.done.cancel()
    future.add_done_callback(lambda f: f.cancelled() or f.exception())


def _or_fallback(name: str, found: Answer | None) -> Decision:
    return ("fallback" if found is None else name), found

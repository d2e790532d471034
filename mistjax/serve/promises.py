"""The server's promises, each as a trial on a running server: inject the fault, look at the reply.

`mistjax certify` runs them on your machine, the tests with toy policies. A trial's docstring is the
promise, in the certificate too; `Found` says whether it holds, is broken, or was not shown.
"""

from __future__ import annotations

import dataclasses
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mistjax.policies.protocol import Policy, RawObs
from mistjax.rollouts.loop import episode_keys
from mistjax.serve.breakable import Breakable
from mistjax.serve.client import Client
from mistjax.serve.gate import Gate
from mistjax.serve.load import is_loopback
from mistjax.serve.service import Service

STALL_S = 60.0  # longer than any deadline in use
_WAIT_S = 20.0  # for a server to recover


@dataclasses.dataclass(frozen=True)
class Look:
    """An observation of an episode, and the bare policy's chunk for it in robot units [H,A]."""

    raw: RawObs
    actions: np.ndarray


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of a trial.

    Attributes:
        holds: whether the promise was kept; None where that could not be shown.
        said: what was seen, in a sentence.
    """

    holds: bool | None
    said: str

    @property
    def answer(self) -> str:
        """`holds` in words."""
        return {True: "holds", False: "BROKEN", None: "not shown"}[self.holds]


@dataclasses.dataclass
class Stage:
    """A running server into whose policies faults can be injected.

    Attributes:
        service: the server's.
        bare, monitored: its policies; `monitored` is None without a monitor.
        port: of the server.
        looks: one episode, with the bare policy's chunks.
        seed: of the episode's noise.
        host: address that the server will be given when it is used.
        slack_ms: how much later than promised a reply may come.
        chunks: every chunk received.
        took_ms: latencies of late replies and of fallbacks, by path.
    """

    service: Service
    bare: Breakable
    monitored: Breakable | None
    port: int
    looks: Sequence[Look]
    seed: int
    host: str = "127.0.0.1"
    slack_ms: float = 100.0
    chunks: list[np.ndarray] = dataclasses.field(default_factory=list)
    took_ms: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def client(self) -> Client:
        """A new connection."""
        return Client(self.port, api_key=self.service.settings.api_key)

    def ask(self, client: Client, inference: int, **control: Any) -> Any:
        """The reply to one observation of the episode; the first one starts it anew."""
        begin = {"mist/reset": True, "mist/seed": self.seed} if inference == 0 else {}
        said = {f"mist/{name}": value for name, value in control.items()}
        reply = client.infer({**self.looks[inference].raw, **begin, **said})
        if isinstance(reply, Mapping) and "actions" in reply:
            self.chunks.append(reply["actions"])
        return reply

    def same(self, reply: Any, inference: int) -> bool:
        """Whether a reply has the bare policy's bytes."""
        wanted = self.looks[inference].actions
        return isinstance(reply, Mapping) and reply["actions"].tobytes() == wanted.tobytes()

    def held(self, reply: Any, inference: int) -> bool:
        """Whether a reply is the declared fallback."""
        declared = self.service.settings.fallback
        if declared == "stop":
            return isinstance(reply, str) and "stop the robot" in reply
        if not isinstance(reply, Mapping) or not reply["mist/fallback"]:
            return False
        preset, actions = self.bare.preset, reply["actions"]
        if declared == "zero":
            moving = np.delete(actions, preset.gripper_index or [], axis=1)
            return bool((moving == 0).all())
        state = preset.raw_state(self.looks[inference].raw)
        still = np.asarray(preset.still(state[None])[0])
        return bool((actions == still).all())

    def mend(self) -> None:
        """Removes every fault, and waits until the policies answer again.

        Raises:
            RuntimeError: they do not within 20 s.
        """
        for policy in (self.bare, self.monitored):
            if policy is not None:
                policy.mend()
        end = time.monotonic() + _WAIT_S
        while time.monotonic() < end:
            with self.client() as client:
                reply = self.ask(client, 0)
            if isinstance(reply, Mapping) and not reply["mist/late"]:
                return
        raise RuntimeError(f"the server has not recovered {_WAIT_S:g} s after a fault ended.")


def played(policy: Policy, observations: Sequence[RawObs], seed: int) -> list[Look]:
    """The observations of an episode, each with the policy's chunk for it."""
    state, looks = policy.initial_state(1), []
    for i, raw in enumerate(observations):
        actions, state = infer(policy, raw, seed, i, state)
        looks.append(Look(raw, actions))
    return looks


def infer(
    policy: Policy, raw: RawObs, seed: int, inference: int, state: Any
) -> tuple[np.ndarray, Any]:
    """(chunk for one observation of an episode in robot units [H,A], the policy's next state)."""
    keys = episode_keys(np.array([seed]), np.array([inference]))
    sample = policy.sample(policy.prepare([raw]), keys, state=state)
    return policy.finish(sample, [raw])[0], sample.state


def identity(stage: Stage) -> Found:
    """While the monitor is quiet, replies have the bare policy's bytes."""
    with stage.client() as client:
        same = 0
        for i in range(len(stage.looks)):
            reply = stage.ask(client, i)
            if isinstance(reply, str):
                return Found(False, f"an observation was refused: {reply:.100}")
            if reply["mist/alarm"] or reply["mist/edited"]:
                break
            if reply["mist/late"]:
                return Found(None, f"the reply to observation {i} was late.")
            if not stage.same(reply, i):
                return Found(False, f"observation {i} got other bytes than the bare policy gives.")
            same += 1
    if not same:
        return Found(None, "the monitor was never quiet: give observations of an ordinary episode.")
    rest = ", then an alarm" if same < len(stage.looks) else ""
    return Found(True, f"the same bytes for {same} of {len(stage.looks)} observations{rest}.")


def kill_switch(stage: Stage) -> Found:
    """After one message, or a signal, the next reply is the bare policy's."""
    with stage.client() as client, stage.client() as other:
        client.infer({"mist/pass_through": True})
        reply = stage.ask(client, 0)
        by_message = reply["mist/decision"] == "pass_through" and stage.same(reply, 0)
        alone = stage.ask(other, 0)["mist/decision"] != "pass_through"
        stage.service.pass_through = True
        try:
            reply = stage.ask(other, 0)
        finally:
            stage.service.pass_through = False
        by_signal = reply["mist/decision"] == "pass_through" and stage.same(reply, 0)
        back = stage.ask(other, 0)["mist/decision"] != "pass_through"
    return Found(
        by_message and alone and by_signal and back,
        "the next reply has the bare policy's bytes, for one connection and for all, and the "
        "monitor comes back.",
    )


def state(stage: Stage) -> Found:
    """State belongs to one connection and one episode."""
    last = min(3, len(stage.looks) - 1)

    def told(reply: Any) -> tuple:
        return reply["actions"].tobytes(), reply["mist/score"], reply["mist/input_score"]

    with stage.client() as one, stage.client() as other:
        alone = [told(stage.ask(one, i)) for i in range(last + 1)]
        crossed = [(told(stage.ask(one, i)), told(stage.ask(other, i))) for i in range(last + 1)]
    with stage.client() as again:
        anew = [told(stage.ask(again, i)) for i in range(last + 1)]
    holds = anew == alone and all(a == b == c for a, (b, c) in zip(alone, crossed, strict=True))
    return Found(
        holds,
        f"{last + 1} observations get the same replies alone, after a reset, beside another client "
        "and on a new connection.",
    )


def deadline(stage: Stage) -> Found:
    """If the monitor is late, the bare policy's action goes out, unchanged and tagged."""
    assert stage.monitored is not None
    limit = stage.service.settings.deadline_ms + stage.slack_ms
    try:
        with stage.client() as client:
            stage.ask(client, 0)
            stage.monitored.stall_s = STALL_S
            reply, took = _timed(stage, client, 1, "late, at first")
            right = not isinstance(reply, str) and reply["mist/late"] and stage.same(reply, 1)
            for i in range(2, min(6, len(stage.looks))):
                later, more = _timed(stage, client, i, "late, afterwards")
                right = right and later["mist/late"] and stage.same(later, i)
                took = max(took, more)
    finally:
        stage.mend()
    return Found(
        bool(right) and took <= limit,
        f"with the monitor stalled: the bare bytes, tagged, after {took:.0f} ms at most "
        f"({limit:.0f} allowed).",
    )


def dropped(stage: Stage) -> Found:
    """A result that comes late is dropped, and never answers a later observation."""
    assert stage.monitored is not None
    try:
        with stage.client() as client:
            stage.monitored.stall_s = STALL_S
            late = stage.ask(client, 0)
            stage.monitored.mend()
            replies = [stage.ask(client, 1)]  # while the late one comes in
            end = time.monotonic() + _WAIT_S
            while stage.service.busy_s and time.monotonic() < end:
                time.sleep(0.01)
            replies += [stage.ask(client, i) for i in range(2, min(6, len(stage.looks)))]
        well = [not r["mist/late"] for r in replies]
        own = all(
            stage.same(r, i) for i, r in enumerate(replies, 1) if not r["mist/edited"]
        )  # an answer of the observation before has other bytes
    finally:
        stage.mend()
    return Found(
        late["mist/late"] and own and any(well),
        f"after a late reply, {sum(well)} of {len(well)} replies are the monitor's again, each of "
        "its own observation.",
    )


def watchdog(stage: Stage) -> Found:
    """If the policy hangs, the declared fallback goes out in time, and /healthz says 503."""
    limit = stage.service.settings.watchdog_ms + stage.slack_ms
    try:
        for policy in (stage.bare, stage.monitored):
            if policy is not None:
                policy.stall_s = STALL_S
        right, took = True, 0.0
        for _ in range(2):
            with stage.client() as client:
                reply, more = _timed(stage, client, 0, "fallback")
                right, took = right and stage.held(reply, 0), max(took, more)
        sick = _health(stage.port) == 503
    finally:
        stage.mend()
    well = _health(stage.port) == 200
    declared = stage.service.settings.fallback
    return Found(
        right and sick and well and took <= limit,
        f"the fallback ({declared}) after {took:.0f} ms at most ({limit:.0f} allowed); /healthz "
        "says 503, and 200 afterwards.",
    )


def dead(stage: Stage) -> Found:
    """If the monitor raises, the bare action goes out; if the policy raises, the fallback."""
    try:
        right = True
        if stage.monitored is not None:
            stage.monitored.error = RuntimeError("injected")
            with stage.client() as client:
                reply = stage.ask(client, 0)
            right = reply["mist/late"] and stage.same(reply, 0)
        stage.bare.error = RuntimeError("injected")
        with stage.client() as client:
            right = right and stage.held(stage.ask(client, 0), 0)
    finally:
        stage.mend()
    return Found(
        bool(right), "a monitor that raises: the bare bytes; a policy that does: the fallback."
    )


def no_action(stage: Stage) -> Found:
    """If the policy returns NaN, the fallback goes out, with an alarm."""
    try:
        for policy in (stage.bare, stage.monitored):
            if policy is not None:
                policy.nan = True
        with stage.client() as client:
            reply = stage.ask(client, 0)
        right = stage.held(reply, 0) and (isinstance(reply, str) or reply["mist/alarm"])
    finally:
        stage.mend()
    return Found(bool(right), "a chunk of NaN: the fallback and an alarm.")


def wrong_inputs(stage: Stage) -> Found:
    """An invalid observation is answered by one sentence; its connection and others live on."""
    tried = 0
    with stage.client() as client, stage.client() as other:
        for one in (client, other):
            stage.ask(one, 0)
        for what, wrong in _wrong(stage):
            tried += 1
            said = client.infer(wrong)
            if not isinstance(said, str) or "\n" in said or "Traceback" in said:
                return Found(False, f"{what} was not answered by one sentence.")
        if isinstance(stage.ask(client, 1), str) or isinstance(stage.ask(other, 1), str):
            return Found(False, "a connection did not live on.")
    return Found(True, f"{tried} invalid observations and frames: one sentence each.")


def gate(stage: Stage) -> Found:
    """The gate limits every action, also with the monitor switched off."""
    spec, preset = stage.bare.spec, stage.bare.preset
    if preset.fallback is None:
        return Found(None, "the preset does not say what holds the robot still.")
    reach = 1e-3 * (np.asarray(spec.action_high) - np.asarray(spec.action_low))
    before = stage.service.gate
    stage.service.gate = Gate(velocity=tuple(map(float, reach)))
    try:
        state = preset.raw_state(stage.looks[0].raw)
        still = np.asarray(preset.still(state[None])[0])
        furthest = np.zeros(spec.action_dim)
        with stage.client() as client:
            for control in ({}, {"pass_through": True}):
                actions = stage.ask(client, 0, **control)["actions"]
                furthest = np.maximum(furthest, np.abs(actions - still).max(0))
    finally:
        stage.service.gate = before
    holds = bool((furthest <= np.asarray(reach, np.float32) * (1 + 1e-5)).all())
    return Found(holds, "a gate of a thousandth of the range: no action went further.")


def authorised(stage: Stage) -> Found:
    """Clients without the key are turned away; without a key, only this machine is served."""
    from websockets.exceptions import InvalidStatus

    if stage.service.settings.api_key is None:
        alone = is_loopback(stage.host)
        said = (
            "only this machine is served" if alone else f"anyone who reaches {stage.host} gets in"
        )
        return Found(alone, f"no key is asked for: {said}.")
    for key in (None, "wrong"):
        try:
            Client(stage.port, api_key=key).socket.close()
        except InvalidStatus as error:
            if error.response.status_code == 401:
                continue
        return Found(False, "a client without the key was let in.")
    return Found(True, "no key and a wrong one are turned away.")


def bounds(stage: Stage) -> Found:
    """Every action that went out is finite and within the robot's bounds."""
    spec = stage.bare.spec
    chunks = np.stack(stage.chunks)
    inside = (chunks >= np.asarray(spec.action_low, np.float32)) & (
        chunks <= np.asarray(spec.action_high, np.float32)
    )
    holds = bool(np.isfinite(chunks).all() and inside.all())
    return Found(holds, f"{len(chunks)} chunks, from every path.")


PROMISES: Mapping[str, Callable[[Stage], Found]] = {
    "identity": identity,
    "kill switch": kill_switch,
    "state": state,
    "deadline": deadline,
    "late replies": dropped,
    "watchdog": watchdog,
    "dead policy": dead,
    "no action": no_action,
    "wrong inputs": wrong_inputs,
    "gate": gate,
    "authorisation": authorised,
    "bounds": bounds,
}
"""In the order of the trials; `bounds` checks the chunks that the others received."""
OF_A_MONITOR = ("deadline", "late replies")


def _timed(stage: Stage, client: Client, inference: int, path: str) -> tuple[Any, float]:
    start = time.perf_counter()
    reply = stage.ask(client, inference)
    took = 1e3 * (time.perf_counter() - start)
    stage.took_ms.setdefault(path, []).append(took)
    return reply, took


def _health(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def _wrong(stage: Stage) -> Iterator[tuple[str, Any]]:
    """Invalid requests: (what is wrong, the request)."""
    right, preset = stage.looks[0].raw, stage.bare.preset
    keys = (preset.state_key,) if isinstance(preset.state_key, str) else preset.state_key
    for key in keys:
        state = np.asarray(right[key], np.float32)
        for name, value in (("NaN", np.nan), ("Inf", np.inf)):
            yield f"{key} of {name}", {**right, key: np.full_like(state, value)}
        yield f"{key} of another shape", {**right, key: np.zeros(state.size + 3, np.float32)}
        yield f"{key} of text", {**right, key: "none"}
        yield f"no {key}", {k: v for k, v in right.items() if k != key}
    for key in preset.cameras.values():
        if key is not None:
            yield f"{key} without colours", {**right, key: np.zeros((8, 8), np.uint8)}
            yield f"{key} of text", {**right, key: np.array(["no", "picture"])}
            yield f"no {key}", {k: v for k, v in right.items() if k != key}
    yield "a prompt that is a number", {**right, "prompt": 7}
    yield "an unknown key of mist/", {**right, "mist/unknown": 1}
    yield "nothing", {}
    yield "a list", [1, 2]
    yield "a broken frame", b"\xc1"
    yield "an empty frame", b""
    yield "a frame of text", "words"

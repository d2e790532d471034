"""`Service`: an observation in, a reply out, whatever the policy does meanwhile.

The monitored and the bare policy run in a lane each. The monitored one is asked first. If it has
not answered by half of the deadline, the bare one is asked too, with the same noise; at the
deadline its chunk goes out, tagged `mist/late`, and the monitor's later answer is dropped, except
for its state of the episode. If neither has answered by the watchdog's time, or the chunk is not an
action, the declared fallback goes out. The gate comes last, over every path.

So a reply is never later than the watchdog, never for an earlier observation, and always finite.
On an accelerator that runs one program at a time, a stall within the monitored program stalls the
bare one too; then the fallback goes out.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import mistjax
from mistjax.detect.inputs import DEFAULT_TAPS
from mistjax.models.transforms import flatten
from mistjax.policies.protocol import Policy
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.recorder import Recording
from mistjax.rollouts.runner import run_config
from mistjax.serve.deciding import Decision, decide
from mistjax.serve.events import Events
from mistjax.serve.fallback import check_fallback, fallback_chunk
from mistjax.serve.gate import Gate, read_gate
from mistjax.serve.lane import Answer, Lane, Request
from mistjax.serve.live import Live, Seen
from mistjax.serve.metrics import Metrics
from mistjax.serve.replies import reply_of
from mistjax.serve.session import ENV, Control, Episode, Session
from mistjax.serve.settings import Settings

LOG = logging.getLogger("mistjax.serve")
VERSIONS = {"mistjax": mistjax.__version__, "jax": importlib.metadata.version("jax")}


class Service:
    """See the module docstring.

    Attributes:
        bare: the policy without its monitor.
        policy: the served one: monitored, or the same as `bare`.
        settings: as given.
        pass_through: the kill switch, over all connections: True serves the bare policy.
        gate: kinematic limits of every chunk.
        sessions: open connections by their number.
        metrics: for Prometheus.
        events: the log.

    Args:
        bare: the policy.
        monitored: the same with its monitor and remedies; None serves the bare one.
        settings: deadlines, fallback, batching, and where to write.

    Raises:
        ValueError: a gate or a fallback that does not fit the robot.
        FileNotFoundError: the gate's file does not exist.
        ImportError: `settings.rerun` without the extra `rerun`.
    """

    def __init__(self, bare: Policy, monitored: Policy | None, settings: Settings):
        self.bare, self.settings = bare, settings
        self.policy = bare if monitored is None else monitored
        self.pass_through = False
        self.gate = Gate() if settings.gate is None else read_gate(settings.gate)
        if self.gate != Gate():
            self.gate.check(bare.spec, bare.preset)
        check_fallback(settings.fallback, bare.preset)
        recording = Recording(DEFAULT_TAPS, ()) if settings.record else Recording()
        common: dict[str, Any] = {
            "sizes": settings.batch_sizes,
            "slots": settings.max_connections,
            "wait_s": settings.batch_wait_ms / 1e3,
            "expected": lambda: len(self.sessions),
        }
        self._bare = Lane(bare, **common, name="bare")
        self._monitored = self._bare
        if monitored is not None or settings.record:
            self._monitored = Lane(self.policy, **common, recording=recording, name="monitored")
        self.sessions: dict[int, Session] = {}
        self._free = list(range(settings.max_connections))
        self._connections = itertools.count()
        self.metrics = Metrics(
            {
                "connections": lambda: len(self.sessions),
                "queue": lambda: self._monitored.waiting,
                "busy_seconds": lambda: self.busy_s,
                "pass_through": lambda: float(self.pass_through),
                "lost_episodes": lambda: self.events.lost,
            }
        )
        self._live: Live | None = None
        if settings.rerun is not None:
            watched = monitored is not None
            scores = ("failure score",) * watched + ("input score",) * bool(self.policy.spec.inputs)
            self._live = Live(settings.rerun, bare.preset, self.policy.spec, scores)
        config = None
        if settings.record:
            plan = EpisodePlan(env=None)
            config = run_config(self.policy.spec, plan, ENV, DEFAULT_TAPS, ())
        self.events = Events.open(settings.out, config)
        self._numbers = itertools.count(self.events.first)

    @property
    def _lanes(self) -> tuple[Lane, ...]:
        return tuple(dict.fromkeys((self._monitored, self._bare)))

    def start(self) -> None:
        """Compiles every batch size; ValueError if an inference is slower than the deadline."""
        for lane in self._lanes:
            lane.warm()
        slowest = 1e3 * max(lane.slowest_s for lane in self._lanes)
        if slowest > self.settings.deadline_ms:
            raise ValueError(
                f"an inference of {self.settings.max_batch} observations takes {slowest:.0f} ms "
                f"here, and the deadline is {self.settings.deadline_ms:g} ms: raise --deadline-ms, "
                "or lower --max-batch."
            )

    def close(self) -> None:
        """Ends every episode, stops the lanes, and writes what is left."""
        for session in list(self.sessions.values()):
            self.leave(session)
        for lane in self._lanes:
            lane.stop()
        self.events.close()
        if self._live is not None:
            self._live.close()

    def metadata(self) -> dict[str, Any]:
        """The first frame of a connection."""
        spec, preset = self.policy.spec, self.bare.preset
        return {
            "policy": spec.name,
            "policy_fingerprint": spec.fingerprint,
            "mistjax": mistjax.__version__,
            "robot": preset.name,
            "action_horizon": spec.action_horizon,
            "action_dim": spec.action_dim,
            "action_names": list(spec.action_names),
            "execute_steps": spec.execute_steps,
            "cameras": [key for key in preset.cameras.values() if key is not None],
            "inputs": list(spec.inputs),
            "monitored": self.policy is not self.bare,
            "deadline_ms": self.settings.deadline_ms,
        }

    @property
    def busy_s(self) -> float:
        """How long the longest inference under way has been running, s; 0 without one."""
        return max(lane.busy_s for lane in self._lanes)

    @property
    def hung_s(self) -> float:
        """How long the bare policy has been running one inference, s, if that is beyond the
        watchdog's time; otherwise 0."""
        busy = self._bare.busy_s
        return busy if 1e3 * busy > self.settings.watchdog_ms else 0.0

    @property
    def full(self) -> bool:
        """Whether no further client is let in."""
        return not self._free

    def join(self) -> Session:
        """The session of a new connection; call it only while not `full`."""
        session = Session(next(self._connections), self._free.pop(), self._episode())
        self.sessions[session.number] = session
        return session

    def leave(self, session: Session) -> None:
        """Ends a session with its episode; does nothing the second time."""
        if self.sessions.pop(session.number, None) is not None:
            self._end(session.episode)
            self._free.append(session.slot)

    def _episode(self, control: Control = Control()) -> Episode:
        number = next(self._numbers)
        seed = number if control.seed is None else control.seed
        return Episode(number, seed, control.episode)

    def _end(self, episode: Episode) -> None:
        if self._live is not None:
            self._live.tell(Seen(episode.number))
        try:
            trace = episode.trace(self.policy.spec)
            if trace is not None:
                self.events.keep(trace)
        except Exception:
            LOG.exception("episode %d cannot be stored", episode.number)

    def obey(self, session: Session, control: Control) -> None:
        """Does what a request says beside its observation.

        Raises:
            ValueError: a seed in the middle of an episode.
        """
        if control.pass_through is not None:
            session.pass_through = control.pass_through
        if control.success is not None:
            session.episode.success = control.success
        named = control.episode is not None and control.episode != session.episode.name
        if named and session.episode.name is None and session.episode.inferences == 0:
            session.episode.name = control.episode
            named = False
        if control.reset or named:
            self._end(session.episode)
            session.episode = self._episode(control)
        elif control.seed is not None:
            if session.episode.inferences:
                raise ValueError("mist/seed came in mid-episode: send it with mist/reset.")
            session.episode.seed = control.seed

    async def answer(self, session: Session, request: Any) -> dict[str, Any]:
        """The reply to one request.

        Raises:
            ValueError: an invalid observation or control; the message is one sentence.
            StopRobot: there is no action, and the declared fallback is `stop`.
        """
        since = time.monotonic()
        try:
            control, raw = Control.split(request)
            raw = flatten(raw)
            self.obey(session, control)
            if not raw:
                if control == Control():
                    raise ValueError("a request is empty: expected an observation.")
                return {"mist/ok": True, "mist/episode": session.episode.number}
            return await self._act(session, raw, since)
        except ValueError as error:
            self.metrics.count("refused_total", 'what="observation"')
            self._event(session, since, decision="refused", why=str(error)[:300])
            raise

    async def _act(self, session: Session, raw: dict[str, Any], since: float) -> dict[str, Any]:
        episode = session.episode
        request = Request(
            raw, session.slot, episode.number, episode.seed, episode.inferences, since
        )
        decision, answer = await self._decide(session, request)
        now = str(raw.get("prompt", ""))
        episode.inferences += 1
        session.requests += 1
        episode.prompt = episode.prompt or now
        state = self.bare.preset.raw_state(raw)
        fallen = answer is None or answer.broken or bool(answer.said.get("fallback", False))
        if answer is None:
            actions = self._fallback(state)
        else:
            held = fallen and self.settings.fallback != "hold"
            actions = self._fallback(state) if held else answer.actions
        proposed, actions = actions, self._gated(episode, actions, state)
        gated = actions is not proposed and bool((actions != proposed).any())
        reply = reply_of(self.policy, episode, answer, actions, fallen, now)
        reply["mist/late"] = decision in ("late", "fallback")
        reply["mist/decision"] = decision
        reply["mist/sequence"] = session.requests
        if decision in ("late", "fallback", "pass_through"):
            episode.incomplete = f"inference {episode.inferences - 1} was answered by: {decision}"
        if self.settings.record:
            found = None
            if decision in ("monitored", "bare") and answer is not None:
                found = answer.batch, answer.element
            executed = actions[: self.policy.spec.execute_steps]
            raw.setdefault("prompt", self.bare.preset.prompt(raw))
            episode.record(raw, executed, found)
        if self._live is not None:
            step = (episode.inferences - 1) * self.policy.spec.execute_steps
            self._live.tell(Seen(episode.number, step, raw, reply, now))
        self._tell(session, reply, answer, decision, gated, since)
        return reply

    async def _decide(self, session: Session, request: Request) -> Decision:
        return await decide(
            self._bare,
            self._monitored,
            request,
            self.settings,
            off=self.pass_through or session.pass_through,
            dropped=lambda: self.metrics.count("late_results_total"),
        )

    def _fallback(self, state: np.ndarray) -> np.ndarray:
        return fallback_chunk(self.settings.fallback, self.policy.spec, self.bare.preset, state)

    def _gated(self, episode: Episode, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        if self.gate == Gate():
            return actions
        rest = np.asarray(self.bare.preset.still(state[None])[0])
        passed = self.gate(actions, rest, state, episode.gate)
        executed = self.policy.spec.execute_steps
        episode.gate = self.gate.after(passed, executed, episode.gate, rest)
        return passed

    def _tell(
        self,
        session: Session,
        reply: Mapping[str, Any],
        answer: Answer | None,
        decision: str,
        gated: bool,
        since: float,
    ) -> None:
        milliseconds = 1e3 * (time.monotonic() - since)
        self.metrics.observe(decision, milliseconds)
        self.metrics.count("requests_total", f'decision="{decision}"')
        for kind in ("unsound", "fallback"):
            if reply[f"mist/{kind}"]:
                self.metrics.count("alarms_total", f'kind="{kind}"')
        if reply["mist/alarm"] and not (reply["mist/unsound"] or reply["mist/fallback"]):
            self.metrics.count("alarms_total", 'kind="failure"')
        if reply["mist/edited"]:
            self.metrics.count("edited_total")
        if gated:
            self.metrics.count("gated_total")
        self._event(
            session,
            since,
            decision=decision,
            score=reply["mist/score"],
            threshold=reply["mist/threshold"],
            alarm=reply["mist/alarm"],
            unsound=reply["mist/unsound"],
            input=reply["mist/input"],
            edited=reply["mist/edited"],
            fallback=reply["mist/fallback"],
            gated=gated,
            batch=0 if answer is None else answer.size,
            queue_ms=reply["mist/queue_ms"],
            infer_ms=reply["policy_timing"]["infer_ms"],
        )

    def _event(self, session: Session, since: float, **more: Any) -> None:
        self.events.add(
            {
                "time": time.time(),
                "connection": session.number,
                "sequence": session.requests,
                "episode": session.episode.number,
                "inference": session.episode.inferences - 1,
                **more,
                "total_ms": 1e3 * (time.monotonic() - since),
                "policy": self.policy.spec.fingerprint,
                **VERSIONS,
            }
        )

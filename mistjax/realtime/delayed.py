"""`Delayed`: a policy whose inference takes several control steps; itself a `Policy`.

The delay is counted in control steps, not seconds, so a simulation does not depend on the machine
it runs on. `finish` and `act` return the actions of a whole round, including those left over from
earlier chunks; `spec.execute_steps` is the length of a round. Whatever runs a policy therefore runs
a delayed one: rollouts, compiled rollouts, worker processes, studies. Around a `MistPolicy`, an
alarm arrives together with the chunk it belongs to: until then the chunk in flight is executed,
and from then on the alarm takes effect. Where a chunk is not an action, the robot holds still.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mistjax.detect.novelty.motion import MotionModel
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.models.transforms import flat_batch
from mistjax.policies.pi import PiPolicy
from mistjax.policies.protocol import Policy, PolicySpec, RawObs, Sample
from mistjax.policies.wrapper import Briefed, flow_of, innermost, traceable
from mistjax.realtime.strategies import Strategy
from mistjax.recover.watched import Watched


@flax.struct.dataclass
class Flight:
    """The chunks in flight, per batch element: K of them, P actions each.

    Attributes:
        chunks: earlier chunks in model units, newest first, aligned with the next observation.
        known: which of their entries hold an action.
        state: the normalised state that delta actions are relative to.
        begun: whether the episode has had an inference.
    """

    chunks: Float[Array, "b k p a"]
    known: Bool[Array, "b k p"]
    state: Float[Array, "b s"]
    begun: Bool[Array, " b"]


@flax.struct.dataclass
class DelayedState:
    """The inner policy's state, and the chunks in flight."""

    policy: Any
    flight: Flight


@flax.struct.dataclass
class Delayed(Briefed):
    """See the module docstring. `Sample.actions` is the plan of one round in model units [B,R,A];
    `aux["planned"]` [B,R] says which of its entries hold an action.

    Attributes:
        policy: the policy, monitored or not.
        strategy: which actions of its chunks are executed, and when (static).
        motion: the motion model that `vlash` rolls the state forward with.
        state_width: width of a prepared observation's normalised state (static).
    """

    policy: Any
    strategy: Strategy = flax.struct.field(pytree_node=False)
    motion: MotionModel | None = None
    state_width: int = flax.struct.field(pytree_node=False, default=0)

    @classmethod
    def around(
        cls, policy: Policy, name: Any, delay: int, motion: MotionModel | None = None
    ) -> Delayed:
        """`policy` under a delay of `delay` control steps, with the strategy called `name`.

        Raises:
            ValueError: an unknown strategy; RTC with a policy that has no velocity field; `vlash`
                without a motion model.
        """
        spec = policy.spec
        strategy = Strategy(name, delay, spec.execute_steps, spec.action_horizon)
        flow = _pi(policy)
        if strategy.name.startswith("rtc"):
            flow_of(policy)  # says what is wrong
        if strategy.name == "vlash" and motion is None:
            raise ValueError(
                "vlash rolls the state forward by a model of the robot's motion, which comes with "
                "a monitor of inputs: give the folder of one as mist."
            )
        width = policy.preset.state_dim if flow is None else flow.config.action_dim
        return cls(policy, strategy, motion, width)

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The inner policy's, with a round in place of the chunk and its own fingerprint."""
        spec, length = self.policy.spec, self.strategy.round
        spec = spec.wrapped(spec.name, dataclasses.astuple(self.strategy))
        return dataclasses.replace(spec, action_horizon=length, execute_steps=length)

    def initial_state(self, batch: int) -> DelayedState:
        state, s = self.policy.initial_state(batch), self.strategy
        chunks = jnp.zeros((batch, s.history, s.reach, self.policy.chunk_width), jnp.float32)
        known = jnp.zeros((batch, s.history, s.reach), bool)
        rest = jnp.zeros((batch, self.state_width), jnp.float32)
        return DelayedState(state, Flight(chunks, known, rest, jnp.zeros(batch, bool)))

    def sample(
        self,
        obs: Observation,
        key: Array,
        *,
        state: Any = (),
        edits: Sequence[Edit] = (),
        taps: Sequence[Tap] = (),
        prefix: Any = None,
    ) -> Sample:
        """See `Policy.sample`; `state` is `initial_state` or the last sample's."""
        state = self.initial_state(obs.batch_size) if isinstance(state, tuple) else state
        return _sample(self, obs, key, state, tuple(edits), tuple(taps), prefix)

    def step(self, obs, key, state: DelayedState, edits, taps, prefix) -> Sample:
        """`sample`, traced."""
        strategy, flight = self.strategy, self._rebased(state.flight, obs)
        old, known = flight.chunks[:, 0], flight.known[:, 0]
        seen = dataclasses.replace(obs, pending=strategy.pending(old, known))
        if strategy.name == "vlash":
            seen = self._rolled(seen, old, known)
        sample = self.policy.sample(
            seen, key, state=state.policy, edits=edits, taps=taps, prefix=prefix
        )
        lost = jnp.asarray(sample.broken) | jnp.asarray(sample.aux.get("fallback", False))
        new = jnp.where(lost[:, None, None], 0.0, sample.actions)
        plan, there = strategy.plan(flight.chunks, flight.known, new, ~lost, flight.begun)
        length = strategy.round
        kept = self._kept(flight, plan, there, new, ~lost)
        aux = {**sample.aux, "planned": _first(there, length, False)}
        inner = sample.state
        if isinstance(self.policy, Watched):  # dead reckoning needs the actions executed
            went = new if strategy.name == "wait" else _first(plan, max(length, 1), 0.0)
            inputs = self.policy.inputs
            if went.shape[1] >= inputs.execute:
                inner = dataclasses.replace(inner, inputs=inputs.executed(inner.inputs, went))
        done = jnp.ones_like(flight.begun)
        flight = Flight(*kept, jnp.asarray(obs.state, jnp.float32), done)
        return Sample(_first(plan, length, 0.0), sample.taps, aux, DelayedState(inner, flight))

    def _kept(self, flight: Flight, plan, there, new, sound):
        """(chunks, known) for the next round, aligned with its observation."""
        length = self.strategy.round
        if self.strategy.name == "ensemble":
            shift = jnp.where(flight.begun, 0, self.strategy.delay)
            # The first chunk of an episode starts when it arrives: the robot has not moved.
            steps = jnp.arange(self.strategy.horizon) - shift[:, None]
            moved = jnp.take_along_axis(new, jnp.maximum(steps, 0)[..., None], axis=1)
            said = (steps >= 0) & sound[:, None]
            chunks = jnp.concatenate([moved[:, None], flight.chunks[:, :-1]], axis=1)
            known = jnp.concatenate([said[:, None], flight.known[:, :-1]], axis=1)
        else:
            chunks, known = plan[:, None], there[:, None]
        gone = min(length, self.strategy.reach)
        pad = ((0, 0), (0, 0), (0, gone))
        return (
            jnp.pad(chunks[:, :, gone:], (*pad, (0, 0))),
            jnp.pad(known[:, :, gone:], pad),
        )

    def _rolled(self, obs: Observation, old, known) -> Observation:
        """The observation with the state predicted for when the chunk arrives."""
        motion, state = self.motion, jnp.asarray(obs.state)
        assert motion is not None
        width, delay = motion.scale.shape[0], self.strategy.delay
        now = state[:, :width]
        each = motion.weights.shape[0] - 1 - width - motion.low.shape[0]
        each = each - width if motion.gripper is not None else self.strategy.executed
        old = old[..., : motion.low.shape[0]]
        steps = jnp.arange(self.strategy.reach)
        on = known & (steps < delay)
        still = jnp.zeros_like(old)
        if motion.gripper is not None:  # the gripper keeps its last command
            last = jnp.maximum(on.sum(axis=1) - 1, 0)[:, None]
            held = jnp.take_along_axis(old[..., motion.gripper], last, axis=1)
            still = still.at[..., motion.gripper].set(held)
        commands = jnp.where(on[..., None], old, still)
        for first in range(0, delay, each):
            window = commands[:, first : first + each]
            short = each - window.shape[1]
            window = jnp.concatenate([window, still[:, :short]], axis=1)
            now = jnp.where(on[:, first, None], motion.predict(now, window), now)
        return dataclasses.replace(obs, state=state.at[:, :width].set(now))

    def _rebased(self, flight: Flight, obs: Observation) -> Flight:
        """Delta actions relative to the state of the last observation, made relative to this
        one's."""
        flow = _pi(self.policy)
        if flow is None or not any(self.preset.delta):
            return flight
        width = self.preset.action_dim
        moves = flow.state_normalizer.unnormalize(jnp.asarray(flight.state))
        moves = moves - flow.state_normalizer.unnormalize(jnp.asarray(obs.state, jnp.float32))
        mask = np.zeros(width, bool)
        mask[: len(self.preset.delta)] = self.preset.delta
        shift = jnp.pad(moves, ((0, 0), (0, max(0, width - moves.shape[1]))))[:, :width]
        plain = flow.action_normalizer.unnormalize(flight.chunks[..., :width])
        plain = plain + jnp.where(jnp.asarray(mask), shift, 0.0)[:, None, None]
        chunks = flight.chunks.at[..., :width].set(flow.action_normalizer.normalize(plain))
        return dataclasses.replace(flight, chunks=chunks)

    def finish(self, sample: Sample, raw: Sequence[RawObs]) -> np.ndarray:
        """The actions of one round in the robot's units [B,R,A]; where nothing is planned, the
        robot holds still.

        Raises:
            ValueError: the preset does not say what holds the robot still.
        """
        actions = np.array(self.policy.finish(self._whole(sample), raw))
        planned = np.asarray(sample.aux["planned"])
        if planned.all():
            return actions
        preset = self.preset
        if preset.fallback is None:
            raise ValueError(
                f"preset {preset.name!r} does not say what holds the robot still while it waits: "
                "give RobotPreset a `fallback`."
            )
        states = np.stack([preset.raw_state(one) for one in flat_batch(raw)])
        still = np.asarray(preset.still(states))
        return np.where(planned[..., None], actions, still[:, None])

    def _whole(self, sample: Sample) -> Sample:
        """The sample without its marks of lost elements, whose old plan the inner policy would
        otherwise replace by holding still."""
        aux = {name: value for name, value in sample.aux.items() if name != "decode_ok"}
        if "fallback" in aux:
            aux["fallback"] = jnp.zeros_like(aux["fallback"])
        return dataclasses.replace(sample, aux=aux)

    def encode_prompts(self, prompts: Sequence[str]) -> Any:
        """See `TraceablePolicy`."""
        return traceable(self.policy).encode_prompts(prompts)

    def observe(self, raw: Mapping[str, Array], words: Any) -> Observation:
        """See `TraceablePolicy`."""
        return traceable(self.policy).observe(raw, words)

    def act(self, sample: Sample, raw: Mapping[str, Array]) -> Float[Array, "b h a"]:
        """See `TraceablePolicy`."""
        actions = traceable(self.policy).act(self._whole(sample), raw)
        keys = self.preset.state_key
        keys = (keys,) if isinstance(keys, str) else keys
        state = jnp.concatenate([raw[key] for key in keys], axis=-1)
        still = self.preset.still(state)[:, None]
        return jnp.where(sample.aux["planned"][..., None], actions, still)


@functools.partial(jax.jit, static_argnames="taps")
def _sample(delayed: Delayed, obs, key, state: DelayedState, edits, taps, prefix) -> Sample:
    return delayed.step(obs, key, state, edits, taps, prefix)


def _first(values: Array, length: int, fill: Any) -> Array:
    """The first `length` entries along axis 1, padded with `fill`."""
    short = max(0, length - values.shape[1])
    pad = [(0, 0), (0, short)] + [(0, 0)] * (values.ndim - 2)
    return jnp.pad(values[:, :length], pad, constant_values=fill)


def _pi(policy: Any) -> PiPolicy | None:
    policy = innermost(policy)
    return policy if isinstance(policy, PiPolicy) else None

"""`Loop`: rounds of one batched inference and the actions that follow, in many environments.

The cost of a round is one inference plus the slowest worker's actions.
"""

from __future__ import annotations

import collections
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Int
from tqdm import tqdm

from mistjax.batches import choose
from mistjax.policies.protocol import Policy, RawObs
from mistjax.policies.wrapper import Wrapper
from mistjax.rollouts.recorder import Inference, Recorder, Recording, robot_state
from mistjax.rollouts.trace import Json, Trace
from mistjax.rollouts.workers.host import Reply
from mistjax.rollouts.workers.pool import EnvPool

_ATTEMPTS = 2  # at an episode that kills its worker


class Slot:
    """One place in the batch, and the episode in it."""

    def __init__(self, index: int):
        self.index = index
        self.raw: RawObs = {}
        self.recorder: Recorder | None = None
        self.fresh = False


class Loop:
    """The policy state of each slot, and the rounds."""

    def __init__(
        self,
        policy: Policy,
        envs: EnvPool,
        *,
        slots: int,
        recording: Recording,
        videos: frozenset[int],
        options: dict[str, Json],
        max_steps: int | None,
    ):
        self._policy = policy
        self._envs = envs
        self._recording = recording
        self._videos = videos
        self._options = options
        self._max_steps = max_steps
        self._state = beside(policy, policy.initial_state(slots))
        self._slots = [Slot(index) for index in range(slots)]
        self._waiting: collections.deque[int] = collections.deque()
        self._deaths: collections.Counter[int] = collections.Counter()
        self._seen = self._usual = None  # shapes of the last prepared batch; of one that went well

    def episodes(self, seeds: Sequence[int]) -> Iterator[Trace]:
        """Yields a trace whenever an episode ends; the order is that of the ends."""
        self._waiting.extend(seeds)
        warm = False
        while True:
            while self._waiting and any(slot.recorder is None for slot in self._slots):
                yield from self._begin()
            active = [slot for slot in self._slots if slot.recorder is not None]
            if not active:
                return
            shown = [slot if slot.recorder is not None else active[0] for slot in self._slots]
            try:
                if not warm:  # so that no episode's timing contains the compilation
                    self._infer(shown, self._state)
                    warm = True
                inference, self._state = self._infer(shown, self._state)
                self._usual = self._seen
            except Exception:
                for slot, error in self._culprits(active, traceback.format_exc()):
                    yield self._end(slot, error)
                continue
            yield from self._act(inference)

    def _begin(self) -> Iterator[Trace]:
        """Starts an episode in every free slot; yields the trace of one that crashes already."""
        free = [slot for slot in self._slots if slot.recorder is None]
        starts = {}
        for slot, _ in zip(free, range(len(self._waiting)), strict=False):
            seed = self._waiting.popleft()
            slot.recorder = Recorder(seed, {"prompt": ""}, {}, ())
            drawn = seed in self._videos
            starts[slot.index] = "reset", (slot.index, seed, dict(self._options), drawn)
        for index, reply in self._envs.exchange(starts):
            slot = self._slots[index]
            if (trace := self._crash(slot, reply)) is not None:
                yield trace
            if slot.recorder is None or reply.lost:
                continue
            seed = slot.recorder.seed
            cameras = tuple(self._policy.spec.cameras.values()) if seed in self._videos else ()
            (start,) = reply.moments
            try:
                prompt = self._policy.preset.prompt(start.raw)
                slot.raw, slot.fresh = {**start.raw, "prompt": prompt}, True
                slot.recorder = Recorder(seed, slot.raw, start.info, cameras)
            except Exception:
                yield self._end(slot, traceback.format_exc())

    def _crash(self, slot: Slot, reply: Reply) -> Trace | None:
        """Frees the slot if its environment crashed or its worker died.

        Returns:
            The crashed episode; None if it goes on, or waits for another attempt.
        """
        if slot.recorder is None:
            return None
        seed = slot.recorder.seed
        if reply.lost:
            self._deaths[seed] += reply.error is not None
            if self._deaths[seed] < _ATTEMPTS:
                if reply.error is not None:
                    tqdm.write(f"seed {seed}: {reply.error}; the episode starts again")
                slot.recorder = None
                self._waiting.appendleft(seed)
                return None
        if reply.error is None:
            return None
        return self._end(slot, f"{reply.error}, twice" if reply.lost else reply.error)

    def _infer(self, shown: Sequence[Slot], state: Any) -> tuple[Inference, Any]:
        """One inference, in which each element is what a slot sees; an empty slot sees what another
        does, and goes nowhere.
        """
        raw = [slot.raw for slot in shown]
        fresh = np.array([slot.fresh for slot in shown])
        if fresh.any():
            first = self._policy.begin([slot.recorder.seed for slot in shown])  # type: ignore[union-attr]
            state = _choose(fresh, jax.tree.map(jnp.asarray, first), state)
        keys = episode_keys(
            np.array([slot.recorder.seed for slot in shown]),  # type: ignore[union-attr]
            np.array([slot.recorder.inferences for slot in shown]),  # type: ignore[union-attr]
        )
        start = time.perf_counter()
        observation = self._policy.prepare(raw)
        sample = self._policy.sample(observation, keys, state=state, taps=self._recording.taps)
        jax.block_until_ready(sample)
        chunks = self._policy.finish(sample, raw)
        milliseconds = 1e3 * (time.perf_counter() - start)
        self._seen = _shapes(observation)
        return Inference.read(self._recording, sample, chunks, milliseconds), sample.state

    def _culprits(self, active: Sequence[Slot], error: str) -> list[tuple[Slot, str]]:
        """The episodes that made an inference fail, each with its error; all of them, if it was
        none in particular. The others stay as they were, and do the same in the next inference.

        Each is tried alone in a batch of the usual size: first its observation is prepared, which
        costs little and finds most, then compared with the others in shape, then inferred on.
        """
        found, shapes = {}, {}

        def prepare(slot: Slot) -> None:
            shapes[slot] = _shapes(self._policy.prepare([slot.raw] * len(self._slots)))

        def compare(slot: Slot) -> None:
            usual, count = collections.Counter(shapes.values()).most_common(1)[0]
            usual = self._usual or (usual if 2 * count > len(active) else shapes[slot])
            if shapes[slot] != usual:
                raise ValueError(f"an observation of another shape: {shapes[slot]}, not {usual}")

        def infer(slot: Slot) -> None:
            repeated = np.full(len(self._slots), slot.index)
            self._infer([slot] * len(repeated), jax.tree.map(lambda x: x[repeated], self._state))

        for attempt in (prepare, compare, infer):
            for slot in active:
                try:
                    attempt(slot)
                except Exception:
                    found[slot] = traceback.format_exc()
            if found:
                return list(found.items())
        return [(slot, error) for slot in active]

    def _act(self, inference: Inference) -> Iterator[Trace]:
        """Executes the first actions of every chunk; yields the traces of episodes that end."""
        requests = {}
        for slot in self._slots:
            if (recorder := slot.recorder) is None:
                continue
            slot.fresh = False
            try:
                chunk = recorder.inference(inference, slot.index, slot.raw)
            except Exception:
                yield self._end(slot, traceback.format_exc())
                continue
            left = None if self._max_steps is None else self._max_steps - recorder.steps
            actions = list(chunk[: self._policy.spec.execute_steps][:left])
            requests[slot.index] = "act", (slot.index, actions)
        for index, reply in self._envs.exchange(requests):
            slot = self._slots[index]
            if slot.recorder is None:
                continue
            try:
                ended = self._record(slot, requests[index][1][1], reply)
            except Exception:
                yield self._end(slot, traceback.format_exc())
                continue
            if (trace := self._crash(slot, reply)) is not None:
                yield trace
            elif slot.recorder is not None and ended:
                error = reply.moments[-1].info.get("error")
                yield self._end(slot, str(error) if error else None)

    def _record(self, slot: Slot, actions: Sequence[np.ndarray], reply: Reply) -> bool:
        """Adds what the actions led to; returns whether the episode is over."""
        recorder = slot.recorder
        assert recorder is not None
        ended = False
        for action, moment in zip(actions, reply.moments, strict=False):
            recorder.step(robot_state(slot.raw), action, moment.raw, moment.info)
            slot.raw, ended = moment.raw, moment.ended
        return ended or recorder.steps == self._max_steps

    def _end(self, slot: Slot, error: str | None) -> Trace:
        """Frees the slot."""
        recorder = slot.recorder
        assert recorder is not None
        perturbation = self._options.get("perturbation", {})
        try:
            trace = recorder.trace(self._envs.env_id, self._policy.spec, perturbation, error)
        except Exception:
            error = traceback.format_exc()
            trace = recorder.trace(self._envs.env_id, self._policy.spec, perturbation, error)
        slot.recorder = None
        return trace


def _shapes(observation: Any) -> tuple[Any, ...]:
    """Shape and dtype of each array of a prepared batch."""
    leaves = jax.tree.leaves(observation)
    return tuple((np.shape(x), str(getattr(x, "dtype", type(x).__name__))) for x in leaves)


def beside(policy: Policy, state: Any) -> Any:
    """The state as arrays on the policy's device, as those that it returns: others would be
    compiled for twice.
    """
    state = jax.tree.map(jnp.asarray, state)
    arrays = [leaf for leaf in jax.tree.leaves(policy) if isinstance(leaf, jax.Array)]
    while not arrays and isinstance(policy, Wrapper):  # some of them are not pytrees
        policy = policy.policy
        arrays = [leaf for leaf in jax.tree.leaves(policy) if isinstance(leaf, jax.Array)]
    places = {array.sharding for array in arrays if array.committed}
    alone = len(places) == 1 and isinstance(next(iter(places)), SingleDeviceSharding)
    return jax.device_put(state, places.pop()) if alone else state


_choose = jax.jit(choose)


@jax.jit
def episode_keys(
    seeds: Int[Array | np.ndarray, " b"], inferences: Int[Array | np.ndarray, " b"]
) -> Array:
    """One key per slot, the same however JAX is configured."""

    def one(seed, i):
        return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), i)

    return jax.vmap(one)(seeds, inferences)

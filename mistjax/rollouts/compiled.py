"""Rollouts as one compiled program: environment, pictures, policy, monitor and repair in one scan.

The batch lies inside the scan (a `vmap` of it would turn `MistPolicy`'s `lax.cond` into a select
that always attributes). A round is one inference and the actions that follow; pictures are drawn
only where the policy looks. A slot whose episode ended takes the next one before the next round.
Episodes are rows of a `Table` of arrays, so one program runs any study of the same sizes.

An episode depends on its seed alone, as in `run_episodes`: inference i of seed s uses the key
fold_in(key(s), i), and each slot has its own policy state. What acts and what counts are the host
loop's own functions; the physics are those of the functional environment.

Several devices each run their own slots and their own share of the table: there is no communication
between them, and an episode is the same on any number of them (but for rounding). A policy that is
too large for one device is spread over groups of them (`fsdp`): each holds a part of every matrix,
and the devices of one group, which run their slots together, talk to each other alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from mistjax.batches import choose
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy, Sample
from mistjax.policies.wrapper import brief, told, traceable
from mistjax.rollouts.loop import episode_keys
from mistjax.rollouts.recorder import MONITOR

AXIS, FSDP = "env", "fsdp"
SPREAD = 4096
"""Numbers from which on an array of the policy is spread over a group of devices."""

AnyArray = Array | np.ndarray


@runtime_checkable
class FunctionalEnv(Protocol):
    """An environment as pure functions; hashable, since it is a static argument.

    `reset`, `step` and `failure_cause` are of one episode; `observe` is of a batch of states and
    gives arrays under the keys of raw observations (pictures as 8-bit RGB in the policy's size) and
    the states after it, which may remember what was seen. Where it gives a `prompt`, that is which
    of the episode's prompts [b] is read now; else it is the first. A state is a pytree that says
    whether the episode is `done` and whether in `success`; one that is done stays as it is.
    """

    @property
    def causes(self) -> Sequence[str]: ...

    def reset(self, start: Any) -> Any: ...

    def step(self, state: Any, action: Float[Array, " a"]) -> Any: ...

    def observe(self, state: Any) -> tuple[Mapping[str, Array], Any]: ...

    def failure_cause(self, state: Any) -> Any: ...


@flax.struct.dataclass
class Table:
    """Episodes, one a row.

    Attributes:
        seed: names the episode, and its policy's noise.
        start: for the environment's `reset`.
        words: of `Policy.encode_prompts`, of each of an episode's prompts.
        brief: what the policy is told of the episode, see `wrapper.brief`.
    """

    seed: Int[AnyArray, " e"]
    start: Any
    words: tuple[Int[AnyArray, "e p l"], Bool[AnyArray, "e p l"]]
    brief: Any = ()


@flax.struct.dataclass
class Slots:
    """The slots of the batch between two rounds.

    Attributes:
        episode: row of the table, where `busy`.
        busy: whether an episode is under way.
        state, memory: of the environment, of the policy.
        inferences, steps: so far.
        next: [1], the first row of the table that nobody has begun.
    """

    episode: Int[Array, " b"]
    busy: Bool[Array, " b"]
    state: Any
    memory: Any
    inferences: Int[Array, " b"]
    steps: Int[Array, " b"]
    next: Int[Array, "1"]


class Round(NamedTuple):
    """What one round reports, on the device or as NumPy arrays, of each slot [b].

    Attributes:
        episode: row of the table; -1 for an idle slot.
        inference: which of the episode.
        ended: whether the episode ended in this round; then `success`, `cause` and `steps` hold.
        success: how.
        cause: index of the environment's `causes`, of a failure.
        steps: so far.
        executed: of them, in this round; 0 in an idle slot.
        monitor: what `recorder.MONITOR` names, of a policy that has it.
        taps: `str(tap)` -> values, batch axis first.
        aux: what was asked for of `Sample.aux`, batch axis first.
        kept: `chunks` [b,h,a] and the robot's `state` before each action [b,e,s], where asked for.
    """

    episode: Any
    inference: Any
    ended: Any
    success: Any
    cause: Any
    steps: Any
    executed: Any
    monitor: dict[str, Any]
    taps: dict[str, Any]
    aux: dict[str, Any]
    kept: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recording:
    """What every round keeps besides the outcome: activations, outputs of the policy, and whether
    chunks and robot states."""

    taps: tuple[Tap, ...] = ()
    aux: tuple[str, ...] = ()
    actions: bool = False


@dataclasses.dataclass(frozen=True)
class _Program:
    """What is compiled in: everything but arrays."""

    env: FunctionalEnv
    execute_steps: int
    rounds: int
    recording: Recording
    mesh: Mesh


def deal(table: Table, devices: int) -> Table:
    """The table dealt out to devices like cards, as NumPy arrays [devices * share, ...].

    A share that is not full ends in repetitions, which nobody begins: see `shares`.
    """
    episodes = len(table.seed)
    share = -(-episodes // devices)
    order = np.minimum(np.arange(share * devices).reshape(share, devices).T.ravel(), episodes - 1)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[order], table)


def shares(episodes: int, devices: int) -> Int[np.ndarray, " devices"]:
    """How many episodes each device has after `deal`."""
    return np.array([len(range(d, episodes, devices)) for d in range(devices)], np.int32)


def _first_slots(env: FunctionalEnv, policy: Policy, table: Table, slots: int) -> Slots:
    """Idle slots, to be filled by the first round."""
    zeros = jnp.zeros(slots, jnp.int32)
    start = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], (slots, *leaf.shape[1:])), table)
    return Slots(
        episode=zeros,
        busy=jnp.zeros(slots, bool),
        state=jax.vmap(env.reset)(start.start),
        memory=jax.tree.map(jnp.asarray, policy.initial_state(slots)),
        inferences=zeros,
        steps=zeros,
        next=jnp.zeros(1, jnp.int32),
    )


def _refill(
    env: FunctionalEnv, policy: Policy, table: Table, count: Int[Array, "1"], slots: Slots
) -> Slots:
    """The next episodes of the table in the slots that are free."""
    free = ~slots.busy
    waiting = slots.next[0] + jnp.cumsum(free) - 1
    fresh = free & (waiting < count[0])
    episode = jnp.where(fresh, waiting, slots.episode)
    start, given = jax.tree.map(lambda leaf: leaf[episode], (table.start, table.brief))
    first = told(policy, policy.initial_state(len(free)), given)
    return Slots(
        episode=episode,
        busy=slots.busy | fresh,
        state=choose(fresh, jax.vmap(env.reset)(start), slots.state),
        memory=choose(fresh, first, slots.memory),
        inferences=jnp.where(fresh, 0, slots.inferences),
        steps=jnp.where(fresh, 0, slots.steps),
        next=slots.next + fresh.sum(),
    )


def _round(
    program: _Program,
    policy: Policy,
    edits: tuple[Edit, ...],
    table: Table,
    count: Int[Array, "1"],
    slots: Slots,
) -> tuple[Slots, Round]:
    env, recording = program.env, program.recording
    slots = _refill(env, policy, table, count, slots)
    seeds, before = table.seed[slots.episode], slots.state
    raw, state = env.observe(before)
    raw, read = dict(raw), 0
    if "prompt" in raw:
        read = raw.pop("prompt")
    words = jax.tree.map(lambda w: w[slots.episode, read], table.words)
    sample: Sample = policy.sample(
        traceable(policy).observe(raw, words),
        episode_keys(seeds, slots.inferences),
        state=slots.memory,
        edits=edits,
        taps=recording.taps,
    )
    chunk = traceable(policy).act(sample, raw)
    actions = jnp.swapaxes(chunk[:, : program.execute_steps], 0, 1)

    def execute(carry: Any, action: Array) -> Any:
        state, steps = carry
        now = jax.vmap(env.step)(state, action)
        steps = steps + (~state.done).astype(jnp.int32)
        # Pictures that nobody uses are not drawn.
        return (now, steps), robot_state(env.observe(state)[0]) if recording.actions else ()

    (state, steps), seen = jax.lax.scan(execute, (state, slots.steps), actions)
    ended, executed = slots.busy & state.done, jnp.where(slots.busy, steps - slots.steps, 0)
    report = Round(
        episode=jnp.where(slots.busy, slots.episode, -1),
        inference=slots.inferences,
        ended=ended,
        success=state.success,
        cause=jax.vmap(env.failure_cause)(state),
        steps=steps,
        executed=executed,
        monitor={name: sample.aux[name] for name in MONITOR if name in sample.aux},
        taps={str(tap): tap.batch_first(sample.taps[str(tap)]) for tap in recording.taps},
        aux={name: sample.aux[name] for name in recording.aux},
        kept={"chunks": chunk, "state": jnp.swapaxes(seen, 0, 1)} if recording.actions else {},
    )
    slots = dataclasses.replace(
        slots,
        busy=slots.busy & ~state.done,
        state=state,
        memory=sample.state,
        inferences=slots.inferences + 1,
        steps=steps,
    )
    return slots, report


def robot_state(raw: Mapping[str, Array]) -> Float[Array, "b s"]:
    """The vectors of raw observations, joined as `recorder.robot_state` joins them."""
    return jnp.concatenate([raw[key] for key in sorted(raw) if raw[key].ndim == 2], axis=1)


@functools.partial(jax.jit, static_argnames=("program", "slots"))
def _begin(program: _Program, policy: Any, table: Table, slots: int) -> Slots:
    """Idle slots on every device."""

    def local(policy, table):
        return _first_slots(program.env, policy, table, slots // program.mesh.shape[AXIS])

    begin = _per_group(program.mesh, local, (P(), P(AXIS)), P(AXIS))
    return _on_mesh(program.mesh, begin(policy, table))


@functools.partial(jax.jit, static_argnames="program", donate_argnames="slots")
def _advance(
    program: _Program,
    policy: Any,
    edits: tuple[Edit, ...],
    table: Table,
    counts: Int[Array, " devices"],
    slots: Slots,
) -> tuple[Slots, Round]:
    """Some rounds of all slots; reports have a leading axis of rounds."""

    def local(policy, edits, table, count, slots):
        def turn(slots, _):
            slots = _divided(slots, P(FSDP), P())
            return _round(program, policy, edits, table, count, slots)

        return jax.lax.scan(turn, slots, None, length=program.rounds)

    each, out = P(AXIS), (P(AXIS), P(None, AXIS))
    run = _per_group(program.mesh, local, (P(), P(), each, each, each), out)
    slots, reported = run(policy, edits, table, counts, slots)
    return _on_mesh(program.mesh, slots), reported


def _divided(slots: Slots, each: Any, shared: Any) -> Slots:
    """Slots placed by `each`, what a group has in common by `shared`."""
    where = jax.tree.map(lambda leaf: shared if leaf is slots.next else each, slots)
    return jax.lax.with_sharding_constraint(slots, where)


def _on_mesh(mesh: Mesh, slots: Slots) -> Slots:
    """Every device has its own slots, between calls of the program too."""
    each, shared = NamedSharding(mesh, P((AXIS, FSDP))), NamedSharding(mesh, P(AXIS))
    return _divided(slots, each, shared)


def _per_group(mesh: Mesh, local: Any, in_specs: Any, out_specs: Any) -> Any:
    """`local` on every group of devices; inside a group, XLA divides the work."""
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={AXIS},
        check_vma=False,
    )


def cut(shape: Sequence[int], parts: int) -> P:
    """How an array of the policy is divided among the devices of a group: along its longest axis
    that they divide, the last of equals; whole if there is none, or the array is small.
    """
    axes = [axis for axis in range(len(shape)) if shape[axis] % parts == 0]
    if parts == 1 or math.prod(shape) < SPREAD or not axes:
        return P()
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return P(*(FSDP if axis == longest else None for axis in range(len(shape))))


def spread(mesh: Mesh, policy: Any) -> Any:
    """The policy on the mesh's devices: every group holds it together, in parts (see `cut`)."""

    def place(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, cut(np.shape(leaf), mesh.shape[FSDP]))

    if jax.process_count() > 1:  # devices of another process take what lies on the host
        policy = jax.tree.map(np.asarray, policy)
    return jax.device_put(policy, jax.tree.map(place, policy))


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """How episodes ended, one a row, in the order of the table.

    Attributes:
        seeds: which episodes.
        success: how each ended.
        cause: index of the environment's `causes`, -1 for a success.
        steps, inferences: of each.
        alarm: the inference of the first alarm, -1 for none.
        edited: inferences whose chunk was edited.
    """

    seeds: Int[np.ndarray, " e"]
    success: Bool[np.ndarray, " e"]
    cause: Int[np.ndarray, " e"]
    steps: Int[np.ndarray, " e"]
    inferences: Int[np.ndarray, " e"]
    alarm: Int[np.ndarray, " e"]
    edited: Int[np.ndarray, " e"]


class Run:
    """A table's episodes on the devices, part of them done.

    Attributes:
        compiled: the program, for its memory and its HLO.
    """

    def __init__(
        self,
        program: _Program,
        policy: Any,
        num_envs: int,
        table: Table,
        edits: tuple[Edit, ...],
        memory: float = math.inf,
    ) -> None:
        mesh, episodes = program.mesh, len(table.seed)
        each, all_ = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())
        groups = mesh.shape[AXIS]
        dealt = jax.device_put(deal(table, groups), each)
        counts = jax.device_put(shares(episodes, groups), each)
        policy, edits = spread(mesh, policy), jax.device_put(edits, all_)
        self._rows = _begin(program, policy, dealt, num_envs)
        self._arguments = policy, edits, dealt, counts
        self._mesh, self._groups = mesh, groups
        self._owner = np.arange(num_envs) // (num_envs // groups)
        lowered = _advance.lower(program, *self._arguments, self._rows)
        each = _bytes(lowered.out_info[1]) // program.rounds
        if each > memory:
            raise ValueError(
                f"one inference of {num_envs} environments records {each / 1e6:,.0f} MB, and "
                f"{memory / 1e6:,.0f} MB are allowed: record fewer taps, or take fewer num_envs."
            )
        if each * program.rounds > memory:
            program = dataclasses.replace(program, rounds=int(memory / each))
            lowered = _advance.lower(program, *self._arguments, self._rows)
        self.rounds, self.compiled = program.rounds, lowered.compile()
        self._reported_bytes = each * self.rounds

    def describe(self) -> str:
        """One line: what `advance` does, and the memory that it takes."""
        slots, devices, parts = len(self._owner), self._mesh.size, self._mesh.shape[FSDP]
        spread = f", the policy spread over {parts}" if parts > 1 else ""
        held, plan = "", self.compiled.memory_analysis()
        if plan is not None:
            size = plan.temp_size_in_bytes + plan.argument_size_in_bytes
            held = f"{size / 1e6:,.0f} MB in the program and "
        return (
            f"{slots} environments on {devices} device{'s' * (devices > 1)}{spread}, "
            f"{self.rounds} inferences between two visits to the host: {held}"
            f"{self._reported_bytes / 1e6:,.1f} MB of records at each."
        )

    def advance(self) -> Round:
        """Some rounds: what they reported, as NumPy arrays [rounds, b], `episode` being a row of
        the table."""
        self._rows, reported = self.compiled(*self._arguments, self._rows)
        reported = jax.tree.map(_whole, reported)
        episode = reported.episode * self._groups + self._owner
        return reported._replace(episode=np.where(reported.episode < 0, -1, episode))


def _whole(array: Array) -> np.ndarray:
    """An array on the host, in every process that has a part of it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(array, tiled=True))


def _bytes(shapes: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


class CompiledRollouts:
    """A policy in a functional environment, over any number of episodes.

    Calling it again, with other episodes, another perturbation or other edits of the same shapes,
    recompiles nothing.
    """

    def __init__(
        self,
        policy: Policy,
        env: FunctionalEnv,
        *,
        num_envs: int = 64,
        rounds: int = 30,
        devices: Sequence[Any] | None = None,
        fsdp: int = 1,
        recording: Recording = Recording(),
    ) -> None:
        """Prepare; nothing is compiled yet.

        Args:
            policy: what acts. It must be traceable: a JAX policy, or `MistPolicy` around one.
            env: where.
            num_envs: slots of the batch, over all devices.
            rounds: of one call of the program.
            devices: to run on; None is the first.
            fsdp: neighbouring devices that hold the policy together, a part each; 1 where every
                device holds it whole.
            recording: what to keep.

        Raises:
            ValueError: the policy cannot be traced, the devices do not divide into groups of
                `fsdp`, or the slots do not divide among the devices.
        """
        devices = list(devices or jax.devices()[:1])
        if fsdp < 1 or len(devices) % fsdp:
            raise ValueError(
                f"fsdp is {fsdp}: expected a divisor of the number of devices, {len(devices)}."
            )
        if num_envs < 1 or num_envs % len(devices):
            raise ValueError(
                f"num_envs is {num_envs}: expected a multiple of the {len(devices)} devices."
            )
        traceable(policy)
        self.policy, self.num_envs = policy, num_envs
        mesh = Mesh(np.array(devices).reshape(-1, fsdp), (AXIS, FSDP))
        self._program = _Program(env, policy.spec.execute_steps, rounds, recording, mesh)

    def table(
        self, seeds: Sequence[int], start: Any, prompts: Sequence[str | Sequence[str]]
    ) -> Table:
        """Episodes for `reports`: their starts and what the policy is told, one prompt or as many
        as the environment chooses from.
        """
        said = [(text,) if isinstance(text, str) else tuple(text) for text in prompts]
        flat = traceable(self.policy).encode_prompts([text for texts in said for text in texts])
        words = jax.tree.map(lambda w: w.reshape(len(said), -1, w.shape[-1]), flat)
        return Table(np.asarray(seeds, np.int32), start, words, brief(self.policy, seeds))

    def prepare(self, table: Table, edits: Sequence[Edit] = (), *, memory: float = math.inf) -> Run:
        """Puts the table's episodes on the devices and compiles the program, if it is new.

        Args:
            table: of the episodes.
            edits: always in force.
            memory: bytes that the reports of one `Run.advance` may take; fewer rounds fit less.

        Raises:
            ValueError: one round takes more.
        """
        return Run(self._program, self.policy, self.num_envs, table, tuple(edits), memory)

    def reports(self, table: Table, edits: Sequence[Edit] = ()) -> Iterator[Round]:
        """Runs the table's episodes to their ends; yields each `Run.advance`."""
        run, ended = self.prepare(table, edits), 0
        while ended < len(table.seed):
            reported = run.advance()
            ended += int(reported.ended.sum())
            yield reported

    def run(self, table: Table, edits: Sequence[Edit] = ()) -> Outcomes:
        """Runs the table's episodes to their ends."""
        episodes = len(table.seed)
        none = np.zeros(episodes, np.int32)
        found = Outcomes(
            seeds=np.asarray(table.seed),
            success=none.astype(bool),
            cause=none - 1,
            steps=none.copy(),
            inferences=none.copy(),
            alarm=none - 1,
            edited=none.copy(),
        )
        for reported in self.reports(table, edits):
            tally(found, reported)
        return found


def tally(found: Outcomes, reported: Round) -> None:
    """Adds reports to the outcomes, in place."""
    at, ended = reported.episode, reported.ended
    done = at[ended]
    found.success[done] = reported.success[ended]
    found.cause[done] = np.where(reported.success[ended], -1, reported.cause[ended])
    found.steps[done] = reported.steps[ended]
    found.inferences[done] = reported.inference[ended] + 1
    if "alarm" in reported.monitor:
        alarms = reported.monitor["alarm"] & (at >= 0)
        for turn, slot in zip(*np.nonzero(alarms), strict=True):
            if found.alarm[at[turn, slot]] < 0:
                found.alarm[at[turn, slot]] = reported.inference[turn, slot]
        edited = reported.monitor["edited"] & (at >= 0)
        np.add.at(found.edited, at[edited], 1)

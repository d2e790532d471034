"""The board as pure functions on arrays: `reset(start) -> State`, `step(state, action) -> State`.

What an episode is (task, layout, appearance, cameras, fault) is a `Start` of arrays, so that one
compiled program runs any of them, and a table of starts is a whole study. `draw_starts` draws what
`BoardEnv.reset` draws: a seed is the same episode in both. What counts as success and as the cause
of a failure is `outcome`, for both. Physics are those of `kinematic`, which follow C MuJoCo closely
but are not it, or MJX's (`mjx_physics`), which are closer and thousands of times slower.

    board = FunctionalBoard()
    start, prompt = board.draw_starts([0])
    state = jax.vmap(board.reset)(start)
    state = jax.jit(jax.vmap(board.step))(state, jnp.zeros((1, 4)))
    observation, state = board.observe(state)
    observation["observation/image"]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.envs.board import episode as episodes
from mistjax.envs.board import kinematic, outcome
from mistjax.envs.board import scene as s
from mistjax.envs.board.drawing import PARKED, board_appearance
from mistjax.envs.board.episode import Episode, draw_episode, draw_start, streams
from mistjax.envs.board.faults import FAULTS, Fault
from mistjax.envs.board.perturbations import perturb
from mistjax.envs.board.raycast import Appearance, Poses, picture_batch

IMAGE_KEYS = ("observation/image", "observation/wrist_image")
STATE_KEY = "observation/state"
_LATEST = 10  # steps that `late_grasp` looks back at most
_TRIGGERS = ("start", "close", "held")
PHYSICS = ("kinematic", "mjx")

Numbers = Any  # jax.Array | np.ndarray


@runtime_checkable
class Body(Protocol):
    """Where everything is, in metres, as a pytree; `kinematic.Body` says what these are. Stones
    have axes of their own (`rotation` [n,3,3], as columns), or None where all are upright."""

    gripper: Any
    opening: Any
    shift: Any
    command: Any
    stones: Any
    rotation: Any


@runtime_checkable
class Mechanics(Protocol):
    """How the board's world moves: two functions of one world, and how many stones there can be.
    See `kinematic`, which is one."""

    STONES: int

    def at_rest(self, gripper: kinematic.Triple, stones: kinematic.Triple) -> Any: ...

    def control_step(self, body: Any, action: Array, present: Array) -> Any: ...


def mechanics(physics: str) -> Mechanics:
    """The physics of a name in `PHYSICS`.

    Raises:
        ValueError: no physics are called so.
        ImportError: those of MJX, and mujoco-mjx is not installed.
    """
    if physics == "kinematic":
        return kinematic
    if physics == "mjx":
        from mistjax.envs.board import mjx_physics

        mjx_physics.load()
        return mjx_physics
    raise ValueError(f"physics are {physics!r}: expected {' or '.join(PHYSICS)}.")


class FaultArrays(NamedTuple):
    """An action fault as data; see `faults.Fault`. `kind` is its place in `FAULTS`, -1 for none;
    `noise` holds the standard normal draws of its active steps."""

    kind: Numbers
    strength: Numbers
    trigger: Numbers
    delay: Numbers
    duration: Numbers
    noise: Float[Numbers, "steps 3"]


class Start(NamedTuple):
    """An episode before its first step.

    Attributes:
        seed: which one.
        task: what counts as success.
        gripper: its position.
        stones: their centres at rest; those that are not `present` are parked under the table.
        present: which there are.
        appearance: what does not move in its pictures.
        shadow: whether they show shadows.
        front_position, front_rotation: of the front camera.
        wrist_position, wrist_rotation: of the wrist camera, in the gripper's frame.
        fault: what goes wrong with the actions.
    """

    seed: Numbers
    task: outcome.Task
    gripper: kinematic.Triple
    stones: kinematic.Triple
    present: Numbers
    appearance: Appearance
    shadow: Numbers
    front_position: Numbers
    front_rotation: Numbers
    wrist_position: Numbers
    wrist_rotation: Numbers
    fault: FaultArrays


class State(NamedTuple):
    """A moment of an episode.

    Attributes:
        start: the episode.
        body: where everything is.
        progress: what has happened so far.
        moment: what is true now.
        done: whether the episode is over.
        success: whether it ended in success; then `done` too.
        truncated: whether it ran out of steps.
        gripper_asked: the last gripper values asked for, the newest last.
        triggered: the step at which the fault's trigger fired, or -1.
        faulty_steps: how many actions the fault has changed.
    """

    start: Start
    body: Body
    progress: outcome.Progress
    moment: outcome.Moment
    done: Numbers
    success: Numbers
    truncated: Numbers
    gripper_asked: Numbers
    triggered: Numbers
    faulty_steps: Numbers


class Drawn(NamedTuple):
    """Episodes before their first step.

    Attributes:
        start: for `reset`, NumPy arrays with a leading axis of episodes.
        prompts: what the policy is told, each a string, or all that it may be told.
        info: what else is known of each.
    """

    start: Any
    prompts: list[Any]
    info: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class FunctionalBoard:
    """The environment; hashable, so that it can be a static argument of `jax.jit`.

    `reset` and `step` are of one episode, for `jax.vmap`; `observe` is of a batch.

    Attributes:
        image_size: pixels per side of both pictures.
        max_steps: control steps before truncation.
        tolerance: largest placement error per axis, as a share of the grid spacing.
        physics: of `PHYSICS`.

    Raises:
        ValueError, ImportError: see `mechanics`.
    """

    image_size: int = 64
    max_steps: int = 120
    tolerance: float = 0.4
    physics: str = "kinematic"

    env_id = "mistjax/Board-v0"
    causes = outcome.CAUSES

    def __post_init__(self) -> None:
        mechanics(self.physics)

    def draw_starts(
        self,
        seeds: Sequence[int],
        *,
        perturbation: Mapping[str, float] | None = None,
        fault: Fault | None = None,
        scene: s.BoardScene | None = None,
    ) -> Drawn:
        """The episodes of some seeds as rows of one table. Costs 0.4 ms a seed.

        Args:
            seeds: as in `BoardEnv.reset`.
            perturbation: name -> strength.
            fault: what goes wrong with the actions.
            scene: how the unperturbed scene looks.
        """
        rows, prompts, info = [], [], []
        for seed in seeds:
            episode, begin = self.draw_episode(seed, perturbation, scene)
            rows.append(self.start(seed, episode, begin, fault, np.random.default_rng(seed)))
            prompts.append(episode.prompt)
            info.append({"task": episode.task})
        return Drawn(jax.tree.map(lambda *leaves: np.stack(leaves), *rows), prompts, info)

    def draw_episode(
        self,
        seed: int,
        perturbation: Mapping[str, float] | None = None,
        scene: s.BoardScene | None = None,
    ) -> tuple[Episode, episodes.Start]:
        """What a seed's episode is, and where everything is at first."""
        what, where, disturb = streams(seed)
        episode = draw_episode(what, None, scene or s.BoardScene())
        episode = perturb(episode, perturbation or {}, disturb)
        return episode, draw_start(episode, where)

    def start(
        self,
        seed: int,
        episode: Episode,
        begin: episodes.Start,
        fault: Fault | None,
        noise: np.random.Generator,
    ) -> Start:
        """The same as arrays; `noise` is of the fault.

        Raises:
            ValueError: more stones than the physics hold.
        """
        if len(begin.stones) > (most := mechanics(self.physics).STONES):
            raise ValueError(
                f"seed {seed} has {len(begin.stones)} stones, and {self.physics} physics hold "
                f"{most}: take the kinematic ones, or a smaller stone_count."
            )
        stones = np.tile(PARKED, (s.MAX_STONES, 1))
        stones[: len(begin.stones)] = begin.positions
        task, scene = episode.task, episode.scene
        return Start(
            seed=np.int32(seed),
            task=outcome.Task(
                np.int32(begin.stones.index(task.colour)),
                s.cell_xy(task.row, task.column).astype(np.float32),
            ),
            gripper=_triple(begin.gripper),
            stones=_triple(stones.T),
            present=np.arange(s.MAX_STONES) < len(begin.stones),
            appearance=board_appearance(scene, begin.stones),
            shadow=np.bool_(scene.shadow),
            front_position=np.asarray(scene.front.position, np.float32),
            front_rotation=scene.front.axes().astype(np.float32),
            wrist_position=np.asarray(scene.wrist.position, np.float32),
            wrist_rotation=scene.wrist.axes().astype(np.float32),
            fault=_fault_arrays(fault, noise, self.max_steps),
        )

    def reset(self, start: Start) -> State:
        """The first moment of an episode."""
        body = mechanics(self.physics).at_rest(
            tuple(jnp.asarray(v) for v in start.gripper),
            tuple(jnp.asarray(v) for v in start.stones),
        )
        progress = jax.tree.map(jnp.asarray, outcome.begin(s.MAX_STONES))
        false = jnp.bool_(False)
        return State(
            start=jax.tree.map(jnp.asarray, start),
            body=body,
            progress=progress,
            moment=self._moment(start, body),
            done=false,
            success=false,
            truncated=false,
            gripper_asked=jnp.ones(_LATEST + 1),
            triggered=jnp.where(start.fault.trigger == 0, 0, -1),
            faulty_steps=jnp.int32(0),
        )

    def step(self, state: State, action: Float[Array, "4"]) -> State:
        """One 0.1 s step; an episode that is over stays as it is."""
        start, fault = state.start, state.start.fault
        action, gripper_asked, triggered, active = _corrupt(fault, state, action)
        body = mechanics(self.physics).control_step(state.body, action, start.present)
        moment = self._moment(start, body)
        progress = outcome.advance(state.progress, start.task, state.moment, moment)
        late = progress.steps >= self.max_steps
        new = State(
            start=start,
            body=body,
            progress=progress,
            moment=moment,
            done=moment.success | late,
            success=moment.success,
            truncated=late & ~moment.success,
            gripper_asked=gripper_asked,
            triggered=triggered,
            faulty_steps=state.faulty_steps + active.astype(jnp.int32),
        )
        return jax.tree.map(lambda old, now: jnp.where(state.done, old, now), state, new)

    def failure_cause(self, state: State) -> Array:
        """Index in `causes` of why the episode failed if it ended now."""
        return outcome.failure_cause(state.progress, state.start.task, state.moment)

    def observe(self, state: State) -> tuple[dict[str, Array], State]:
        """What a policy sees of a batch of states: pictures [b,size,size,3] as 8-bit RGB, and the
        robot's state [b,5]; the prompt stays with the caller. The states are as they were."""
        images = self.pictures(state)
        seen = {key: images[:, i] for i, key in enumerate(IMAGE_KEYS)}
        return {**seen, STATE_KEY: self.robot_state(state)}, state

    def robot_state(self, state: State) -> Float[Array, "*b 5"]:
        """Position x, y, z and half the finger gap in metres, and the last gripper command."""
        body = state.body
        return jnp.stack([*body.gripper, body.opening, body.command], axis=-1)

    def pictures(self, state: State) -> Array:
        """Both cameras' pictures of a batch of states, front first: [b,2,size,size,3], 8-bit."""
        poses = jax.vmap(board_poses)(state)
        appearance = state.start.appearance

        def draw(shadow: bool):
            return picture_batch(poses, appearance, size=self.image_size, shadow=shadow)

        def both():
            with_shadow = state.start.shadow[:, None, None, None, None]
            return jnp.where(with_shadow, draw(True), draw(False))

        return jax.lax.cond(state.start.shadow.any(), both, lambda: draw(False))

    def _moment(self, start: Start, body: Body) -> outcome.Moment:
        return outcome.observe(
            start.task,
            body.gripper,
            body.opening,
            body.command,
            body.stones,
            start.present,
            self.tolerance,
        )


def board_poses(state: State) -> Poses:
    """Where everything is, for the ray-caster."""
    start, body = state.start, state.body
    gripper = jnp.stack(body.gripper)

    def at(x=0.0, y=0.0, z=0.0):
        return gripper + jnp.stack([jnp.asarray(v, jnp.float32) for v in (x, y, z)])

    board = jnp.array([[0.0, 0.0, s.BOARD_TOP / 2]])
    left = at(y=s.FINGER_Y + body.opening + body.shift, z=s.FINGER_Z)
    right = at(y=-(s.FINGER_Y + body.opening - body.shift), z=s.FINGER_Z)
    stones = jnp.where(start.present[:, None], jnp.stack(body.stones, axis=1), PARKED)
    gantry = jnp.stack([at(z=s.PALM_Z), left, right])
    position = jnp.concatenate([board, gantry, stones, at(z=s.ROD_Z)[None]])
    rotation = body.rotation
    if rotation is not None:
        upright = jnp.tile(jnp.eye(3), (len(position), 1, 1))
        rotation = jax.lax.dynamic_update_slice(upright, rotation, (1 + len(gantry), 0, 0))
    return Poses(
        position,
        rotation,
        jnp.stack([start.front_position, gripper + start.wrist_position]),
        jnp.stack([start.front_rotation, start.wrist_rotation]),
    )


def _triple(values: np.ndarray) -> kinematic.Triple:
    x, y, z = np.asarray(values, np.float32)
    return x, y, z


def _fault_arrays(fault: Fault | None, rng: np.random.Generator, steps: int) -> FaultArrays:
    noise = np.zeros((steps, 3), np.float32)
    if fault is None:
        zero = np.int32(0)
        return FaultArrays(np.int32(-1), np.float32(0), zero, zero, zero, noise)
    if fault.name == "noise":
        noise = rng.normal(size=(steps, 3)).astype(np.float32)
    return FaultArrays(
        np.int32(list(FAULTS).index(fault.name)),
        np.float32(fault.strength),
        np.int32(_TRIGGERS.index(fault.trigger)),
        np.int32(fault.delay),
        np.int32(fault.duration),
        noise,
    )


def _corrupt(
    fault: FaultArrays, state: State, action: Float[Array, "4"]
) -> tuple[Array, Array, Array, Array]:
    """(the action carried out, the gripper values asked for, when the fault fired, whether it is
    active): what a faulty actuator does, on arrays."""
    now, gripper = state.progress.steps, action[3]
    asked = jnp.where(now == 0, gripper, jnp.append(state.gripper_asked[1:], gripper))
    fires = jnp.where(fault.trigger == 1, gripper < 0, state.moment.held >= 0)
    waiting = (state.triggered < 0) & fires & (fault.kind >= 0)
    triggered = jnp.where(waiting, now, state.triggered)
    onset = triggered + fault.delay
    active = (fault.kind >= 0) & (triggered >= 0) & (onset <= now)
    active &= now < onset + fault.duration
    strength = fault.strength
    late = jnp.round(10 * strength).astype(jnp.int32)
    move = action[:3]
    changed = {
        "offset": (move + strength * jnp.array([0.5, 0.5, 0.0]), gripper),
        "noise": (move + strength * fault.noise[state.faulty_steps], gripper),
        "noop": (move * (1 - strength), gripper),
        "late_grasp": (move, asked[_LATEST - late]),
        "early_release": (move, jnp.where(strength > 0, 1.0, gripper)),
    }
    for kind, name in enumerate(FAULTS):
        on = active & (fault.kind == kind)
        move = jnp.where(on, changed[name][0], move)
        gripper = jnp.where(on, changed[name][1], gripper)
    return jnp.append(move, gripper), asked, triggered, active

"""The functional board under the fault battery: what `envs.faults.wrapper.Faulty` does to the
board, on arrays, with the same draws.

Each episode's fault (place, kind, strength, onset) is data, so one program runs a whole mixture. It
computes every kind of the mixture for every row and picks one; a mixture of a few kinds is cheaper.
A row under a camera fault remembers five pictures, 240 kB at 64 pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.batches import choose
from mistjax.envs.board import functional
from mistjax.envs.board.faults import Fault
from mistjax.envs.board.functional import IMAGE_KEYS, STATE_KEY, Drawn, FunctionalBoard
from mistjax.envs.board.perturbations import perturb
from mistjax.envs.board.physics import STEP
from mistjax.envs.board.sensor_faults import BOARD, SCENE_STREAM, choices
from mistjax.envs.faults import inputs
from mistjax.envs.faults.battery import CAMERAS, FAULTS, Injection, Mixture
from mistjax.envs.faults.words import rewrite
from mistjax.envs.faults.wrapper import ACTION_STREAM, PUSH, PUSH_STEPS, noisy_picture, noisy_state

PLACES = (*CAMERAS, "state", "instruction", "scene", "action", "push")


class Start(NamedTuple):
    """An episode and its fault.

    Attributes:
        board: of `FunctionalBoard`.
        changed: the same, as it looks once the scene has changed; None in a mixture that changes
            no scene.
        place: where the fault is, of `PLACES`; -1 for none.
        kind: which of the mixture's kinds of pictures or states.
        strength: from 0 to 1.
        onset: control step at which it begins.
    """

    board: functional.Start
    changed: functional.Start | None
    place: Any
    kind: Any
    strength: Any
    onset: Any


class State(NamedTuple):
    """A moment: the board's, and what faulty sensors remember; see `inputs.Memory`.

    Attributes:
        start: the episode.
        board: the board itself, as it is.
        picture: of the faulty camera; None in a mixture without.
        vector: of the robot's state; None in a mixture without.
    """

    start: Start
    board: functional.State
    picture: inputs.Memory | None
    vector: inputs.Memory | None

    @property
    def done(self) -> Any:
        return self.board.done

    @property
    def success(self) -> Any:
        return self.board.success


@dataclasses.dataclass(frozen=True)
class FaultyFunctionalBoard:
    """See the module; hashable, as `FunctionalBoard`.

    Attributes:
        mixture: which faults are drawn.
        board: without them.
        look_every: control steps between two observations.
    """

    mixture: Mixture
    board: FunctionalBoard = dataclasses.field(default_factory=FunctionalBoard)
    look_every: int = 4

    def __post_init__(self) -> None:
        BOARD.check(self.mixture)

    @property
    def env_id(self) -> str:
        return self.board.env_id

    @property
    def physics(self) -> str:
        return self.board.physics

    @property
    def causes(self) -> tuple[str, ...]:
        return self.board.causes

    def draw_starts(
        self, seeds: Sequence[int], *, perturbation: Mapping[str, float] | None = None
    ) -> Drawn:
        """The episodes of some seeds; the prompts are what is said before and after the onset."""
        plain = [self.board.draw_episode(seed, perturbation) for seed in seeds]
        rows, prompts, info = [], [], []
        for seed, (episode, begin) in zip(seeds, plain, strict=True):
            fault = self.mixture.draw(seed)
            stream = np.random.default_rng([seed, ACTION_STREAM])
            start = self.board.start(seed, episode, begin, _action_fault(fault), stream)
            changed = start
            if fault is not None and fault.input == "scene":
                stream = np.random.default_rng([seed, SCENE_STREAM])
                other = perturb(episode, {fault.kind: fault.strength}, stream)
                changed = self.board.start(seed, other, begin, None, stream)
            rows.append(self._start(start, changed, fault))
            prompt = later = episode.prompt
            if fault is not None and fault.input == "instruction":
                later = rewrite(fault.kind, prompt, choices(prompt), fault.strength, seed)
            prompts.append((prompt, later))
            info.append({"task": episode.task, **Injection.info(fault)})
        return Drawn(jax.tree.map(lambda *leaves: np.stack(leaves), *rows), prompts, info)

    def reset(self, start: Start) -> State:
        """The first moment of an episode."""
        size = self.board.image_size
        picture = inputs.remember(jnp.zeros((size, size, 3))) if self._pictures else None
        vector = inputs.remember(jnp.zeros(5)) if self._states else None
        start = jax.tree.map(jnp.asarray, start)
        return State(start, self.board.reset(start.board), picture, vector)

    def step(self, state: State, action: Float[Array, "4"]) -> State:
        """One 0.1 s step; an episode that is over stays as it is."""
        start, seed = state.start, state.start.board.seed
        now = state.board.progress.steps
        pushed = (start.place == PLACES.index("push")) & (now >= start.onset)
        pushed &= now < start.onset + PUSH_STEPS
        push = PUSH * start.strength / PUSH_STEPS / STEP * jnp.where(seed % 2 == 1, 1.0, -1.0)
        along = jax.nn.one_hot(seed % 4 // 2, 4)
        action = jnp.where(pushed, jnp.clip(action, -1, 1) + push * along, action)
        return state._replace(board=self.board.step(state.board, action))

    def failure_cause(self, state: State) -> Array:
        """See `FunctionalBoard.failure_cause`."""
        return self.board.failure_cause(state.board)

    def observe(self, state: State) -> tuple[dict[str, Array], State]:
        """What the policy gets of what the sensors show, of a batch of states; also `prompt` [b],
        which of the episode's two prompts is said."""
        start, steps = state.start, state.board.progress.steps
        begun = steps >= start.onset
        seen, _ = self.board.observe(self._as_it_looks(state))
        if self.mixture.sensor_noise:
            seeds = start.board.seed
            for number, key in enumerate(IMAGE_KEYS):
                noisy = functools.partial(noisy_picture, camera=number)
                seen[key] = jax.vmap(noisy)(seen[key], seeds, steps)
            noisy = functools.partial(noisy_state, opening=BOARD.opening)
            seen[STATE_KEY] = jax.vmap(noisy)(seen[STATE_KEY], seeds, steps)
        look = steps % self.look_every == 0
        if self._states:
            here = start.place == PLACES.index("state")
            delivered, memory = _see(
                [inputs.STATES[kind] for kind in self._states],
                state.vector,
                seen[STATE_KEY],
                start,
                steps,
            )
            seen[STATE_KEY] = jnp.where(here[:, None], delivered, seen[STATE_KEY])
            state = state._replace(vector=choose(look, memory, state.vector))
        if self._pictures:
            wrist = (start.place == PLACES.index("wrist"))[:, None, None, None]
            shown = jnp.where(wrist, seen[IMAGE_KEYS[1]], seen[IMAGE_KEYS[0]])
            delivered, memory = _see(
                [inputs.PICTURES[kind] for kind in self._pictures],
                state.picture,
                shown,
                start,
                steps,
            )
            pixels = inputs.as_pixels(delivered).astype(jnp.uint8)
            for place, key in enumerate(IMAGE_KEYS):
                here = (start.place == place)[:, None, None, None]
                seen[key] = jnp.where(here, pixels, seen[key])
            state = state._replace(picture=choose(look, memory, state.picture))
        said = begun & (start.place == PLACES.index("instruction"))
        return {**seen, "prompt": said.astype(jnp.int32)}, state

    @property
    def _pictures(self) -> tuple[str, ...]:
        """Kinds of faults of pictures in the mixture."""
        return self._kinds(inputs.PICTURES, *CAMERAS)

    @property
    def _states(self) -> tuple[str, ...]:
        return self._kinds(inputs.STATES, "state")

    def _kinds(self, known: Mapping[str, Any], *places: str) -> tuple[str, ...]:
        named = [FAULTS[part.name] for part in self.mixture.parts if part.name is not None]
        return tuple(kind for kind in known if any((place, kind) in named for place in places))

    def _start(
        self, start: functional.Start, changed: functional.Start, fault: Injection | None
    ) -> Start:
        scenes = any(part.name and FAULTS[part.name][0] == "scene" for part in self.mixture.parts)
        kept = changed if scenes else None
        if fault is None:
            never = np.int32(np.iinfo(np.int32).max)
            return Start(start, kept, np.int32(-1), np.int32(0), np.float32(0), never)
        kinds = self._states if fault.input == "state" else self._pictures
        return Start(
            board=start,
            changed=kept,
            place=np.int32(PLACES.index(fault.input)),
            kind=np.int32(kinds.index(fault.kind) if fault.kind in kinds else 0),
            strength=np.float32(fault.strength),
            onset=np.int32(fault.onset),
        )

    def _as_it_looks(self, state: State) -> functional.State:
        """The board, with the changed scene where it has changed."""
        start, board = state.start, state.board
        if start.changed is None:
            return board
        changed = (start.place == PLACES.index("scene")) & (board.progress.steps >= start.onset)
        return board._replace(start=choose(changed, start.changed, board.start))


def _action_fault(fault: Injection | None) -> Fault | None:
    if fault is None or fault.input != "action":
        return None
    return Fault(fault.kind, fault.strength, delay=fault.onset)


def _see(
    kinds: Sequence[inputs.Kind], memory: Any, now: Array, start: Start, steps: Array
) -> tuple[Array, inputs.Memory]:
    """One observation of a batch: each element's own kind."""

    def one(memory, now, kind, strength, seed, steps, onset):
        def chosen(view, strength, key):
            return jax.lax.select_n(kind, *(each(view, strength, key) for each in kinds))

        memory = choose(steps == 0, inputs.remember(now), memory)
        return inputs.see(chosen, memory, now, strength, inputs.key_of(seed), steps >= onset)

    return jax.vmap(one)(
        memory, now, start.kind, start.strength, start.board.seed, steps, start.onset
    )

"""What one board episode is made of before it starts: the scene, the layout, the task and its
prompt.

Perturbations are functions from `Episode` to `Episode`; `BoardEnv.reset` turns the result
into stones and motors.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from mistjax.envs.board import scene as s
from mistjax.envs.board.instructions import COLOURS, HEIGHTS, PHRASINGS, SPEEDS, Task, instruct

SUPPLY_GAP = 0.055


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where things start: supply stones in a strip in front of the board, distractors on free
    cells.

    Intervals in metres. `distractors` is the inclusive range of their number; `jitter` moves each
    off its cell centre by at most this much per axis; `crowding` from 0 (any free cell) to 1 (the
    free cells nearest to the target) says where they gather.
    """

    distractors: tuple[int, int] = (0, 4)
    jitter: float = 0.0
    crowding: float = 0.0
    supply_x: tuple[float, float] = (0.135, 0.18)
    supply_y: tuple[float, float] = (-0.12, 0.12)
    gripper_low: s.Vec = (-0.08, -0.11, 0.05)
    gripper_high: s.Vec = (0.16, 0.11, 0.12)


@dataclasses.dataclass(frozen=True)
class Episode:
    """An episode to run. `prompt` is what the policy is told; `task` is what counts as success."""

    task: Task
    prompt: str
    scene: s.BoardScene = dataclasses.field(default_factory=s.BoardScene)
    layout: Layout = Layout()


@dataclasses.dataclass(frozen=True)
class Start:
    """Stones by colour with their centres, and the gripper's position. Stone 0 is the black supply,
    stone 1 the white."""

    stones: tuple[str, ...]
    positions: Float[np.ndarray, "stones 3"]
    gripper: Float[np.ndarray, "3"]


def streams(seed: int) -> tuple[np.random.Generator, ...]:
    """The streams that a seed's episode, its start and its perturbation are drawn from."""
    return tuple(np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).spawn(3))


def draw_task(rng: np.random.Generator) -> Task:
    """A task with uniform colour, cell and modifiers."""
    return Task(
        COLOURS[rng.integers(2)],
        int(rng.integers(1, 6)),
        int(rng.integers(1, 6)),
        SPEEDS[rng.integers(3)],
        HEIGHTS[rng.integers(3)],
    )


def draw_episode(rng: np.random.Generator, task: Task | None, scene: s.BoardScene) -> Episode:
    """An unperturbed episode in a random paraphrase, of a random task unless one is given."""
    drawn = draw_task(rng)
    task = task or drawn
    return Episode(task, instruct(task, int(rng.integers(PHRASINGS))), scene)


def draw_start(episode: Episode, rng: np.random.Generator) -> Start:
    """Places for the stones and the gripper. The target cell is left free."""
    layout = episode.layout
    gripper = rng.uniform(layout.gripper_low, layout.gripper_high)
    supply = _supply(layout, rng)
    cells = _cells_by_preference(episode, rng)
    count = int(rng.integers(layout.distractors[0], layout.distractors[1], endpoint=True))
    stones, positions = list(COLOURS), [np.array([*xy, s.STONE_HALF_HEIGHT]) for xy in supply]
    for cell in cells[:count]:
        xy = cell + rng.uniform(-layout.jitter, layout.jitter, 2)
        stones.append(COLOURS[rng.integers(2)])
        positions.append(np.array([*xy, s.BOARD_TOP + s.STONE_HALF_HEIGHT]))
    return Start(tuple(stones), np.stack(positions), gripper)


def _cells_by_preference(episode: Episode, rng: np.random.Generator) -> Float[np.ndarray, "24 2"]:
    """Centres of all cells but the target, those that a distractor takes first in front."""
    target = s.cell_xy(episode.task.row, episode.task.column)
    cells = np.array([s.cell_xy(r, c) for r in range(1, 6) for c in range(1, 6)])
    distance = np.linalg.norm(cells - target, axis=1)
    crowding = episode.layout.crowding
    score = crowding * distance / distance.max() + (1 - crowding) * rng.random(len(cells))
    return cells[[i for i in score.argsort() if distance[i] > 0]]


def _supply(layout: Layout, rng: np.random.Generator) -> Float[np.ndarray, "2 2"]:
    """Two places in the strip, far enough apart for the open gripper."""
    low, high = zip(layout.supply_x, layout.supply_y, strict=True)
    for _ in range(1000):
        places = rng.uniform(low, high, (2, 2))
        if np.linalg.norm(places[0] - places[1]) > SUPPLY_GAP:
            return places
    raise ValueError(
        f"no two places {SUPPLY_GAP} m apart in supply_x {layout.supply_x}, "
        f"supply_y {layout.supply_y}; widen the strip"
    )

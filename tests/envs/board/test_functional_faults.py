"""The fault battery on arrays does what it does on the host, to the same seeds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.envs.board.env import BoardEnv
from mistjax.envs.board.functional import IMAGE_KEYS, STATE_KEY, FunctionalBoard
from mistjax.envs.board.functional_faults import FaultyFunctionalBoard
from mistjax.envs.board.sensor_faults import BOARD
from mistjax.envs.faults.battery import FAULTS, Mixture, Part
from mistjax.envs.faults.wrapper import Faulty

SIZE = 16
BASE = np.random.default_rng(0).integers(0, 200, (2, SIZE, SIZE, 3))


class Painted(BoardEnv):
    """The board with pictures that cost nothing and change at every step."""

    def pictures(self):
        return ((BASE + 3 * int(self.progress.steps)) % 256).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class PaintedBoard(FunctionalBoard):
    def pictures(self, state):
        steps = state.progress.steps[:, None, None, None, None]
        return ((jnp.asarray(BASE)[None] + 3 * steps) % 256).astype(jnp.uint8)


def mixture_of(names):
    """A mixture of some faults, and a seed for each."""
    parts = tuple(Part(1 / len(names), name, (0.7, 1.0)) for name in names)
    mixture, seeds = Mixture(parts, onset=(4, 8)), {}
    for seed in range(10_000):
        seeds.setdefault(mixture.draw(seed).name, seed)
    return mixture, [seeds[name] for name in names]


def check(names):
    """What the policy gets every four steps is the same from arrays and on the host."""
    mixture, seeds = mixture_of(names)
    board = FaultyFunctionalBoard(mixture, PaintedBoard(image_size=SIZE))
    drawn = board.draw_starts(seeds)
    env = Faulty(Painted(image_size=SIZE), BOARD, mixture)
    action = np.array([0.2, -0.1, 0.0, 1.0], np.float32)

    @jax.jit
    def play(start):
        def look(state, _):
            seen, state = board.observe(state)
            step = jax.vmap(board.step, (0, None))
            return jax.lax.fori_loop(0, 4, lambda _, s: step(s, jnp.asarray(action)), state), seen

        return jax.lax.scan(look, jax.vmap(board.reset)(start), None, length=5)[1]

    mine = jax.tree.map(np.asarray, play(drawn.start))
    for row, (name, seed) in enumerate(zip(names, seeds, strict=True)):
        host, info = env.reset(seed=seed)
        assert {"task": drawn.info[row]["task"], **info} == {**info, **drawn.info[row]}
        assert info["fault"] == name
        exact = FAULTS[name][0] not in ("action", "push")  # MuJoCo's gantry and the exact one
        for look in range(5):
            for key in IMAGE_KEYS:
                differ = np.abs(mine[key][look, row].astype(int) - host[key].astype(int))
                assert (differ > 1).mean() < 0.01, (name, look)
            np.testing.assert_allclose(
                mine[STATE_KEY][look, row], host[STATE_KEY], atol=5e-4 if exact else 2e-3
            )
            assert drawn.prompts[row][mine["prompt"][look, row]] == host["prompt"]
            for _ in range(4):
                host, *_ = env.step(action)


def test_a_fault_of_each_input_is_the_hosts():
    check(["front_frozen", "state_offset", "instruction_swapped_word", "push"])


@pytest.mark.slow
def test_every_fault_is_the_hosts():
    check(list(FAULTS))


def test_a_changed_scene_is_the_hosts():
    mixture, seeds = mixture_of(["scene_camera_angle"])
    board = FaultyFunctionalBoard(mixture, PaintedBoard(image_size=SIZE))
    start = board.draw_starts(seeds).start
    env = Faulty(Painted(image_size=SIZE), BOARD, mixture)
    env.reset(seed=seeds[0])
    for _ in range(9):
        env.step(np.zeros(4))
    cameras = env.unwrapped.episode.scene
    for name in ("front", "wrist"):
        camera = getattr(cameras, name)
        np.testing.assert_allclose(
            getattr(start.changed, f"{name}_position")[0], camera.position, atol=1e-6
        )
        np.testing.assert_allclose(
            getattr(start.changed, f"{name}_rotation")[0], camera.axes(), atol=1e-6
        )
    assert not np.allclose(start.board.front_rotation, start.changed.front_rotation)


def test_a_clean_mixture_only_adds_noise():
    board = FaultyFunctionalBoard(Mixture(), PaintedBoard(image_size=SIZE))
    drawn = board.draw_starts([3])
    state = jax.jit(jax.vmap(board.reset))(drawn.start)
    assert state.picture is None
    assert state.vector is None
    seen, _ = jax.jit(board.observe)(state)
    assert seen["prompt"] == 0
    assert 1 < np.std(seen[IMAGE_KEYS[0]][0].astype(int) - BASE[0]) < 8

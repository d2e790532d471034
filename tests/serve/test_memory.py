"""Who is asked for alone, together and alone again remembers its own episode."""

import jax.numpy as jnp
import numpy as np

from mistjax.serve.memory import Memory


def add(memory, asked, size):
    """One inference that counts; what it found of those asked for."""
    state = memory.recall(asked, size)
    memory.keep(asked, size, {"count": jnp.asarray(state["count"]) + 1})
    return [int(n) for n in np.ravel(state["count"])[: len(asked)]]


def test_a_slot_remembers_its_episode_however_it_is_asked_for(make_toy):
    memory = Memory(make_toy(), 3, (1, 2, 4))
    assert add(memory, [(0, 7)], 1) == [0]
    assert add(memory, [(0, 7)], 1) == [1]
    assert add(memory, [(0, 7), (1, 8)], 2) == [2, 0]
    assert add(memory, [(1, 8), (2, 9), (0, 7)], 4) == [1, 0, 3]
    assert add(memory, [(0, 7)], 1) == [4]
    assert add(memory, [(0, 10)], 1) == [0]  # a new episode
    assert add(memory, [(0, 11), (1, 8)], 2) == [0, 2]  # and one more, with company
    assert add(memory, [(2, 9), (0, 11)], 2) == [1, 1]


def test_an_inference_that_fails_changes_nothing(make_toy):
    memory = Memory(make_toy(), 2, (1, 2))
    add(memory, [(0, 7)], 1)
    memory.recall([(0, 7), (1, 8)], 2)  # and nothing is kept
    memory.recall([(0, 7)], 1)
    assert add(memory, [(0, 7), (1, 8)], 2) == [1, 0]

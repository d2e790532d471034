"""The shipped policies under a monitor: what holds still, and what goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.demo import SHIPPED
from mistjax.envs.board.env import BoardEnv
from mistjax.hooks import Add
from mistjax.policies import BOARD, BOARD_FAST
from mistjax.policies.fast import FastPolicy
from mistjax.policies.pi import PiPolicy
from mistjax.recover.mist import MistPolicy

LOADERS = {
    "board_pi0": lambda: PiPolicy.load(SHIPPED / "board_pi0", BOARD),
    "board_fast": lambda: FastPolicy.load(SHIPPED / "board_fast", BOARD_FAST),
}
HELD = {-1.0: [0, 0, 0, -1], 1.0: [0, 0, 0, 1]}
KEYS = jax.random.split(jax.random.key(0), 4)


@pytest.fixture(scope="module")
def raw():
    env = BoardEnv()
    return [env.reset(seed=seed)[0] for seed in range(4)]


def broken_inputs(obs):
    """Rows 1, 2 and 3 broken: a dead sensor, a picture of NaN, and an infinite one."""
    state = np.array(obs.state)
    state[1:2] = np.nan
    camera = next(iter(obs.images))
    picture = np.array(obs.images[camera])
    picture[2], picture[3, :2] = np.nan, np.inf
    return obs.replace(state=state, images={**obs.images, camera: picture})


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_not_finite_holds_still_and_the_rest_goes_on(name, raw, blind_monitor):
    policy = LOADERS[name]()
    mist = MistPolicy(policy, blind_monitor(policy), None, "monitor")
    obs = policy.prepare(raw)
    edit = Add(
        site="vlm.resid",
        strength=jnp.zeros(4),
        vector=jnp.ones((policy.spec.stacks["vlm"].depth, policy.spec.stacks["vlm"].width)),
    )
    fine = policy.finish(policy.sample(obs, KEYS, edits=(edit,)), raw)
    breaking = edit.replace(strength=jnp.array([0.0, np.nan, np.inf, 0.0]))
    cases = {"inputs": (broken_inputs(obs), edit, [1, 2, 3]), "edits": (obs, breaking, [1, 2])}
    for seen, edits, lost in cases.values():
        sample = mist.sample(seen, KEYS, state=mist.initial_state(4), edits=(edits,))
        chunk = mist.finish(sample, raw)
        assert np.isfinite(sample.actions).all()
        assert np.flatnonzero(sample.aux["fallback"]).tolist() == lost
        assert (np.asarray(sample.aux["alarm"])[lost]).all()
        for row in range(4):
            held = HELD[float(raw[row]["observation/state"][4])]
            expected = np.broadcast_to(held, fine[row].shape) if row in lost else fine[row]
            assert np.array_equal(chunk[row], expected)

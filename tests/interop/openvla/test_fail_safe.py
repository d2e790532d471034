"""OpenVLA under a monitor: what holds still, and what goes on."""

import jax
import jax.numpy as jnp
import numpy as np

from interop.openvla.policy import OpenVLAPolicy
from mistjax.demo import SHIPPED
from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.inputs import Input
from mistjax.detect.methods.safe.heads import SafeMLP
from mistjax.detect.monitor import Monitor
from mistjax.envs.board.env import BoardEnv
from mistjax.hooks import Add, Tap
from mistjax.policies import BOARD
from mistjax.recover.mist import MistPolicy

KEY = jax.random.key(0)


def watched(policy, stack):
    head = SafeMLP.create(jax.random.key(1), policy.spec.stacks[stack].width, hidden=8)
    threshold = Threshold(jnp.full(10, jnp.inf), 0.1, 9, 10)
    reads = Input.of_taps(Tap(f"{stack}.resid", (0,), "all", "mean"))
    return MistPolicy(policy, Monitor(head, threshold, reads), None, "monitor")


def test_what_is_not_finite_holds_still_and_the_rest_goes_on():
    policy = OpenVLAPolicy.load(SHIPPED / "board_openvla", BOARD)
    env = BoardEnv()
    raw = [env.reset(seed=seed)[0] for seed in range(3)]
    obs, mist = policy.prepare(raw), watched(policy, "vision")
    fine = policy.finish(policy.sample(obs, KEY), raw)
    state, camera = np.array(obs.state), next(iter(obs.images))
    picture = np.array(obs.images[camera])
    state[1], picture[2, 0] = np.nan, np.inf
    seen = obs.replace(state=state, images={**obs.images, camera: picture})
    sample = mist.sample(seen, KEY, state=mist.initial_state(3))
    assert sample.aux["fallback"].tolist() == [False, True, True]
    assert np.isfinite(sample.actions).all()
    chunk = mist.finish(sample, raw)
    np.testing.assert_allclose(chunk[0], fine[0], atol=1e-5)
    for row in (1, 2):
        assert (chunk[row] == [0, 0, 0, raw[row]["observation/state"][4]]).all()


def test_tokens_chosen_by_logits_that_are_no_numbers_hold_still(policy, raw):
    """NaN logits give ids, and ids give actions that look like any other."""
    mist = watched(policy, "vision")
    width, depth = policy.spec.stacks["vlm"].width, policy.spec.stacks["vlm"].depth
    edit = Add(site="vlm.resid", strength=jnp.full(1, np.nan), vector=jnp.ones((depth, width)))
    obs = policy.prepare(raw[:1])
    bare = jax.jit(lambda edit: policy.sample(obs, KEY, edits=(edit,)).actions)(edit)
    assert np.isnan(bare).all()
    sample = mist.sample(obs, KEY, state=mist.initial_state(1), edits=(edit,))
    assert sample.aux["fallback"].all()
    assert np.isfinite(sample.actions).all()

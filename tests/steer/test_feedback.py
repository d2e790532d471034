"""The regulator over layers: its gains are the best ones, and the shipped policy is regulated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.demo import MIST, POLICY
from mistjax.envs.board.env import BoardEnv
from mistjax.hooks import Tap
from mistjax.policies import load_policy
from mistjax.steer.artifact import load_steering
from mistjax.steer.feedback import CONTROL, FEEDBACK, Linear, feedback, gains, linearise
from mistjax.steer.vectors import SteeringVector

LAYERS, WIDTH = 4, 3


def system(seed=0):
    rng = np.random.default_rng(seed)
    jacobians = rng.normal(size=(LAYERS - 1, WIDTH, WIDTH)) / WIDTH**0.5
    roots = rng.normal(size=(LAYERS, 1, WIDTH))
    return jacobians, np.swapaxes(roots, 1, 2) @ roots, rng.uniform(0.1, 1, LAYERS), rng


def spent(start, changes, jacobians, costs, efforts):
    """What a course costs."""
    x, total = start, 0.0
    for layer, change in enumerate(changes):
        x = x + change
        total += x @ costs[layer] @ x + efforts[layer] * change @ change
        if layer < len(jacobians):
            x = jacobians[layer] @ x
    return total


def test_the_gains_are_those_of_the_cheapest_course():
    """Least squares over all changes at once gives the same changes, and no smaller cost."""
    jacobians, costs, efforts, rng = system()
    found = np.asarray(gains(*(jnp.asarray(a, jnp.float32) for a in (jacobians, costs, efforts))))
    x = start = rng.normal(size=WIDTH)
    changes = []
    for layer in range(LAYERS):
        changes.append(-found[layer] @ x)
        x = x + changes[-1]
        x = jacobians[layer] @ x if layer < LAYERS - 1 else x
    flat = np.concatenate(changes)

    def cost(flat):
        return spent(start, flat.reshape(LAYERS, WIDTH), jacobians, costs, efforts)

    size = len(flat)
    base, eye = cost(np.zeros(size)), np.eye(size)
    slope = np.array([(cost(e) - cost(-e)) / 2 for e in eye])
    curve = np.array([[cost(a + b) - cost(a) - cost(b) + base for b in eye] for a in eye])
    best = np.linalg.solve(curve, -slope)
    np.testing.assert_allclose(flat, best, atol=1e-4)
    assert cost(flat) <= base


@pytest.fixture(scope="module")
def shipped():
    policy = load_policy(POLICY)
    raws = [BoardEnv().reset(seed=seed)[0] for seed in range(4)]
    return policy, raws, load_steering(MIST, policy.spec)


def away(policy, obs, vector, mean, edits=()):
    """How far each layer is off the mean along the direction, in its lengths, [L,B]."""
    tap = Tap(vector.site, None, vector.tokens, "mean")
    seen = policy.sample(obs, jax.random.key(1), edits=edits, taps=(tap,)).taps[str(tap)]
    off = jnp.einsum("slbd,ld->slb", seen - mean[None, :, None], vector.direction)
    return jnp.abs(off).mean(0) / vector.scale[:, None]


@pytest.mark.slow
def test_on_the_shipped_policy_it_holds_the_stream_nearer_to_its_mean(shipped):
    """Off the mean by a push at the first layer: nearer with it, at the last layer too, more so
    with less effort; and than with the control along random directions.
    """
    policy, raws, artifact = shipped
    vector = artifact.directions["success@action.resid"]
    assert isinstance(vector, SteeringVector)
    made = artifact.directions[FEEDBACK]
    obs = policy.prepare(raws)
    mean = jnp.einsum("lij,lj->li", jnp.linalg.pinv(-jnp.swapaxes(made.weight, 1, 2)), made.bias)
    push = vector.at_layers(0).to_edit(-2.0)
    bare = away(policy, obs, vector, mean, (push,))
    held = away(policy, obs, vector, mean, (push, made.to_edit()))
    random = away(policy, obs, vector, mean, (push, artifact.directions[CONTROL].to_edit()))
    assert held[-1].mean() < 0.6 * bare[-1].mean()
    assert held[-1].mean() < random[-1].mean()
    linear = linearise(policy, raws, jax.random.key(0))
    dear = feedback(linear, vector, effort=10.0)
    less = away(policy, obs, vector, mean, (push, dear.to_edit()))
    assert held[-1].mean() < less[-1].mean() < bare[-1].mean()
    assert made.provenance.policy == policy.spec.fingerprint


def test_what_it_cannot_regulate_is_refused(shipped):
    policy, _, artifact = shipped
    depth, width = (policy.spec.stacks["action"].depth, policy.spec.stacks["action"].width)
    linear = Linear(
        np.zeros((depth - 1, width, width)),
        np.zeros((depth, width)),
        "action",
        policy.spec.fingerprint,
        1,
    )
    vector = artifact.directions["success@action.resid"]
    with pytest.raises(ValueError, match=r"at every layer of 'action\.resid'"):
        feedback(linear, artifact.directions["slowly"])
    with pytest.raises(ValueError, match="effort=0"):
        feedback(linear, vector, effort=0)
    with pytest.raises(ValueError, match="the same tokens"):
        feedback(linear._replace(tokens="all"), vector)
    with pytest.raises(ValueError, match="no observation"):
        linearise(policy, [], jax.random.key(0))

import jax
import jax.numpy as jnp
import pytest

from experiments.bench.detect_floor import floor, operations
from mistjax.detect.methods.safe.heads import SafeMLP
from mistjax.detect.methods.safe.losses import LossConfig, loss_and_gradient

EPISODES, STEPS, DIM = 16, 20, 64


def test_the_floor_of_the_mlp_is_little_less_than_what_its_gradient_computes():
    batch = (
        jnp.ones((EPISODES, STEPS, DIM)),
        jnp.ones((EPISODES, STEPS), bool),
        jnp.arange(EPISODES) < EPISODES // 2,
    )

    def gradient(head, batch):
        config = LossConfig()
        return loss_and_gradient(head, batch, jnp.ones(2), config, 1e-2, jax.random.key(0))

    lowered = jax.jit(gradient).lower(SafeMLP.create(jax.random.key(0), DIM), batch)
    costs = lowered.compile().cost_analysis()
    assert costs is not None
    found = costs["flops"] / (EPISODES * STEPS)
    assert 0.85 * found < operations("safe_mlp", DIM) <= found


@pytest.mark.slow
def test_the_floor_grows_with_steps_and_epochs():
    one, four = (floor("safe_mlp", DIM, 1000, epochs) for epochs in (1, 4))
    assert 2 < four["fit_cpu_s"] / one["fit_cpu_s"] < 8
    assert 1 < one["gflop_per_s"] < 1e5

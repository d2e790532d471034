import jax
import jax.numpy as jnp
import pytest

from experiments.bench.kernels import count_kernels


def hlo(rounds):
    def turn(x, _):
        return jnp.sort(jnp.sin(x @ x), axis=0), x.sum()

    program = jax.jit(lambda x: jax.lax.scan(turn, x, None, length=rounds))
    return str(program.lower(jnp.ones((8, 8))).compile().as_text())


def test_a_loop_counts_by_its_trips():
    few, many = count_kernels(hlo(20)), count_kernels(hlo(30))
    assert many > few > 20
    assert (many - few) % 10 == 0


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        count_kernels("nothing")

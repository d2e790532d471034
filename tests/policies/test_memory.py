"""What taps cost in memory, by shapes alone, against what a run returns."""

import jax
import jax.numpy as jnp
import pytest

from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.hooks import Add, Hooks, Tap
from mistjax.models.config import PI05, TINY, TINY_FAST
from mistjax.models.pi0 import example_observation
from mistjax.policies.memory import config_of, infer, memory, variable_shapes

TAPS = (Tap("vlm.mlp_neurons", (1,)), Tap("action.resid", None, "action", "mean"))


@pytest.mark.parametrize(
    "config",
    [pytest.param(TINY, marks=pytest.mark.slow), TINY_FAST],
    ids=["pi0", "pi0-FAST"],
)
def test_the_memory_is_what_an_inference_returns(config):
    variables = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), variable_shapes(config))
    keys = jax.random.split(jax.random.key(0), 3)
    run = jax.jit(lambda v, o, k, h: infer(config, v, o, k, h)[1])
    found = run(variables, example_observation(config, 3), keys, Hooks((), TAPS))
    asked = memory(config, TAPS, batch=3)
    assert {n: (v.shape, v.dtype) for n, v in found.items()} == {
        n: (v.shape, v.dtype) for n, v in asked.taps.items()
    }
    assert asked.returned == sum(value.nbytes for value in found.values())


def test_an_unreduced_tap_of_one_layer_needs_room_for_the_stack():
    one = memory(TINY, TAPS[:1], batch=16)
    assert one.temporary - one.bare > 0.9 * TINY.vlm.depth * one.returned


def test_taps_and_edits_that_reduce_cost_next_to_nothing():
    depth, width = TINY.vlm.depth, TINY.vlm.width
    edit = Add("vlm.mlp_out", vector=jnp.ones((depth, width)))
    hooked = memory(TINY, TAPS[1:], batch=16, edits=(edit,))
    assert hooked.temporary < 1.1 * hooked.bare


def test_a_published_checkpoint_is_known_by_its_name():
    model = config_of("gs://openpi-assets/checkpoints/pi05_libero")
    assert (model.vlm, model.pi05) == (PI05.vlm, True)


@pytest.mark.parametrize(
    ("source", "said"),
    [("somewhere", "names none of"), (str(SHIPPED / "board_openvla"), "not a pi0")],
)
def test_what_cannot_be_measured_is_said(source, said):
    with pytest.raises(ValueError, match=said):
        config_of(source)


def test_the_command_takes_a_shipped_policy(capsys):
    source = str(SHIPPED / "board_fast")
    assert main(["memory", source, "--taps", "vlm.resid@all/text/mean", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    assert "(4, 2, 96)" in out
    assert "without taps" in out
    assert main(["price", source, "--taps", "vlm.resid@9/text/mean"]) == 2
    said = capsys.readouterr().err
    assert "`price` is now called `memory`" in said and "layers [9] do not exist" in said

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from interop.openvla import generation
from interop.openvla.hooks import Hooks, token_layouts
from interop.openvla.spec import stack_specs
from interop.taps import tap_shapes
from mistjax.attribute.patching import MaskedPatch
from mistjax.hooks import POINTS, Add, Patch, ProjectOut, Scale, SetNeurons, Tap

PROMPT = 5
LAYOUTS = token_layouts(256, ("camera",), PROMPT)
STACKS = ("vision", "dino", "vlm", "action")


@torch.no_grad()
def passes(model, taps=(), edits=(), steps=2, pixels=None):
    """(decoded, tapped values) of two rows, of which the second has a shorter prompt."""
    ids = torch.arange(2 * PROMPT).reshape(2, PROMPT) + 400
    if pixels is None:
        pixels = torch.linspace(-1, 1, 2 * 6 * 224 * 224).reshape(2, 6, 224, 224)
    inputs = generation.Inputs(
        model.embed_tokens(ids),
        torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
        pixels,
        torch.ones(2, 1, dtype=torch.bool),
        torch.zeros(2, 0),
    )
    with Hooks(model, LAYOUTS, taps, edits) as hooks:
        prefix = generation.prefill(model, generation.embed(model, inputs, hooks), hooks)
        decoded = generation.decode(model, prefix, steps, hooks)
        return decoded, hooks.values()


def hooks_left(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_every_site_has_the_shape_that_was_announced(model):
    taps = [Tap(f"{stack}.{point}") for stack in STACKS for point in POINTS]
    _, found = passes(model, taps)
    stacks = stack_specs(model.config, LAYOUTS)
    announced = tap_shapes(stacks, taps, batch=2, steps=2, dtype=jnp.float32)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        name: shape.shape for name, shape in announced.items()
    }


@pytest.mark.parametrize("stack", STACKS)
def test_the_parts_of_a_block_add_up_to_its_residual(model, stack):
    taps = [Tap(f"{stack}.{point}") for point in ("resid", "attn_out", "mlp_out")]
    _, found = passes(model, taps, steps=1)
    resid, attention, ffn = (found[str(tap)] for tap in taps)
    layer_axis = 1 if stack == "action" else 0
    resid, attention, ffn = (x.movedim(layer_axis, 0) for x in (resid, attention, ffn))
    torch.testing.assert_close(resid[1:], resid[:-1] + attention[1:] + ffn[1:], atol=1e-5, rtol=0)


def test_a_reduction_is_over_valid_selected_tokens_only(model):
    _, found = passes(
        model,
        [
            Tap("vlm.resid", layers=(1,), tokens="text"),
            Tap("vlm.resid", layers=(1,), tokens="text", reduce="mean"),
            Tap("vlm.resid", layers=(-3,), tokens="last"),
        ],
        steps=1,
    )
    tokens, mean, last = found.values()
    torch.testing.assert_close(mean[0, 1], tokens[0, 1, :2].mean(dim=0))
    assert torch.equal(last[0, :, 0], torch.stack([tokens[0, 0, 3], tokens[0, 1, 1]]))


EDITS = {
    "Add": lambda n, w: Add(vector=jnp.full((n, w), 3.0)),
    "SetNeurons": lambda n, w: SetNeurons(mask=jnp.ones((n, w)), value=jnp.full((n, w), 2.0)),
    "Scale": lambda n, w: Scale(factor=jnp.full((n, w), 5.0)),
    "ProjectOut": lambda n, w: ProjectOut(direction=jnp.ones((n, w))),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_does_what_its_jax_form_does(model, kind):
    tap = Tap("action.mlp_neurons")
    _, before = passes(model, [tap], steps=1)
    first_layer = jnp.array([1.0, 0, 0, 0])
    edit = EDITS[kind](4, 128).replace(site="action.mlp_neurons", gate=first_layer)
    _, after = passes(model, [tap], [edit], steps=1)
    x = jnp.asarray(before[str(tap)][0, 0].numpy())
    data = {name: array[:1, None] for name, array in edit.layer_data(4).items()}
    expected = edit.transform(x, jnp.float32(1.0), data)
    np.testing.assert_allclose(after[str(tap)][0, 0], expected, atol=1e-5)
    assert not np.allclose(expected, x)


def test_patching_a_layer_with_itself_changes_nothing_and_with_another_row_copies_it(model):
    tap = Tap("vlm.resid")
    plain, found = passes(model, [tap])
    last_layer = jnp.array([0, 0, 0, 1.0])
    own = jnp.asarray(found[str(tap)].numpy())
    patch = Patch("vlm.resid", gate=last_layer, value=own)
    same, _ = passes(model, edits=[patch])
    torch.testing.assert_close(same.logits, plain.logits)
    _, after = passes(model, [tap], [patch.replace(value=own[:, ::-1])])
    np.testing.assert_allclose(after[str(tap)][-1, 0, :250], own[-1, 1, :250], atol=1e-6)


def test_a_masked_patch_puts_back_the_tokens_of_its_mask_alone(model):
    tap = Tap("vlm.resid")
    plain, found = passes(model, [tap])
    value = jnp.asarray(found[str(tap)].numpy()) + 1
    mask = jnp.zeros((len(value), 1, value.shape[2])).at[0, :, 3].set(1.0)[..., None]
    _, after = passes(model, [tap], [MaskedPatch("vlm.resid", value=value, mask=mask)])
    first = torch.tensor(np.array(value[0]))
    torch.testing.assert_close(after[str(tap)][0, :, 3], first[:, 3])
    others = [i for i in range(250) if i != 3]
    assert torch.equal(after[str(tap)][0, :, others], found[str(tap)][0, :, others])
    same, _ = passes(model, edits=[MaskedPatch("vlm.resid", value=value, mask=0 * mask)])
    assert torch.equal(same.logits, plain.logits)


def test_strength_zero_is_bit_identical_row_by_row(model):
    plain, _ = passes(model)
    edit = Add("vlm.mlp_out", strength=jnp.array([0.0, 1.0]), vector=jnp.full((4, 64), 0.5))
    changed, _ = passes(model, edits=[edit])
    assert torch.equal(changed.logits[0], plain.logits[0])
    assert not torch.equal(changed.logits[1], plain.logits[1])


def test_an_edit_changes_its_decoding_step_and_none_before(model):
    tap = Tap("action.resid")
    _, before = passes(model, [tap], steps=3)
    weights = jnp.array([0.0, 1.0, 0.0])
    edit = Add("action.mlp_out", step_weights=weights, vector=jnp.full((4, 64), 0.5))
    _, after = passes(model, [tap], [edit], steps=3)
    assert torch.equal(before[str(tap)][0], after[str(tap)][0])
    assert not torch.equal(before[str(tap)][1], after[str(tap)][1])


def test_an_edit_leaves_earlier_layers_alone(model):
    tap = Tap("vision.resid")
    _, before = passes(model, [tap])
    edit = Add("vision.mlp_out", gate=jnp.array([0.0, 1.0]), vector=jnp.ones((2, 48)))
    _, after = passes(model, [tap], [edit])
    assert torch.equal(before[str(tap)][0], after[str(tap)][0])
    torch.testing.assert_close(after[str(tap)][1], before[str(tap)][1] + 1)


def test_no_hook_survives_a_pass_or_an_error_inside_the_model(model):
    taps = [Tap(f"{stack}.{point}") for stack in STACKS for point in POINTS]
    passes(model, taps, steps=1)
    assert hooks_left(model) == 0
    with pytest.raises(RuntimeError):
        passes(model, taps, pixels=torch.zeros(2, 6, 10, 10))
    assert hooks_left(model) == 0


def test_modules_that_nothing_names_get_no_hook(model):
    with Hooks(model, LAYOUTS, [Tap("vlm.mlp_out", layers=(2,))]):
        assert hooks_left(model) == 1
    with Hooks(model, LAYOUTS):
        assert hooks_left(model) == 0


def test_arrays_for_another_number_of_layers_are_refused(model):
    with pytest.raises(ValueError, match="4 layers of 'vlm'"):
        Hooks(model, LAYOUTS, edits=[Add("vlm.mlp_out", vector=jnp.ones((3, 64)))])


def test_an_unknown_token_selector_is_refused_before_anything_runs(model):
    with pytest.raises(ValueError, match="no segment 'wrist'"):
        Hooks(model, LAYOUTS, [Tap("vlm.resid", tokens="wrist")])

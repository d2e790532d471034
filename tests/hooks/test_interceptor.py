"""Taps tell the truth, edits touch what they name, and nothing is left behind."""

import copy
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import POINTS, Add, Hooks, Tap
from mistjax.models.pi0 import Pi0
from mistjax.models.sampling import prefill
from mistjax.models.stacks import token_layouts

STACKS = ("vision", "vlm", "action")


@pytest.fixture(scope="module")
def r(rig):
    return rig()


@pytest.fixture(scope="module")
def captured(r):
    return r.off()


GEMMA, TOWER = ("llm", "layers"), ("img", "Transformer", "encoderblock")
WEIGHTS = {
    "vlm": (GEMMA, ("attn", "attn_vec_einsum", "w"), ("mlp", "linear")),
    "action": (GEMMA, ("attn", "attn_vec_einsum_1", "w"), ("mlp_1", "linear")),
    "vision": (
        TOWER,
        ("MultiHeadDotProductAttention_0", "out", "kernel"),
        ("MlpBlock_0", "Dense_1", "kernel"),
    ),
}


@pytest.mark.parametrize("stack", STACKS)
def test_the_points_of_a_layer_add_up(r, captured, stack):
    block, heads_out, down = WEIGHTS[stack]

    def leaf(*path):
        node = r.variables["params"]["PaliGemma"]
        for name in (*block, *path):
            node = node[name]
        return np.asarray(node)

    taps = {p: captured[1][str(Tap(f"{stack}.{p}"))] for p in POINTS}
    if stack == "action":
        taps = {p: value[-1] for p, value in taps.items()}
    resid, attn, mlp = taps["resid"], taps["attn_out"], taps["mlp_out"]
    np.testing.assert_allclose(resid[1:] - resid[:-1], attn[1:] + mlp[1:], atol=5e-5)
    heads = np.einsum("lbtnh,lnhd->lbtd", taps["attn_heads"], leaf(*heads_out))
    ffn = np.einsum("lbtf,lfd->lbtd", taps["mlp_neurons"], leaf(*down))
    if stack == "vision":
        heads = heads + leaf(*heads_out[:-1], "bias")[:, None, None]
        ffn = ffn + leaf(*down[:-1], "bias")[:, None, None]
    np.testing.assert_allclose(attn, heads, atol=5e-5)
    np.testing.assert_allclose(mlp, ffn, atol=5e-5)


def test_taps_change_no_bit_of_the_actions(r, captured):
    np.testing.assert_array_equal(captured[0], r.run(())[0])


def test_a_reduced_or_narrower_tap_is_the_full_tap_reduced_or_narrowed(r, captured, narrow_taps):
    layouts, valid = token_layouts(r.config), r.valid
    text, image_mean, heads_max, last, actions = (captured[1][str(tap)] for tap in narrow_taps)
    full, heads = (captured[1][str(Tap(f"vlm.{p}"))] for p in ("resid", "attn_heads"))
    start, stop = layouts["vlm"].select("text")
    np.testing.assert_array_equal(text, full[[2, 0], :, start:stop])
    image = valid & (np.arange(valid.shape[1]) < start)
    for row in range(2):
        mean = full[2, row][image[row]].mean(axis=0)
        np.testing.assert_allclose(image_mean[0, row], mean, atol=1e-5)
        peak = heads[:, row][:, valid[row]].max(axis=1)
        np.testing.assert_array_equal(heads_max[:, row], peak)
        np.testing.assert_allclose(
            last[0, row, 0], full[1, row, np.flatnonzero(valid[row])[-1]], atol=1e-6
        )
    first, _ = layouts["action"].select("action")
    expected = captured[1][str(Tap("action.mlp_out"))][:, :1, :, first + 1 : first + 3]
    np.testing.assert_array_equal(actions, expected)


def test_values_have_the_documented_shapes(r, captured, narrow_taps):
    c, steps = r.config, r.config.num_steps
    documented = {
        Tap("vlm.attn_heads"): (3, 2, c.prefix_len, 4, 8),
        Tap("vision.mlp_neurons"): (2, 2, c.num_image_tokens, 64),
        Tap("action.resid"): (steps, 3, 2, 1 + c.action_horizon, 16),
        narrow_taps[1]: (1, 2, 32),
        narrow_taps[3]: (1, 2, 1, 32),
    }
    assert {tap: captured[1][str(tap)].shape for tap in documented} == documented


SELECTORS = (
    *(("vision", s) for s in ("base_0_rgb", "left_wrist_0_rgb:1-3", "all")),
    *(("vlm", s) for s in ("base_0_rgb", "image", "text", "text:1-3", "last", "all")),
    *(("action", s) for s in ("state", "action", "action:0-2", "last", "all")),
)


def test_an_edit_touches_the_valid_tokens_that_it_selects(r, captured):
    taps = tuple(Tap(f"{stack}.resid") for stack in STACKS)
    layouts = token_layouts(r.config)
    valid = {
        "vision": r.valid[:, : r.config.num_image_tokens],
        "vlm": r.valid,
        "action": np.ones((2, layouts["action"].length), bool),
    }

    def edit(stack, selector, strength):
        # At the last layer, so that no token passes the change on to another.
        gate = jnp.zeros(r.depth(stack)).at[-1].set(1.0)
        return r.edit("Add", f"{stack}.resid", tokens=selector, gate=gate, strength=strength)

    for on in SELECTORS:
        edits = [edit(*other, jnp.float32(other == on)) for other in SELECTORS]
        found = r.run(edits, taps)[1]
        stack, selector = on
        name = str(Tap(f"{stack}.resid"))
        before, after = captured[1][name], found[name]
        if stack == "action":
            before, after = before[0], after[0]
        changed = (after[-1] != before[-1]).any(axis=-1)
        expected = np.asarray(layouts[stack].mask(selector, jnp.asarray(valid[stack])))
        np.testing.assert_array_equal(changed, expected, err_msg=f"{stack} {selector}")


ACTION_RESID, VLM_OUT = Tap("action.resid"), Tap("vlm.mlp_out")
PROGRAM = {
    "patch": ("Patch", "vision.resid"),
    "add": ("Add", "vlm.mlp_out"),
    "scale": ("Scale", "vlm.mlp_out"),
    "neurons": ("SetNeurons", "action.mlp_neurons"),
    "steps": ("Scale", "action.resid"),
}


@pytest.fixture(scope="module")
def program(r):
    """`program(name=changed fields, ...)`: those edits of PROGRAM are on; one compiled function."""

    def run(seed=0, **on):
        edits = []
        for name, (kind, site) in PROGRAM.items():
            fields = {
                "strength": jnp.full(2, name in on, jnp.float32),
                "gate": jnp.ones(r.depth(site.split(".")[0])),
                "step_weights": jnp.ones(r.config.num_steps),
            }
            edit = r.edit(kind, site, seed=seed, **fields)
            edits.append(edit.replace(**on.get(name, {})))
        return r.run(edits, (ACTION_RESID, VLM_OUT))

    return run


def test_rows_have_their_own_strength(program, captured):
    both, _ = program(add={})
    first, _ = program(add={"strength": jnp.array([1.0, 0.0])})
    np.testing.assert_array_equal(first[1], captured[0][1])
    np.testing.assert_array_equal(first[0], both[0])
    assert (first[0] != captured[0][0]).any()


def test_an_edit_that_is_off_cannot_spoil_anything_with_what_it_holds(program, captured):
    bad = jnp.full((3, 32), jnp.nan)
    actions, _ = program(add={"strength": jnp.zeros(2), "vector": bad})
    np.testing.assert_array_equal(actions, captured[0])
    closed = {"gate": jnp.zeros(3), "vector": bad}
    np.testing.assert_array_equal(program(add=closed)[0], captured[0])


def test_an_edit_with_step_weights_begins_at_its_step(program, captured):
    off = captured[1][str(ACTION_RESID)]
    np.testing.assert_array_equal(program(steps={"step_weights": jnp.zeros(3)})[0], captured[0])
    for step in range(3):
        weights = jnp.zeros(3).at[step].set(1.0)
        found = program(steps={"step_weights": weights})[1][str(ACTION_RESID)]
        assert [bool((found[i] == off[i]).all()) for i in range(3)] == [i < step for i in range(3)]


def test_step_weights_do_not_weaken_an_edit_of_the_prefix(program):
    weak, full = program(add={"step_weights": jnp.zeros(3)}), program(add={})
    np.testing.assert_array_equal(weak[0], full[0])


def test_patching_a_layer_of_another_run_gives_that_runs_actions(r, program, captured):
    actions, taps = r.off(images=jax.tree.map(lambda image: -image, r.obs.images))
    value = jnp.asarray(taps[str(Tap("vision.resid"))])
    patched, _ = program(patch={"value": value, "gate": jnp.array([0.0, 1.0])})
    np.testing.assert_allclose(patched, actions, atol=1e-5)
    assert np.abs(patched - captured[0]).max() > 1e-3


def test_edits_at_one_site_apply_in_their_order_and_a_tap_sees_them_all(r, program, captured):
    plain = captured[1][str(VLM_OUT)][0]
    found = program(add={}, scale={})[1][str(VLM_OUT)][0]
    vector, factor = (r.edit(*PROGRAM[name]) for name in ("add", "scale"))
    expected = (plain + np.asarray(vector.vector[0])) * np.asarray(factor.factor[0])
    np.testing.assert_allclose(found[r.valid], expected[r.valid], atol=1e-5)


def test_one_trace_serves_a_hundred_different_edits(r, program):
    program()
    before, outputs = r.traces, set()
    for seed in range(100):
        rng = np.random.default_rng(seed)
        fields = {
            "strength": jnp.asarray(rng.normal(size=2), jnp.float32),
            "step_weights": jnp.asarray(rng.random(3), jnp.float32),
        }
        gate = jnp.asarray(rng.integers(0, 2, 3), jnp.float32)
        actions, _ = program(seed, add=fields, steps={**fields, "gate": gate.at[0].set(1.0)})
        outputs.add(actions.tobytes())
    assert r.traces == before
    assert len(outputs) == 100


def test_gradients_pass_through_edits_under_remat(rig, captured):
    r, resid = rig(remat=True), Tap("vlm.resid")
    edit = r.edit("Add", "vlm.mlp_out")

    @functools.partial(jax.value_and_grad, argnums=(1, 2), has_aux=True)
    def gradient(inputs, strength, vector):
        edits = [edit.replace(vector=vector, strength=strength)]
        actions, taps = r.sample(inputs, edits, (resid,))
        return jnp.sum(jnp.square(actions)), (actions, taps[str(resid)])

    run = functools.partial(jax.jit(gradient), r.inputs)
    (_, (actions, tapped)), _ = run(0.0, edit.vector)
    np.testing.assert_allclose(actions, captured[0], atol=1e-5)
    np.testing.assert_allclose(tapped, captured[1][str(resid)], atol=1e-5)
    (low, _), _ = run(0.495, edit.vector)
    _, (slope, vector) = run(0.5, edit.vector)
    (high, _), _ = run(0.505, edit.vector)
    np.testing.assert_allclose(slope, (high - low) / 0.01, rtol=2e-2)
    # The strength scales the vector, so both gradients tell of the same slope.
    np.testing.assert_allclose(jnp.sum(vector * edit.vector), 0.5 * slope, rtol=1e-3)


def test_vmap_over_strengths_is_a_loop_over_strengths(r, program):
    edit = r.edit(*PROGRAM["neurons"])

    def one(inputs, strength):
        return r.sample(inputs, [edit.replace(strength=strength)])[0]

    run = jax.jit(jax.vmap(one, in_axes=(None, 0)))
    strengths = np.array([0.0, 0.5, -2.0], np.float32)
    one_by_one = [program(neurons={"strength": jnp.full(2, s, jnp.float32)})[0] for s in strengths]
    np.testing.assert_allclose(
        run(r.inputs, jnp.asarray(strengths)), np.stack(one_by_one), atol=1e-5
    )


BAD = {
    "wrong width": Add(site="vlm.resid", vector=jnp.ones((3, 7))),
    "wrong depth": Add(site="vlm.resid", vector=jnp.ones((2, 32))),
    "unknown tokens": Add(site="vlm.resid", vector=jnp.ones((3, 32)), tokens="state"),
    "a number for a width": Add(site="vlm.resid", vector=jnp.ones((3, 1))),
    "other rows": Add(site="vlm.resid", vector=jnp.ones((3, 32)), strength=jnp.ones(3)),
    "other steps": Add(site="vlm.resid", vector=jnp.ones((3, 32)), step_weights=jnp.ones(2)),
}


@pytest.mark.parametrize("edit", BAD.values(), ids=BAD.keys())
def test_a_bad_edit_raises_and_leaves_no_interceptor(r, edit):
    with pytest.raises((ValueError, TypeError)):
        jax.eval_shape(lambda: prefill(Pi0(r.config), r.variables, r.obs, Hooks((edit,))))
    assert not nn.module._global_interceptor_stack


def test_an_error_inside_the_model_leaves_no_interceptor(r, monkeypatch):
    def fail(*_):
        raise FloatingPointError("inside the block")

    monkeypatch.setattr("mistjax.models.gemma.apply_rope", fail)
    hooks = Hooks((r.edit("Add", "vlm.resid"),), (Tap("vlm.resid"),))
    with pytest.raises(FloatingPointError, match="inside the block"):
        prefill(Pi0(r.config), r.variables, r.obs, hooks)
    assert not nn.module._global_interceptor_stack


@pytest.mark.parametrize("hooks", [Hooks((), (Tap("dino.resid"),)), Hooks((Add("dino.resid"),))])
def test_a_stack_that_the_model_lacks_is_refused(r, hooks):
    with pytest.raises(ValueError, match="no stack 'dino'"):
        prefill(Pi0(r.config), r.variables, r.obs, hooks)


def test_a_layer_that_the_stack_lacks_is_refused(r):
    hooks = Hooks((), (Tap("vlm.resid", (3,)),))
    with pytest.raises(ValueError, match="3 layers"):
        jax.eval_shape(lambda: prefill(Pi0(r.config), r.variables, r.obs, hooks))


def test_inputs_that_jax_would_broadcast_or_clamp_are_refused_by_name(r):
    model, obs = Pi0(r.config), r.obs
    camera = r.config.image_keys[0]
    wrong = {
        "state": {"state": jnp.ones((2, 4))},
        "tokenized_prompt": {"tokenized_prompt": jnp.ones((2, 7), int)},
        "tokenized_prompt_mask": {"tokenized_prompt_mask": jnp.ones((1, 8), bool)},
        "prompt_embedding": {"prompt_embedding": jnp.ones((2, 8, 1))},
        "images": {"images": {**obs.images, camera: jnp.ones((2, 8, 8, 3))}},
        "image_masks": {"image_masks": {**obs.image_masks, camera: jnp.ones(1, bool)}},
        "the cameras": {"images": {camera: obs.images[camera]}},
    }
    for name, change in wrong.items():
        seen = copy.copy(obs)
        for field, value in change.items():  # as where annotations are not checked
            object.__setattr__(seen, field, value)
        with pytest.raises(ValueError, match=rf"{name}.*(has shape|it has)"):
            jax.eval_shape(lambda o: prefill(model, r.variables, o), seen)
    prefix = jax.eval_shape(lambda: prefill(model, r.variables, obs))
    first = jax.tree.map(lambda x: x[:1], obs)
    with pytest.raises(ValueError, match="compute it from this observation"):
        prefix.check(r.config, first)

"""Taps and edits of SmolVLA, against its own modules and its own arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interop.lerobot.hooks import Hooks
from mistjax.hooks import POINTS, Add, Patch, ProjectOut, Scale, SetNeurons, Tap

KEY = jax.random.key(3)
STACKS = ("vision", "vlm", "action")
EVERY = tuple(Tap(f"{stack}.{point}") for stack in STACKS for point in POINTS)


@pytest.fixture(scope="module")
def obs(policy, raw):
    return policy.prepare(raw)


@pytest.fixture(scope="module")
def plain(policy, obs):
    return policy.sample(obs, KEY, taps=EVERY)


def at(sample, stack, point):
    """A tap's value with the flow step in front, for every stack."""
    value = np.asarray(sample.taps[str(Tap(f"{stack}.{point}"))])
    return value if stack == "action" else value[None]


def weight(policy, stack, layer, name):
    block = policy.network.stacks[stack].blocks[layer]
    return dict(block.named_parameters())[name].numpy()


@pytest.mark.parametrize("stack", STACKS)
def test_the_points_add_up(policy, plain, stack):
    resid, attn, mlp = (at(plain, stack, p) for p in ("resid", "attn_out", "mlp_out"))
    np.testing.assert_allclose(resid[:, 1:] - resid[:, :-1], (attn + mlp)[:, 1:], atol=2e-4)
    heads, neurons = at(plain, stack, "attn_heads"), at(plain, stack, "mlp_neurons")
    out, down = ("out_proj", "fc2") if stack == "vision" else ("o_proj", "down_proj")
    for layer in range(resid.shape[1]):
        joined = heads[:, layer].reshape(*heads.shape[:1], *heads.shape[2:4], -1)
        bias = weight(policy, stack, layer, f"self_attn.{out}.bias") if stack == "vision" else 0
        added = joined @ weight(policy, stack, layer, f"self_attn.{out}.weight").T + bias
        np.testing.assert_allclose(added, attn[:, layer], atol=2e-4)
        bias = weight(policy, stack, layer, f"mlp.{down}.bias") if stack == "vision" else 0
        added = neurons[:, layer] @ weight(policy, stack, layer, f"mlp.{down}.weight").T + bias
        np.testing.assert_allclose(added, mlp[:, layer], atol=2e-4)


@pytest.mark.parametrize("stack", ["vlm", "action"])
def test_the_last_residual_is_what_the_final_norm_gets(policy, obs, plain, stack):
    two = policy.policy.model.vlm_with_expert
    norm = two.lm_expert.norm if stack == "action" else two.get_vlm_model().text_model.norm
    seen = []
    hook = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    policy.sample(obs, KEY)
    hook.remove()
    for step, value in enumerate(seen):
        found = at(plain, stack, "resid")[step, -1]
        images = min(value.shape[1], 32)
        np.testing.assert_array_equal(found[:, :images], value.numpy()[:, :images])


def real(policy, obs, stack):
    """Which tokens there are, [B,T]."""
    valid = np.ones((2, policy.spec.stacks[stack].layout.length), bool)
    if stack == "vlm":
        start, stop = policy.spec.stacks["vlm"].layout.select("text")
        valid[:, start:stop] = obs.tokenized_prompt_mask
    return valid


def vectors(policy, stack, point, seed=0):
    spec = policy.spec.stacks[stack]
    shape = {"attn_heads": (spec.heads, spec.head_dim), "mlp_neurons": (spec.neurons,)}
    size = (spec.depth, *shape.get(point, (spec.width,)))
    return jax.random.normal(jax.random.key(seed), size)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("point", POINTS)
def test_an_edit_changes_its_layer_and_later_ones_alone(policy, obs, plain, stack, point):
    depth = policy.spec.stacks[stack].depth
    gate = jnp.zeros(depth).at[1].set(1.0)
    vector = vectors(policy, stack, point)
    taps, edit = (Tap(f"{stack}.{point}"),), Add(f"{stack}.{point}", vector=vector, gate=gate)
    sample = policy.sample(obs, KEY, taps=taps, edits=(edit,))
    before, after = at(plain, stack, point)[0], at(sample, stack, point)[0]
    np.testing.assert_array_equal(after[0], before[0])
    valid = real(policy, obs, stack)
    added = (after[1] - before[1])[valid] - np.asarray(vector[1])
    np.testing.assert_allclose(added, 0, atol=2e-4)
    assert not np.array_equal(sample.actions, plain.actions)


def test_adding_to_the_residual_is_adding_to_what_the_mlp_returns(policy, obs):
    vector = vectors(policy, "action", "resid")
    one, other = (
        policy.sample(obs, KEY, edits=(Add(f"action.{point}", vector=vector),)).actions
        for point in ("resid", "mlp_out")
    )
    np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("stack", ["vlm", "action"])
def test_an_edited_residual_is_what_the_next_layer_goes_on_from(policy, obs, stack):
    edit = Add(f"{stack}.resid", vector=vectors(policy, stack, "resid"), gate=jnp.eye(3)[1])
    sample = policy.sample(obs, KEY, taps=EVERY, edits=(edit,))
    resid, attn, mlp = (at(sample, stack, p)[0] for p in ("resid", "attn_out", "mlp_out"))
    np.testing.assert_allclose(resid[2] - attn[2] - mlp[2], resid[1], atol=1e-5)


def test_a_residual_can_be_put_where_another_run_had_it(policy, obs, raw):
    """Patched at every layer and token, the second run acts as the first did."""
    tap = Tap("action.resid")
    given = policy.sample(obs, KEY, taps=(tap,))
    other = policy.prepare(raw[::-1])
    assert not np.allclose(policy.sample(other, KEY).actions, given.actions, atol=1e-2)
    for step in range(3):
        weights = jnp.zeros(3).at[step].set(1.0)
        value = given.taps[str(tap)][step]
        edit = Patch("action.resid", value=value, step_weights=weights)
        found = policy.sample(other, KEY, taps=(tap,), edits=(edit,)).taps[str(tap)]
        np.testing.assert_allclose(found[step], value, atol=1e-4)


def test_flow_steps_and_tokens_are_chosen(policy, obs, plain):
    vector, weights = vectors(policy, "action", "mlp_out"), jnp.array([0.0, 1.0, 0.0])
    edit = Add("action.mlp_out", "action:2-3", vector=vector, step_weights=weights)
    found = at(policy.sample(obs, KEY, taps=EVERY, edits=(edit,)), "action", "mlp_out")
    before = at(plain, "action", "mlp_out")
    np.testing.assert_array_equal(found[0], before[0])
    changed = np.abs(found[1, 0] - before[1, 0]).max((0, 2)) > 0
    assert changed.tolist() == [False, False, True, *[False] * 5]

    state = Add("vlm.mlp_out", "state", vector=vectors(policy, "vlm", "mlp_out"))
    found = at(policy.sample(obs, KEY, taps=EVERY, edits=(state,)), "vlm", "mlp_out")[0, 0]
    changed = np.abs(found - at(plain, "vlm", "mlp_out")[0, 0]).max((0, 2)) > 0
    assert np.flatnonzero(changed).tolist() == [policy.spec.stacks["vlm"].layout.length - 1]


def test_a_camera_is_edited_in_the_tower_and_no_other(policy, obs, plain):
    camera = tuple(policy.spec.cameras)[1]
    edit = Add("vision.mlp_out", camera, vector=vectors(policy, "vision", "mlp_out"))
    found = at(policy.sample(obs, KEY, taps=EVERY, edits=(edit,)), "vision", "resid")
    changed = np.abs(found - at(plain, "vision", "resid")).max((0, 1, 2, 4)) > 0
    start, stop = policy.spec.stacks["vision"].layout.select(camera)
    assert np.flatnonzero(changed).tolist() == list(range(start, stop))


@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("site", ["vision.resid", "vlm.attn_heads", "action.mlp_neurons"])
def test_reduced_taps_are_reductions_of_the_real_tokens(policy, obs, plain, site, reduce):
    tap = Tap(site, reduce=reduce)
    found = at(plain, *site.split("."))
    value = policy.sample(obs, KEY, taps=(tap,)).taps[str(tap)]
    valid = real(policy, obs, tap.stack)
    for row in range(2):
        expected = getattr(found[:, :, row][:, :, valid[row]], reduce)(axis=2)
        rows = np.reshape(value, found.shape[:3] + found.shape[4:])
        np.testing.assert_allclose(rows[:, :, row], expected, atol=1e-5)


@pytest.mark.parametrize("kind", [Scale, ProjectOut, SetNeurons])
def test_other_edits_do_what_they_do_in_jax(policy, obs, plain, kind):
    names = {Scale: ("factor",), ProjectOut: ("direction",), SetNeurons: ("mask", "value")}[kind]
    point = "mlp_neurons" if kind is SetNeurons else "resid"
    arrays = {name: vectors(policy, "action", point, seed) for seed, name in enumerate(names)}
    gate = jnp.zeros(3).at[0].set(1.0)
    edit = kind(f"action.{point}", gate=gate, **arrays)
    tap = Tap(f"action.{point}", layers=(0,))
    found = policy.sample(obs, KEY, taps=(tap,), edits=(edit,)).taps[str(tap)][0, 0]
    before = at(plain, "action", point)[0, 0]
    data = {name: value[0].reshape(1, 1, -1) for name, value in edit.layer_data(3).items()}
    expected = kind.transform(jnp.asarray(before), jnp.ones((*before.shape[:2], 1)), data)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_no_hook_survives_an_error_inside_the_policy(policy, obs):
    def count():
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in policy.policy.modules()
        )

    def fail(*_):
        raise RuntimeError("inside")

    assert count() == 0
    broken = policy.policy.model.action_out_proj.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="inside"):
        policy.sample(obs, KEY, taps=EVERY, edits=(Add("vlm.resid", vector=jnp.ones((3, 48))),))
    broken.remove()
    assert count() == 0


def test_modules_that_nothing_names_get_no_hook(policy):
    tap = Tap("action.mlp_out", layers=(1,))
    with Hooks(policy.network, (tap,), (), {}, words=4):
        hooked = {name for name, module in policy.policy.named_modules() if module._forward_hooks}
    assert hooked == {"model.vlm_with_expert.lm_expert.layers.1.mlp"}


def test_what_does_not_exist_is_refused(policy, obs):
    for tap, said in (
        (Tap("vlm.resid", layers=(9,)), r"layers \[9\]"),
        (Tap("vlm.resid", tokens="camera_7"), "no segment 'camera_7'"),
    ):
        with pytest.raises(ValueError, match=said):
            policy.sample(obs, KEY, taps=(tap,))
    with pytest.raises(ValueError, match="first axis must be the 3 layers"):
        policy.sample(obs, KEY, edits=(Add("vlm.resid", vector=jnp.ones((2, 48))),))

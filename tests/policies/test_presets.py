"""Robot presets: openpi's data rules, and checkpoints in openpi's layout that fit them or not."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.demo import SHIPPED
from mistjax.models import checkpoints
from mistjax.models.config import TINY, TINY_FAST, FastConfig
from mistjax.models.normalize import NormStats
from mistjax.models.tokenizers import PromptTokenizer
from mistjax.policies import BOARD_FAST, PRESETS, PiPolicy, Sample
from mistjax.policies.load import load_policy
from mistjax.policies.presets import Fallback, preset_of
from mistjax.policies.presets.aloha import AlohaUnits
from mistjax.policies.presets.check import check_model, check_sizes, kind

LIBERO = ("pi0_libero", "pi0_fast_libero", "pi05_libero")
# Of LIBERO's training data, rounded: absolute actions, and the poses that they start from.
STATE = [-0.05, 0.03, 0.76, 2.97, -0.22, -0.13, 0.03, -0.03]
ACTIONS = [0.06, 0.09, -0.09, 0.0, 0.006, -0.005, -0.05]
DELTA = [*(np.array(ACTIONS[:6]) - np.array(STATE[:6])), ACTIONS[6]]


def stats(mean, spread=0.3):
    mean = np.asarray(mean, np.float32)
    return NormStats(mean, spread + 0 * mean, mean - 2 * spread, mean + 2 * spread)


@pytest.fixture
def write(tmp_path, letters, pi_variables):
    """`write(**what)`: a tiny pi0 or pi0.5 checkpoint in openpi's layout."""

    def build(pi05, state, actions, horizon, asset="physical-intelligence/libero"):
        sizes = {"action_dim": 32, "action_horizon": horizon, "pi05": pi05, "max_token_len": 200}
        config = dataclasses.replace(TINY, **sizes)
        folder = tmp_path / f"checkpoint{len(list(tmp_path.iterdir()))}"
        checkpoints.save_checkpoint(
            folder,
            pi_variables(config)["params"],
            config=config.to_json(),
            norm_stats={"state": state, "actions": actions},
            asset_id=asset,
            tokenizer=PromptTokenizer(letters, 200),
        )
        return folder

    return build


def observation(preset, rng):
    keys = preset.state_key if isinstance(preset.state_key, tuple) else (preset.state_key,)
    widths = [7, 1] if len(keys) == 2 else [preset.state_dim]
    pictures = {
        key: rng.integers(0, 256, (20, 24, 3), np.uint8) for key in preset.cameras.values() if key
    }
    state = {key: rng.uniform(0.1, 0.9, n) for key, n in zip(keys, widths, strict=True)}
    return {**pictures, **state, "prompt": "put it down"}


@pytest.mark.parametrize("name", [n for n, preset in PRESETS.items() if preset.model])
def test_a_preset_agrees_with_itself(name):
    preset = PRESETS[name]
    assert preset.name == name
    assert len(preset.action_low) == len(preset.action_high) == preset.action_dim
    assert tuple(preset.cameras) == preset.model.image_keys
    assert preset.execute_steps <= preset.model.action_horizon
    assert len(preset.delta) in (0, preset.action_dim)
    assert (preset.normalizer == "zscore") == (kind(preset.model) == "pi0")
    if isinstance(preset.model, FastConfig):
        assert preset.model.action_dim == preset.action_dim


def test_libero_checkpoints_differ_as_openpi_says():
    rows = {
        n: (p.normalizer, bool(p.delta), p.model.action_horizon, p.state_in_prompt)
        for n, p in ((n, PRESETS[n]) for n in LIBERO)
    }
    assert rows == {
        "pi0_libero": ("zscore", True, 50, False),
        "pi0_fast_libero": ("quantile", True, 10, False),
        "pi05_libero": ("quantile", False, 10, False),
    }
    assert (
        PRESETS["pi05_droid"].state_in_prompt and PRESETS["pi05_droid"].model.action_horizon == 15
    )


def test_a_preset_is_found_in_the_path_of_a_checkpoint():
    empty = Path("no such folder")
    assert preset_of("gs://openpi-assets/checkpoints/pi05_libero", empty) == "pi05_libero"
    assert preset_of("runs/pi0_droid/my_experiment/29999", empty) == "pi0_droid"
    assert preset_of("hf://someone/pi0_libero@v1", empty) == "pi0_libero"
    assert preset_of("checkpoints/something", empty) == "board"
    commit = "a" * 40
    assert preset_of(f"hf://lab/mirror@{commit}/checkpoints/pi05_libero", empty) == "pi05_libero"
    assert preset_of(f"hf://lab/pi0_droid@{commit}/29999", empty) == "pi0_droid"
    assert preset_of("/checkpoints/user@lab/pi05_libero/", empty) == "pi05_libero"
    assert preset_of("gs://bucket@lab/pi0_libero/x@y", empty) == "pi0_libero"


def test_a_preset_is_found_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "pi0_droid").mkdir()
    monkeypatch.chdir(tmp_path / "pi0_droid")
    assert preset_of(".", Path(".")) == "pi0_droid"


def test_a_preset_is_found_in_the_statistics_of_a_checkpoint(tmp_path):
    folder = tmp_path / "renamed"
    folder.symlink_to((SHIPPED / "board_fast").resolve())
    assert preset_of(folder, folder) == "board_fast"
    assert load_policy(folder).preset is BOARD_FAST


@pytest.mark.parametrize(
    ("name", "pi05", "actions", "horizon"),
    [("pi0_libero", False, DELTA, 50), ("pi05_libero", True, ACTIONS, 10)],
)
def test_a_libero_checkpoint_gives_actions_by_its_own_rules(write, name, pi05, actions, horizon):
    preset, rng = PRESETS[name], np.random.default_rng(0)
    policy = PiPolicy.load(write(pi05, stats(STATE), stats(actions), horizon), preset)
    raw = [observation(preset, rng) for _ in range(2)]
    obs = policy.prepare(raw)
    state = np.stack([r["observation/state"] for r in raw])
    mean, low, high = (np.asarray(getattr(stats(STATE), n)) for n in ("mean", "q01", "q99"))
    if preset.normalizer == "zscore":
        normal, back = (state - mean) / (0.3 + 1e-6), stats(actions).mean
    else:
        normal, back = (state - low) / (high - low + 1e-6) * 2 - 1, stats(actions).mean
    np.testing.assert_allclose(obs.state[:, :8], normal, rtol=1e-4, atol=1e-5)
    assert obs.state.shape == (2, 32) and not obs.state[:, 8:].any()
    assert "state" not in policy.tokenizer.decode(obs.tokenized_prompt[0]).lower()

    # A model output of 0 is the mean action; pi0_libero then adds the state to it.
    zero = Sample(jnp.zeros((2, horizon, 32)), {}, {})
    expected = np.asarray(back)[None, None].repeat(2, 0)
    if preset.delta:
        expected = expected + np.pad(state[:, None, :6], ((0, 0), (0, 0), (0, 1)))
    finished = policy.finish(zero, raw)
    np.testing.assert_allclose(finished[:, :1], np.clip(expected, -1, 1), rtol=1e-4, atol=1e-5)
    assert policy.sample(obs, jax.random.key(0)).actions.shape == (2, horizon, 32)


def test_another_checkpoint_of_the_same_robot_is_refused_with_the_reason(write):
    pi0 = write(False, stats(STATE), stats(DELTA), 50)
    pi05 = write(True, stats(STATE), stats(ACTIONS), 10)
    with pytest.raises(
        ValueError, match=r"holds a pi0\.5 model, and preset 'pi0_libero' is for pi0:"
    ):
        PiPolicy.load(pi05, PRESETS["pi0_libero"])
    with pytest.raises(ValueError, match="holds a pi0 model, and preset 'pi05_libero'"):
        PiPolicy.load(pi0, PRESETS["pi05_libero"])

    with pytest.raises(
        ValueError, match=r"not relative to the state: their mean 'droll' would be -2\.97"
    ):
        PiPolicy.load(write(True, stats(STATE), stats(DELTA), 10), PRESETS["pi05_libero"])
    with pytest.raises(ValueError, match=r"are relative to the state: their mean 'droll' .* 2\.97"):
        PiPolicy.load(write(False, stats(STATE), stats(ACTIONS), 50), PRESETS["pi0_libero"])
    with pytest.raises(ValueError, match=r"predicts 50 actions at a time.* horizon of 10"):
        PiPolicy.load(write(True, stats(STATE), stats(ACTIONS), 50), PRESETS["pi05_libero"])


def test_statistics_of_another_robot_are_refused(write):
    droid = stats([0.1] * 8), stats([0.0] * 8)
    with pytest.raises(ValueError, match="have 8 dimensions of 'actions', and preset 'pi0_libero'"):
        PiPolicy.load(write(False, *droid, 50), PRESETS["pi0_libero"])
    with pytest.raises(
        FileNotFoundError, match=r"of 'physical-intelligence/libero'; it has \['dro"
    ):
        PiPolicy.load(write(False, *droid, 50, asset="droid"), PRESETS["pi0_libero"])
    without = NormStats(stats(ACTIONS).mean, stats(ACTIONS).std)
    with pytest.raises(ValueError, match="hold no quantiles of 'actions'"):
        PiPolicy.load(write(True, stats(STATE), without, 10), PRESETS["pi05_libero"])


def test_a_dimension_that_never_changed_is_warned_of_by_its_name(write):
    state, actions = stats(STATE), stats(ACTIONS)
    still = np.asarray(actions.q01).copy()
    still[6] = actions.q99[6]
    folder = write(True, state, dataclasses.replace(actions, q01=still), 10)
    with pytest.warns(UserWarning, match="dimension gripper of 'actions' never changed"):
        PiPolicy.load(folder, PRESETS["pi05_libero"])
    spread = np.where(np.arange(8) == 3, 0, state.std).astype(np.float32)
    folder = write(False, dataclasses.replace(state, std=spread), stats(DELTA), 50)
    with pytest.warns(UserWarning, match="dimension 3 of 'state' never changed"):
        PiPolicy.load(folder, PRESETS["pi0_libero"])


def test_padding_and_cutting_hide_no_other_robot():
    preset = PRESETS["libero_tiny"]
    config = dataclasses.replace(TINY, action_dim=8, action_horizon=5)
    check_sizes("x", preset, config)
    for change, message in (
        ({"action_dim": 6}, "has 6 numbers of an action, and preset 'libero_tiny' needs 7"),
        ({"action_dim": 7}, "has 7 numbers of a state, and preset 'libero_tiny' needs 8"),
        ({"action_horizon": 4}, "has 4 actions at a time, and preset 'libero_tiny' needs 5"),
        ({"image_keys": ("base_0_rgb", "wrist_0_rgb")}, r"cameras \['wrist_0_rgb'\], which preset"),
    ):
        with pytest.raises(ValueError, match=message):
            check_sizes("x", preset, dataclasses.replace(config, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"action_low": (-1.0,) * 3},
        {"action_high": (1.0, 1.0, 1.0, -1.0)},
        {"action_low": (float("nan"),) * 4},
        {"gripper_index": 4},
        {"delta": (True,) * 5},
        {"state_dim": 0},
        {"execute_steps": 0},
        {"fallback": Fallback((0.0,) * 3)},
        {"fallback": Fallback((0.0,) * 4, from_state=((3, 5),))},
        {"fallback": Fallback((float("inf"),) * 4)},
    ],
)
def test_a_preset_that_contradicts_itself_is_refused_by_field(change):
    with pytest.raises(ValueError, match=f"preset 'board' has .*{next(iter(change))}"):
        dataclasses.replace(PRESETS["board"], **change)


def test_padded_statistics_are_the_robots_own(write):
    def padded(mean):
        mean = np.pad(np.asarray(mean, np.float32), (0, 32 - len(mean)))
        return NormStats(mean, np.where(np.arange(32) < 8, 0.3, 0).astype(np.float32))

    actions = stats(DELTA)
    folder = write(False, padded(STATE), actions, 50)
    assert PiPolicy.load(folder, PRESETS["pi0_libero"]).spec.action_dim == 7


def test_a_configuration_that_denies_its_parameters_is_refused():
    leaves = {"action_in_proj/kernel", "action_out_proj/kernel", "state_proj/kernel"}
    config = dataclasses.replace(TINY, pi05=True, action_horizon=10)
    with pytest.raises(ValueError, match=r"holds a pi0 model and is configured as pi0\.5"):
        check_model("x", PRESETS["pi05_libero"], config, leaves)
    fast = dataclasses.replace(TINY_FAST, action_horizon=10)
    check_model("x", PRESETS["pi0_fast_libero"], fast, {"PaliGemma/llm/final_norm/scale"})


def test_droid_joins_joints_and_gripper():
    preset, rng = PRESETS["pi0_droid"], np.random.default_rng(1)
    raw = observation(preset, rng)
    joints, gripper = raw["observation/joint_position"], raw["observation/gripper_position"]
    np.testing.assert_allclose(preset.state(raw), [*joints, *gripper], rtol=1e-6)
    with pytest.raises(ValueError, match=r"joint_position.*which the observation lacks"):
        preset.state({"observation/gripper_position": gripper})


def test_aloha_turns_two_joints_of_each_arm_and_bends_its_grippers(write):
    units = AlohaUnits()
    state = np.linspace(0.1, 1.4, 14).astype(np.float32)
    state[[6, 13]] = 0.0, 1.0
    turned = units.to_model_state(state)
    assert (np.sign(turned[:6]) == [1, -1, -1, 1, 1, 1]).all()
    assert (np.sign(turned[7:13]) == [1, -1, -1, 1, 1, 1]).all()
    # Closed and open, by the linkage: horn, arm and the sine of the joint form a triangle.
    for share, linear in ((turned[6], 0.01844), (turned[13], 0.05800)):
        angle = 0.5476 + share * (1.6296 - 0.5476)
        horn = 0.022 * np.array([np.cos(angle), np.sin(angle)])
        if math.isclose(linear, 0.01844):
            assert math.isclose(math.hypot(horn[0], linear - horn[1]), 0.036, rel_tol=1e-4)
        else:
            assert math.isclose(
                angle, math.pi / 2, rel_tol=1e-4
            )  # fully open: arm and horn in line
    actions = np.linspace(-0.5, 0.5, 14).astype(np.float32)
    out = units.to_robot_actions(actions)
    np.testing.assert_array_equal(out[:6], actions[:6] * [1, -1, -1, 1, 1, 1])
    np.testing.assert_array_equal(out[7:13], actions[7:13] * [1, -1, -1, 1, 1, 1])
    np.testing.assert_allclose(
        out[[6, 13]], (actions[[6, 13]] + 0.5476 + 0.6213) / 2.1123, rtol=1e-5
    )


def test_an_aloha_policy_reads_openpis_nested_observations(write):
    preset, rng = PRESETS["pi0_aloha_towel"], np.random.default_rng(3)
    rest = AlohaUnits().to_model_state(np.full(14, 0.5, np.float32))
    folder = write(False, stats(rest), stats([0.0] * 6 + [0.5] + [0.0] * 6 + [0.5]), 50, "trossen")
    policy = PiPolicy.load(folder, preset)
    policy = policy.replace(
        config=dataclasses.replace(policy.config, image_keys=tuple(preset.cameras))
    )
    names = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    raw = {
        "state": np.full(14, 0.5),
        "images": {name: rng.integers(0, 256, (3, 24, 24), np.uint8) for name in names},
    }
    obs = policy.prepare([raw])
    np.testing.assert_allclose(obs.state[0, :14], 0, atol=1e-5)
    assert all(mask.all() for mask in obs.image_masks.values())
    assert policy.tokenizer.decode(obs.tokenized_prompt[0]).strip() == "fold the towel"
    still = policy.finish(Sample(jnp.zeros((1, 50, 32)), {}, {}), [raw])
    joints = [i for i in range(14) if i not in (6, 13)]
    np.testing.assert_allclose(still[0, 0, joints], 0.5, atol=1e-5)  # relative to the state
    gripper = (0.5 + 0.5476 + 0.6213) / 2.1123
    np.testing.assert_allclose(still[0, 0, [6, 13]], gripper, atol=1e-5)
    with pytest.raises(ValueError, match="no 'prompt'"):
        PRESETS["pi0_aloha"].prompt(raw)


@pytest.mark.parametrize("name", PRESETS)
def test_the_fallback_of_every_robot_is_an_action_inside_its_bounds(name):
    preset = PRESETS[name]
    raw = observation(preset, np.random.default_rng(0))
    state = preset.raw_state(raw)
    state[-1] = np.nan
    for numbers in (preset.raw_state(raw), state):
        held = np.asarray(preset.fallback(numbers))
        assert held.shape == (preset.action_dim,)
        assert ((held >= preset.action_low) & (held <= preset.action_high)).all()
        np.testing.assert_allclose(jax.jit(preset.fallback)(numbers), held, atol=1e-6)


def test_the_fallback_leaves_joints_and_grippers_as_they_are():
    board, droid, aloha = (PRESETS[name] for name in ("board", "pi0_droid", "pi0_aloha"))
    assert board.fallback(np.array([0.1, 0.2, 0.3, 0.01, 1.0])).tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(droid.fallback(np.arange(8) / 10), [0] * 7 + [0.7], atol=1e-6)
    state = np.linspace(0.1, 0.9, 14)
    held = aloha.fallback(state)
    joints = np.delete(np.arange(14), [6, 13])
    np.testing.assert_allclose(held[joints], state[joints], atol=1e-6)
    seen = aloha.units.to_model_state(state.copy())[6]  # a share of the models' range of angles
    angle = 0.5476 + seen * (1.6296 - 0.5476)
    np.testing.assert_allclose(held[6], (angle + 0.6213) / (1.4910 + 0.6213), atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_chunk_that_is_no_action_holds_the_robot_still_and_its_neighbours_go_on(bad):
    preset = PRESETS["board"]
    raw = [{"observation/state": np.array([0, 0, 0.1, 0.01, grip])} for grip in (1.0, -1.0, 1.0)]
    chunks = np.random.default_rng(0).normal(size=(3, 8, 4))
    fine = preset.bounded(chunks, np.zeros(3, bool), raw)
    chunks[1, 3, 2] = bad
    bounded = preset.bounded(chunks, np.array([False, False, True]), raw)
    assert np.array_equal(bounded[0], fine[0])
    assert (bounded[1] == [0, 0, 0, -1]).all()
    assert (bounded[2] == [0, 0, 0, 1]).all()


def test_a_robot_that_nobody_can_hold_still_says_so():
    preset = dataclasses.replace(PRESETS["board"], fallback=None)
    with pytest.raises(ValueError, match="give RobotPreset a `fallback`"):
        preset.bounded(np.zeros((1, 8, 4)), np.array([True]), [{}])

"""LeRobot's folders: read as LeRobot wrote them, or refused by what is wrong with them."""

import shutil

import jax
import numpy as np
import pytest
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from interop.arrays import to_torch
from interop.lerobot.policy import LeRobotPolicy
from mistjax.cli import main
from mistjax.envs.board.env import BoardEnv
from mistjax.policies import BOARD, LIBERO_TINY, PiPolicy, load_policy
from mistjax.rollouts.run import load_run
from tests.test_every_policy import walk

KEY = jax.random.key(1)


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_folder_gives_the_policy_that_was_saved(policy, folder, raw):
    loaded = load_policy(folder)
    assert isinstance(loaded, LeRobotPolicy) and loaded.name == "tiny"
    one, other = (p.sample(p.prepare(raw), KEY) for p in (policy, loaded))
    np.testing.assert_array_equal(one.actions, other.actions)
    assert loaded.spec.fingerprint == policy.spec.fingerprint


def test_the_backbone_can_lie_elsewhere(folder, copy, backbone, policy):
    shutil.rmtree(copy / "backbone")
    with pytest.raises(ValueError, match=r"the backbone 'backbone' of .* give its folder"):
        LeRobotPolicy.load(copy, BOARD)
    loaded = LeRobotPolicy.load(copy, BOARD, backbone=backbone)
    assert loaded.spec.fingerprint == policy.spec.fingerprint


def test_observations_are_renamed_as_lerobot_does(parts, copy, raw, policy):
    file = copy / "config.json"
    file.write_text(file.read_text().replace("images.wrist_image", "images.camera2"))
    with pytest.raises(ValueError, match=r"camera2'\], .* `rename_map`"):
        LeRobotPolicy.load(copy, BOARD)
    names = {"observation.images.wrist_image": "observation.images.camera2"}
    loaded = LeRobotPolicy.load(copy, BOARD, rename_map=names)
    assert tuple(loaded.cameras) == tuple(BOARD.cameras)
    same = policy.sample(policy.prepare(raw), KEY).actions
    np.testing.assert_array_equal(loaded.sample(loaded.prepare(raw), KEY).actions, same)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("config.json", '"type": "smolvla"', '"type": "act"', "of type 'act': hooks are described"),
        ("config.json", '"max_state_dim": 8', '"max_state_dim": 9', "do not fit"),
        ("policy_preprocessor.json", '"registry_name"', '"class"', "code of a checkpoint"),
    ],
)
def test_what_is_no_such_policy_is_refused(copy, name, old, new, said):
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=said):
        load_policy(copy)


def test_a_file_that_is_missing_is_named(copy):
    (copy / "policy_postprocessor.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no policy_postprocessor\.json"):
        load_policy(copy)


def test_another_robot_is_refused(parts):
    with pytest.raises(ValueError, match=r"state is \(5,\), preset 'libero_tiny' has 8"):
        LeRobotPolicy(*parts, LIBERO_TINY)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("compile_model", True, "set it to False"),
        ("rtc_config", RTCConfig(enabled=True), "set rtc_config to None"),
        ("resize_imgs_with_padding", (32, 48), "takes square ones"),
    ],
)
def test_what_hooks_do_not_reach_is_refused(parts, monkeypatch, field, value, said):
    monkeypatch.setattr(parts[0].config, field, value)
    with pytest.raises(ValueError, match=said):
        LeRobotPolicy(*parts, BOARD)


def test_another_of_lerobots_policies_is_refused(parts):
    class Other:
        name, config = "act", ACTConfig()

    with pytest.raises(ValueError, match="a Other is a LeRobot policy of type 'act'"):
        LeRobotPolicy(Other(), *parts[1:], BOARD)


def test_what_an_observation_lacks_is_named(policy, raw):
    lacking = {k: v for k, v in raw[0].items() if "wrist" not in k}
    with pytest.raises(ValueError, match="no 'observation/wrist_image'"):
        policy.prepare([lacking])
    odd = {**raw[1], "observation/image": raw[1]["observation/image"][:9]}
    with pytest.raises(ValueError, match="several sizes"):
        policy.prepare([raw[0], odd])


def test_the_jax_loader_says_what_it_is(folder):
    with pytest.raises(ValueError, match=r"type 'smolvla', in PyTorch: open it with `interop\.ler"):
        PiPolicy.load(folder, BOARD)


def test_the_command_line_plays_a_folder(folder, tmp_path, capsys):
    short, tap = ("--episodes", "2", "--max-steps", "8"), "action.resid@-1/action/mean"
    run = str(tmp_path / "run")
    assert main(["collect", str(folder), "--out", run, *short, "--taps", tap]) == 0
    assert load_run(run).features(tap).values.shape[-1] == 32
    assert main(["eval", str(folder), "--out", str(tmp_path / "study"), *short]) == 0
    assert "bare" in capsys.readouterr().out


def test_on_the_board_it_acts_as_lerobot_does(policy):
    """Inference after inference, with the noise of the same keys."""
    env = BoardEnv()
    raw, _ = env.reset(seed=3)
    for i in range(2):
        key = jax.random.fold_in(KEY, i)
        chunk = policy.finish(policy.sample(policy.prepare([raw]), key), [raw])[0]
        noise = to_torch(policy.noise(key, 1))
        theirs = policy.policy.predict_action_chunk(policy.batch([raw]), noise=noise)
        np.testing.assert_array_equal(chunk, policy.postprocessor(theirs)[0].clip(-1, 1))
        for action in chunk[: policy.spec.execute_steps]:
            raw, *_ = env.step(action)


@pytest.mark.slow
def test_the_main_path(tmp_path, capsys):
    walk("board_smolvla", tmp_path, 16, capsys)

"""Folders as other tools write them are read right, or refused by the name of what differs."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from interop.openvla import checkpoints
from interop.openvla.config import OpenVLAConfig, named_dtype
from interop.openvla.folder import load_config
from interop.openvla.policy import OpenVLAPolicy
from interop.openvla.processing import PROMPT_V01, prompt_text
from mistjax.cli import main
from mistjax.policies.load import load_policy
from mistjax.policies.presets import PRESETS, preset_of

KEY = jax.random.key(0)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(scope="module")
def written(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "openvla"
    policy.save(folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A whole folder of one data set, to be changed."""
    return shutil.copytree(written, tmp_path / "openvla")


def change(file, **values):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in (content | values).items() if v != "absent"}))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "torch.float16"])
@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_dtype_is_read_under_either_name(folder, key, name):
    change(folder / "config.json", torch_dtype="absent")
    change(folder / "config.json", **{key: name})
    assert checkpoints.own_dtype(folder) == getattr(torch, name.removeprefix("torch."))


def test_without_a_name_the_dtype_is_the_weights_own(folder):
    change(folder / "config.json", torch_dtype="absent", dtype=None)
    assert checkpoints.own_dtype(folder) == torch.float32
    weights = load_file(folder / checkpoints.SINGLE)
    save_file({k: v.bfloat16() for k, v in weights.items()}, folder / checkpoints.SINGLE)
    assert checkpoints.own_dtype(folder) == torch.bfloat16
    first = next(iter(weights))
    save_file(
        {k: v.bfloat16() if k == first else v for k, v in weights.items()},
        folder / checkpoints.SINGLE,
    )
    with pytest.raises(ValueError, match=r"names no dtype, and its weights have \['bfloat16'"):
        checkpoints.own_dtype(folder)


@pytest.mark.parametrize(
    "raw", [{"dtype": "int8"}, {"dtype": {"": "float32"}}, {"torch_dtype": "float8_e4m3fn"}]
)
def test_another_dtype_is_refused(raw):
    with pytest.raises(ValueError, match="expected one of"):
        named_dtype(raw)
    with pytest.raises(ValueError, match="torch_dtype 'float32' and dtype 'bfloat16'"):
        named_dtype({"torch_dtype": "float32", "dtype": "bfloat16"})


SIZES = dict(
    hidden_size=96, num_attention_heads=4, num_hidden_layers=4, intermediate_size=256, vocab_size=40
)


def read_text_config(**settings):
    """What the installed transformers writes for a Llama, read back."""
    text = LlamaConfig(**SIZES, **settings).to_dict()
    return OpenVLAConfig.from_json({"text_config": text, "pad_to_multiple_of": 0, **SMALL}).text


SMALL = {"n_action_bins": 0, "empty_token": 4}


def test_the_base_of_the_rotary_embedding_is_read_where_transformers_5_writes_it():
    assert read_text_config(rope_theta=500.0).rope_theta == 500.0
    assert read_text_config().rope_theta == 10000.0
    old = {**SIZES, "rope_theta": 700.0, "pad_token_id": 0, "rope_scaling": None}
    raw = {"text_config": old, "pad_to_multiple_of": 0, **SMALL}
    assert OpenVLAConfig.from_json(raw).text.rope_theta == 700.0


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0},
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1] * 12, "long_factor": [1] * 12},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
        {"type": "linear", "factor": 2.0},
        {"full_attention": {"rope_type": "default"}},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
    ],
    ids=lambda scaling: scaling.get("rope_type", next(iter(scaling))),
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_another_rotary_embedding_is_refused_by_name(scaling, key):
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    with pytest.raises(ValueError, match=f"text_config.{key} asks for '{kind}'"):
        OpenVLAConfig.from_json({"text_config": {key: scaling}})


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config is given"),
        ({"arch_specifier": "no-align+gelu-mlp"}, "arch_specifier"),
        ({"use_fused_vision_backbone": False}, "use_fused_vision_backbone"),
        ({"image_resize_strategy": "letterbox"}, "image_resize_strategy"),
        ({"image_sizes": [384, 384]}, "image_sizes"),
        ({"timm_override_act_layers": [None, "quick_gelu"]}, "timm_override_act_layers"),
        ({"text_config": {"model_type": "mistral"}}, r"text_config\.model_type is 'mistral'"),
        ({"text_config": {"hidden_act": "gelu"}}, r"text_config\.hidden_act"),
        ({"text_config": {"mlp_bias": True}}, r"text_config\.mlp_bias"),
        ({"text_config": {"attention_bias": True}}, r"text_config\.attention_bias"),
        ({"text_config": {"tie_word_embeddings": True}}, r"text_config\.tie_word_embeddings"),
        ({"text_config": {"head_dim": 64}}, r"text_config\.head_dim is 64"),
        ({"text_config": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"text_config": {"rope_theta": -1.0}}, "rope_theta is -1.0"),
        ({"text_config": {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}}, "the bases"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000"),
        ({"text_config": {"hidden_size": 100}}, "hidden_size is 100"),
        ({"n_action_bins": 1}, "n_action_bins is 1"),
        ({"pad_to_multiple_of": 40000}, "n_action_bins is 256"),
        ({"empty_token": 40000}, "empty_token 40000"),
        ({"prompt": "go"}, "expected text around"),
        ({"prompt": "{instruction.__class__}"}, "expected text around"),
        ({"max_prompt_tokens": 10**9}, "max_prompt_tokens"),
        ({"oft": {"chunk": 0}}, r"oft\.chunk is 0"),
        ({"vision_towers": []}, "vision_towers are not two"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_this_port_does_not_do_is_refused_by_its_key(raw, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        OpenVLAConfig.from_json(raw)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla", **raw}))
    with pytest.raises(ValueError, match=r"config\.json"):
        OpenVLAConfig.load(tmp_path)


@pytest.mark.parametrize(
    "raw",
    [
        {"text_config": []},
        {"text_config": {"vocab_size": "32064"}},
        {"oft": {"chunk": 8, "state_dim": 2.5}},
        {"text_config": {"rope_parameters": "linear"}},
        {"vision_towers": [{}, {}]},
        {"vision_towers": [1, 2]},
        {"norm_stats": 3},
        {"oft": {"chunk": 8, "heads": 2}},
        {"model_type": "llava"},
        {"model_type": None},
    ],
    ids=str,
)
def test_a_configuration_that_is_none_is_refused_with_its_file(raw, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla", **raw}))
    with pytest.raises(ValueError, match=r"config\.json"):
        OpenVLAConfig.load(tmp_path)


def test_prompts_are_those_of_the_original_tools():
    assert OpenVLAConfig.from_json({"llm_backbone_id": "vicuna-v15-7b"}).prompt == PROMPT_V01
    said = "In: What action should the robot take to pick {x} up?\nOut:"
    assert prompt_text("Pick {X} up") == said


def test_an_observation_without_a_prompt_gets_the_presets_or_is_refused(policy, raw):
    silent = [{k: v for k, v in row.items() if k != "prompt"} for row in raw]
    with pytest.raises(ValueError, match="no 'prompt'"):
        policy.prepare(silent)
    preset = dataclasses.replace(policy.preset, default_prompt=raw[0]["prompt"])
    spoken = dataclasses.replace(policy, preset=preset).prepare(silent)
    expected = policy.prepare([{**row, "prompt": raw[0]["prompt"]} for row in raw])
    np.testing.assert_array_equal(spoken.tokenized_prompt, expected.tokenized_prompt)
    nested = [{"observation": {k.split("/")[1]: row[k] for k in row if "/" in k}} for row in silent]
    again = dataclasses.replace(policy, preset=preset).prepare(nested)
    jax.tree.map(np.testing.assert_array_equal, again, spoken)


@pytest.mark.parametrize(
    "file", ["config.json", "dataset_statistics.json", checkpoints.SINGLE, "tokenizer.model"]
)
def test_a_file_that_is_none_is_named(folder, preset, file):
    whole = (folder / file).read_bytes()
    spoilt = {"pointer": POINTER, "empty": b"", "cut off": whole[:100], "page": b"<!DOCTYPE html>"}
    if file.endswith("json"):
        spoilt["marked"] = b"\xef\xbb\xbf" + whole
    for content in spoilt.values():
        (folder / file).write_bytes(content)
        said = "is a Git LFS pointer" if content == POINTER else ""
        with pytest.raises(ValueError, match=file.replace(".", r"\.") + ".*" + said):
            OpenVLAPolicy.load(folder, preset)
    (folder / file).unlink()
    if file != "dataset_statistics.json":
        with pytest.raises(FileNotFoundError, match=r"config\.json|model\.safetensors|tokenizer"):
            OpenVLAPolicy.load(folder, preset)


@pytest.mark.parametrize(
    ("places", "kind", "said"),
    [
        ({"a": "../elsewhere.safetensors"}, ValueError, "names the file '../elsewhere"),
        ({"a": "/etc/passwd"}, ValueError, "names the file '/etc/passwd'"),
        ({"a": "sub/a.safetensors"}, ValueError, "expected safetensors files in this folder"),
        ({"a": "model.bin"}, ValueError, "names the file 'model.bin'"),
        ({"a": 3}, ValueError, "names the file '3'"),
        ([], ValueError, "names the file ''"),
        ({"a": "model-00002-of-00002.safetensors"}, FileNotFoundError, "the copy is incomplete"),
    ],
)
def test_an_index_names_files_of_its_folder_that_are_there(folder, places, kind, said):
    (folder / checkpoints.INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(kind, match=said):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("base_model.model.layers.0.lora_A.weight", torch.zeros(1), "a factor of LoRA"),
        ("ema_model.projector.fc1.weight", torch.zeros(1), "a moving average"),
        ("optimizer.state", torch.zeros(1), "of a training state"),
        ("projector.fc1.weight.absmax", torch.zeros(1), "of quantised weights"),
        ("projector.fc1.weight_packed", torch.zeros(1, dtype=torch.uint8), "of quantised weights"),
        ("other", torch.zeros(1), "1 surplus: other"),
        ("projector.fc1.bias", torch.full((1,), torch.nan), "misshapen"),
    ],
)
def test_weights_of_something_else_are_named(folder, name, values, said):
    weights = load_file(folder / checkpoints.SINGLE)
    save_file({**weights, name: values}, folder / checkpoints.SINGLE)
    with pytest.raises(ValueError, match=said):
        checkpoints.load(folder)


def test_weights_that_are_no_numbers_are_named(folder):
    weights = load_file(folder / checkpoints.SINGLE)
    weights["projector.fc1.bias"][3] = torch.inf
    save_file(weights, folder / checkpoints.SINGLE)
    with pytest.raises(ValueError, match=r"projector\.fc1\.bias holds NaN or Inf"):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("meta/info.json", "a LeRobot data set"),
        ("adapter_config.json", "a LoRA adapter"),
        ("params/_METADATA", "a checkpoint of openpi"),
        ("action_head--10000_checkpoint.pt", r"holds action_head--10000_checkpoint\.pt"),
        ("proprio_projector--10000_checkpoint.pt", "another policy would act"),
        ("vision_backbone--10000_checkpoint.pt", "vision_backbone--10000"),
        ("noisy_action_projector--10000_checkpoint.pt", "head that denoises"),
    ],
)
def test_a_folder_of_another_kind_is_told(folder, file, said):
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("{}")
    with pytest.raises(ValueError, match=said):
        load_config(folder)


def statistics(folder, **stats):
    (folder / "dataset_statistics.json").write_text(json.dumps(stats))
    change(folder / "config.json", norm_stats={})


def test_of_several_data_sets_one_is_named(folder, preset):
    only = json.loads((folder / "dataset_statistics.json").read_text())["lab_arm_a"]
    other = {"action": {**only["action"], "q99": [0.5] * 6 + [1.0]}}
    statistics(folder, a=only, b=other)
    with pytest.raises(ValueError, match=r"one of \['a', 'b'\].*--unnorm-key"):
        OpenVLAPolicy.load(folder, preset)
    with pytest.raises(ValueError, match=r"unnorm_key 'c': the checkpoint has"):
        OpenVLAPolicy.load(folder, preset, unnorm_key="c")
    policies = [OpenVLAPolicy.load(folder, preset, unnorm_key=key) for key in "ab"]
    highest = [policy._to_env(np.ones(7))[0] for policy in policies]
    assert highest == [pytest.approx(0.028), pytest.approx(0.5)]
    assert policies[0].spec.fingerprint != policies[1].spec.fingerprint
    change(folder / "config.json", norm_stats={"a": only})
    (folder / "dataset_statistics.json").write_text(json.dumps({"b": other}))
    assert OpenVLAPolicy.load(folder, preset).unnorm_key == "b"  # what it was fine-tuned on


def test_naming_the_only_data_set_changes_nothing(folder, preset, policy):
    named = OpenVLAPolicy.load(folder, preset, unnorm_key="lab_arm_a")
    assert named.spec.fingerprint == OpenVLAPolicy.load(folder, preset).spec.fingerprint


def test_the_command_line_takes_an_unnorm_key_and_says_who_has_none(tmp_path, capsys):
    command = ["collect", "checkpoints/board_pi0", "--out", str(tmp_path / "run")]
    assert main([*command, "--unnorm-key", "board"]) == 2
    assert "leave unnorm_key 'board' out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ({"q99": [1.0] * 6}, "another robot, or of another unnorm_key"),
        ({"q01": [float(i) for i in range(4, 11)]}, "which no data have"),
        ({"q01": ["x"] * 7}, "something other than numbers"),
        ({"q01": [5.0] * 7, "q99": [6.0] * 7}, "around 5.5, and preset 'lab' takes -1 to 1"),
        ({"mask": [True]}, r"mask has the shape \(1,\)"),
        ({"q01": None}, "something other than numbers|shape"),
    ],
)
def test_statistics_of_another_robot_or_of_no_data_are_refused(folder, preset, action, said):
    stats = json.loads((folder / "dataset_statistics.json").read_text())["lab_arm_a"]["action"]
    statistics(folder, lab={"action": stats | action})
    with pytest.raises(ValueError, match=said):
        OpenVLAPolicy.load(folder, preset)


def test_a_dimension_that_never_changed_is_warned_of(folder, preset):
    stats = json.loads((folder / "dataset_statistics.json").read_text())["lab_arm_a"]["action"]
    low = [*stats["q01"][:2], 0.0385, *stats["q01"][3:]]
    statistics(folder, lab={"action": stats | {"q01": low}})
    with pytest.warns(UserWarning, match=r"'lab': dimension \[2\] never changed"):
        OpenVLAPolicy.load(folder, preset)


@pytest.mark.parametrize("name", ["openvla_libero", "pi0_libero", "pi05_libero", "pi0_fast_libero"])
def test_on_libero_the_gripper_and_the_pictures_follow_its_conventions(folder, name):
    policy = load_policy(folder, name)
    zeros = np.zeros((1, 1, 6))
    chunks = [np.concatenate([zeros, np.full((1, 1, 1), g)], axis=-1) for g in (1.0, 0.0, 0.9, 0.2)]
    ends = [policy._to_env(chunk)[0, 0, 6] for chunk in chunks]
    assert ends == [-1, 1, -1, 1]  # opened, closed: LIBERO's + closes
    steps = [getattr(step, "func", step).__name__ for step in policy.reader.image_steps]
    assert steps == ["jpeg_roundtrip", "lanczos3", "center_crop"]
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[:2] = picture[-2:] = picture[:, :2] = picture[:, -2:] = 255  # cropped away
    assert policy.reader._picture({"image": picture}, "image", 224).max() < -0.9


def test_a_gripper_of_unknown_sign_is_refused_on_libero(folder, preset):
    stats = json.loads((folder / "dataset_statistics.json").read_text())["lab_arm_a"]["action"]
    ends = {"q01": [*stats["q01"][:6], -1.0], "q99": [*stats["q99"][:6], 1.0], "mask": [True] * 7}
    statistics(folder, lab={"action": stats | ends})
    with pytest.raises(ValueError, match="which sign opens it cannot be known"):
        load_policy(folder, "openvla_libero")
    assert load_policy(folder, "libero_tiny").finish_steps == ()  # trained here, as executed
    own = OpenVLAPolicy.load(folder, PRESETS["openvla_libero"], finish_steps=())
    assert own.finish_steps == ()


def test_what_is_done_to_pictures_and_actions_is_part_of_the_policy(folder, preset):
    libero = [
        load_policy(folder, name).spec.fingerprint for name in ("openvla_libero", "pi0_libero")
    ]
    plain = OpenVLAPolicy.load(folder, preset).spec.fingerprint
    assert libero[0] == libero[1] != plain


def test_the_robot_of_an_openvla_is_found_by_what_it_was_tuned_on(folder):
    assert preset_of(folder, folder) == "board"
    statistics(folder, libero_goal_no_noops={})
    assert preset_of(folder, folder) == "openvla_libero"


def test_a_preset_in_the_units_of_other_models_is_refused(folder):
    with pytest.raises(ValueError, match="converts to the units of openpi's models"):
        load_policy(folder, "pi0_aloha")


def test_numbers_do_not_depend_on_double_precision_in_jax(policy, raw):
    def act(key):
        return policy.finish(policy.sample(policy.prepare(raw), key), raw)

    plain = act(KEY)
    with jax.enable_x64():
        np.testing.assert_array_equal(act(jax.random.key(np.int64(7))), plain)

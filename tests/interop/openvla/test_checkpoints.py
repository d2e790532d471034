import json

import pytest
import torch
from safetensors.torch import save_file

from interop.openvla import checkpoints
from interop.openvla.config import OpenVLAConfig


def test_all_982_published_names_and_shapes_are_the_models(goldens):
    published = json.loads((goldens / "openvla7b_keys.json").read_text())
    model = checkpoints.empty_model(OpenVLAConfig.from_json({}))
    assert len(published) == 982
    checkpoints.check_names(
        checkpoints.shapes_of(model), {name: tuple(shape) for name, shape in published.items()}
    )
    assert sum(p.numel() for p in model.parameters()) == 7_541_237_184
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_saved_model_loads_again_as_it_was(model, tmp_path):
    checkpoints.save(model, tmp_path)
    again = checkpoints.load(tmp_path)
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert torch.equal(
        again.language_model.model.rotary_emb.inv_freq,
        model.language_model.model.rotary_emb.inv_freq,
    )


def test_a_sharded_folder_in_bfloat16_loads(model, tmp_path):
    checkpoints.save(model, tmp_path)
    (tmp_path / checkpoints.SINGLE).unlink()
    weights = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, tmp_path / file)
    where = {name: file for file, held in shards.items() for name in held}
    (tmp_path / checkpoints.INDEX).write_text(json.dumps({"weight_map": where}))
    loaded = checkpoints.load(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(value, weights[k]) for k, value in loaded.state_dict().items())


def test_dataset_statistics_come_from_their_own_file_first(model, tmp_path):
    checkpoints.save(model, tmp_path)
    (tmp_path / "dataset_statistics.json").write_text('{"libero_goal": {"action": {}}}')
    stats = OpenVLAConfig.load(tmp_path).norm_stats
    assert set(stats) == {"libero_goal", "lab_arm_a"}


def test_a_wrong_tree_names_what_is_missing_surplus_and_misshapen():
    with pytest.raises(ValueError, match=r"1 missing: b.*1 surplus: c.*1 misshapen: a is \(3,\)"):
        checkpoints.check_names({"a": (2,), "b": (1,)}, {"a": (3,), "c": (1,)})


def test_a_folder_without_weights_is_refused(model, tmp_path):
    checkpoints.save(model, tmp_path)
    (tmp_path / checkpoints.SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match=r"neither"):
        checkpoints.load(tmp_path)


def test_a_llama_with_other_features_is_refused():
    with pytest.raises(ValueError, match="rope_scaling"):
        OpenVLAConfig.from_json({"text_config": {"rope_scaling": {"type": "linear"}}})


def test_unknown_towers_are_refused():
    with pytest.raises(ValueError, match="timm_model_ids"):
        OpenVLAConfig.from_json({"timm_model_ids": ["resnet50", "clip"]})

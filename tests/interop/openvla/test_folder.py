import json

import jax
import numpy as np
import pytest
import torch

from interop.openvla import checkpoints, oft
from interop.openvla.config import OFTConfig
from interop.openvla.decoders import ChunkDecoder
from interop.openvla.model import OpenVLA
from interop.openvla.policy import OpenVLAPolicy
from interop.openvla.reader import Reader
from mistjax.policies.load import read_policy

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def oft_policy(model, tokenizer, preset):
    """The small recorded network with OFT's parts, which read both cameras and the state."""
    import dataclasses

    (name, data), *_ = model.config.norm_stats.items()
    stats = {"q01": [-1.0] * 3, "q99": [1.0] * 3}
    config = dataclasses.replace(
        model.config,
        norm_stats={name: {**data, "proprio": stats}},
        oft=OFTConfig(chunk=2, state_dim=3),
        prompt="do {instruction}",
        max_prompt_tokens=tokenizer.max_tokens,
    )
    own = OpenVLA.__new__(OpenVLA)
    own.__dict__.update(model.__dict__ | {"config": config})
    torch.manual_seed(1)
    parts = oft.OFTParts.empty(config, action_dim=7)
    decoder = ChunkDecoder(own, parts)
    for module in decoder.extra_modules:
        module.requires_grad_(False)
    reader = Reader(tokenizer, preset.cameras, (config.resize,), config.prompt)
    return OpenVLAPolicy(own, decoder, reader, preset)


@pytest.fixture
def folder(oft_policy, tmp_path):
    oft_policy.save(tmp_path, shard_bytes=2_000_000)
    return tmp_path


def test_an_oft_folder_is_read_as_the_policy_that_was_saved(oft_policy, folder, preset, raw):
    again = read_policy(folder, preset)
    assert again.spec.fingerprint == oft_policy.spec.fingerprint
    assert again.num_parameters == oft_policy.num_parameters
    samples = [p.sample(p.prepare(raw), KEY) for p in (again, oft_policy)]
    np.testing.assert_array_equal(*(sample.actions for sample in samples))


def test_weights_beyond_the_limit_become_shards_with_an_index(oft_policy, folder):
    index = json.loads((folder / checkpoints.INDEX).read_text())
    expected = oft_policy.model.state_dict()
    assert index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert files[-1] == f"model-{len(files):05d}-of-{len(files):05d}.safetensors"
    read = checkpoints.load(folder).state_dict()
    assert all(torch.equal(read[name], value) for name, value in expected.items())


def test_saving_again_leaves_no_weights_of_before(oft_policy, folder):
    oft_policy.save(folder)
    assert [file.name for file in folder.glob("model*")] == [checkpoints.SINGLE]


def test_the_dtype_is_the_one_that_the_folder_names(oft_policy, folder, preset):
    config = json.loads((folder / "config.json").read_text())
    assert config["torch_dtype"] == "float32"
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    assert OpenVLAPolicy.load(folder, preset).model.dtype == torch.bfloat16
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "int8"}))
    with pytest.raises(ValueError, match="torch_dtype 'int8'"):
        OpenVLAPolicy.load(folder, preset)


def test_a_folder_without_its_head_is_refused(folder, preset):
    (folder / "action_head.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="action_head"):
        OpenVLAPolicy.load(folder, preset)


def test_a_token_by_token_model_has_no_parts_of_oft(model):
    with pytest.raises(ValueError, match="token by token"):
        oft.OFTParts.empty(model.config, action_dim=7)

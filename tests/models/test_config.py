"""Configurations survive JSON and refuse what cannot work."""

import dataclasses
import json

import pytest

from mistjax.models.config import PI0, PI05, TINY, TINY_FAST, FastConfig, GemmaConfig, Pi0Config


@pytest.mark.parametrize("config", [PI0, PI05, TINY], ids=["pi0", "pi05", "tiny"])
def test_a_configuration_survives_json(config):
    assert Pi0Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_unknown_key_is_named():
    with pytest.raises(ValueError, match=r"\['horizon'\]"):
        Pi0Config.from_json({"horizon": 3})


def parts(config):
    """Paths of all numbers of a configuration."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from ((name, *path) for path in parts(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield (name,)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "3", None, True, [1]])
@pytest.mark.parametrize("config", [TINY, TINY_FAST], ids=["pi0", "fast"])
def test_a_size_that_is_no_count_is_refused_by_name(config, wrong):
    for *outer, name in parts(config.to_json()):
        if name == "decoding_gap" and wrong == 0:
            continue
        changed = json.loads(json.dumps(config.to_json()))
        (changed[outer[0]] if outer else changed)[name] = wrong
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            type(config).from_json(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float31"}, "dtype is 'float31'"),
        ({"dtype": None}, "dtype None"),
        ({"image_keys": []}, "expected cameras"),
        ({"image_keys": ["a", "a"]}, "each once"),
        ({"image_keys": "base"}, "image_keys 'base'"),
        ({"image_size": 17}, "do not fill"),
        ({"pi05": 1}, "pi05 1"),
        ({"vlm": 3}, "vlm is 3"),
        ({"vlm": {"width": 3}}, r"vlm lacks \['depth'"),
        ({"vlm": {**TINY.to_json()["vlm"], "num_kv_heads": 3}}, "multiple of num_kv_heads"),
        ({"vlm": {**TINY.to_json()["vlm"], "head_dim": 7}}, "even"),
        ({"siglip": {**TINY.to_json()["siglip"], "num_heads": 5}}, "multiple of num_heads"),
        ({"siglip": {**TINY.to_json()["siglip"], "patch_size": [8]}}, "patch_size"),
        ({"siglip": {**TINY.to_json()["siglip"], "patch_size": [8, 0]}}, "patch_size"),
    ],
)
def test_a_configuration_that_no_model_has_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Pi0Config.from_json({**json.loads(json.dumps(TINY.to_json())), **change})


def test_a_configuration_of_fast_survives_json():
    assert FastConfig.from_json(json.loads(json.dumps(TINY_FAST.to_json()))) == TINY_FAST


def test_experts_that_cannot_share_attention_are_refused():
    with pytest.raises(ValueError, match=r"differ in \['depth', 'head_dim'\]"):
        dataclasses.replace(TINY, action_expert=GemmaConfig(16, 4, 32, 4, 1, head_dim=4))


def test_published_sizes_give_the_published_token_counts():
    assert PI0.num_image_tokens == 3 * 256
    assert (PI0.prefix_len, PI05.prefix_len) == (816, 968)

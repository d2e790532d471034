"""Configurations survive JSON and refuse what cannot work."""

import dataclasses
import json

import pytest

from mistjax.models.config import PI0, PI05, TINY, GemmaConfig, Pi0Config


@pytest.mark.parametrize("config", [PI0, PI05, TINY], ids=["pi0", "pi05", "tiny"])
def test_a_configuration_survives_json(config):
    assert Pi0Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_unknown_key_is_named():
    with pytest.raises(ValueError, match=r"\['horizon'\]"):
        Pi0Config.from_json({"horizon": 3})


def test_experts_that_cannot_share_attention_are_refused():
    with pytest.raises(ValueError, match=r"differ in \['depth', 'head_dim'\]"):
        dataclasses.replace(TINY, action_expert=GemmaConfig(16, 4, 32, 4, 1, head_dim=4))


def test_published_sizes_give_the_published_token_counts():
    assert PI0.num_image_tokens == 3 * 256
    assert (PI0.prefix_len, PI05.prefix_len) == (816, 968)

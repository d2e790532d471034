import numpy as np
import pytest
import torch

from interop.openvla import generation
from interop.openvla.hooks import Hooks, token_layouts


@pytest.fixture
def tower_calls(model):
    calls = []
    handle = model.vision_backbone.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def test_cached_decoding_sees_the_picture_exactly_once(recordings, tower_calls):
    recordings.decode(0, 0)
    assert len(tower_calls) == 1


@torch.no_grad()
def test_cached_tokens_are_those_of_full_passes_without_a_cache(recordings, model):
    cached = recordings.decode(1, 1)
    ids = torch.cat([recordings.ids(1), torch.tensor([[model.config.empty_token]])], dim=1)
    for token, logits in zip(cached.tokens[0], cached.logits[0], strict=True):
        last = model(ids, recordings.pixels(1))[0, -1]
        assert last.argmax() == token
        torch.testing.assert_close(logits, last, atol=2e-5, rtol=0)
        ids = torch.cat([ids, token[None, None]], dim=1)


@torch.no_grad()
def test_a_batch_of_prompts_of_different_length_decodes_as_each_does_alone(
    recordings, model, goldens
):
    golden = np.load(goldens / "generate.npz")
    prompts = [recordings.ids(i)[0] for i in (0, 1)]
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=32000)
    mask = torch.stack([torch.arange(ids.shape[1]) < len(p) for p in prompts])
    with Hooks(model, token_layouts(256, ("camera",), ids.shape[1])) as hooks:
        inputs = generation.Inputs(
            model.embed_tokens(ids),
            mask,
            torch.cat([recordings.pixels(0), recordings.pixels(1)]),
            torch.ones(2, 1, dtype=torch.bool),
            torch.zeros(2, 0),
        )
        prefix = generation.prefill(model, generation.embed(model, inputs, hooks), hooks)
        decoded = generation.decode(model, prefix, 7, hooks)
    for i in (0, 1):
        np.testing.assert_array_equal(decoded.tokens[i], golden["tokens"][i, i])


@torch.no_grad()
def test_a_token_that_is_no_action_is_reported(recordings, model):
    odd, usual = recordings.decode(1, 1), recordings.decode(0, 0)
    for decoded, expected in ((odd, False), (usual, True)):
        report = generation.token_report(model, decoded.tokens, decoded.logits)
        assert report["decode_ok"].item() is expected


@torch.no_grad()
def test_expected_actions_lie_between_the_bins(recordings, model):
    logits = recordings.decode(0, 0).logits
    sharp = generation.expected_actions(model, logits * 1e4)
    greedy = generation.greedy_actions(
        model, generation.bin_logits(model, logits).argmax(-1) + 31744
    )
    torch.testing.assert_close(sharp, greedy)

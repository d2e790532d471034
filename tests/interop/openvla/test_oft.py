import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interop.convert_pt import convert, write
from interop.openvla import generation, oft
from interop.openvla.decoders import ChunkDecoder
from interop.openvla.hooks import Hooks, token_layouts
from interop.openvla.model import OpenVLA
from interop.openvla.oft_components import load_component
from interop.openvla.policy import OpenVLAPolicy
from interop.openvla.reader import Reader
from mistjax.hooks import Add, Tap

KEY = jax.random.key(0)
CHUNK = 2


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    head, proprio = oft.L1Head(64, 7), oft.ProprioProjector(64, 3)
    return oft.OFTParts(head.requires_grad_(False), CHUNK, proprio.requires_grad_(False))


@pytest.fixture(scope="module")
def chunk_policy(model, parts, tokenizer, preset):
    stats = {"q01": [-1.0] * 3, "q99": [1.0] * 3}
    (name, data), *_ = model.config.norm_stats.items()
    config = dataclasses.replace(model.config, norm_stats={name: {**data, "proprio": stats}})
    own = OpenVLA.__new__(OpenVLA)
    own.__dict__.update(model.__dict__ | {"config": config})
    reader = Reader(tokenizer, preset.cameras)
    return OpenVLAPolicy(own, ChunkDecoder(own, parts), reader, preset, name="oft")


def inputs(model, valid=5):
    ids = torch.arange(5)[None] + 400
    pixels = torch.linspace(-1, 1, 12 * 224 * 224).reshape(1, 12, 224, 224)
    mask = torch.arange(5)[None] < valid
    state = torch.tensor([[0.1, 0.2, 0.3]])
    return generation.Inputs(
        model.embed_tokens(ids), mask, pixels, torch.ones(1, 2, dtype=torch.bool), state
    )


def layouts():
    return token_layouts(256, ("a", "b"), 5, extra=1, action_tokens=7 * CHUNK)


@torch.no_grad()
def test_attention_sees_in_both_directions_and_no_padding(model, parts):
    with Hooks(model, layouts()) as hooks:
        embedded = oft.embed(model, parts, inputs(model, valid=4), hooks)
        before = oft.hidden_states(model, parts, embedded, hooks)
        changed = embedded.embeds.clone()
        changed[:, -1] += 1.0
        padding = generation.Embedded(changed, embedded.valid)
        after = oft.hidden_states(model, parts, padding, hooks)
        real = torch.arange(before.shape[1]) != embedded.valid.shape[1] - 1
        assert torch.equal(after[:, real], before[:, real])
    tap = Tap("vlm.resid", layers=(1,))
    first = []
    for strength in (0.0, 1.0):
        edit = Add("action.resid", strength=strength, vector=jnp.ones((4, 64)))
        with Hooks(model, layouts(), [tap], [edit]) as hooks:
            oft.hidden_states(model, parts, embedded, hooks)
            first.append(hooks.values()[str(tap)][0, 0, 0])
    assert not torch.equal(*first), "the first token must see the actions' tokens"


@torch.no_grad()
def test_the_sequence_is_bos_patches_state_text(model, parts):
    given = inputs(model)
    with Hooks(model, layouts()) as hooks:
        embedded = oft.embed(model, parts, given, hooks)
    assert torch.equal(embedded.embeds[:, 0], given.text[:, 0])
    assert torch.equal(embedded.embeds[:, 513], parts.proprio(given.state))
    assert torch.equal(embedded.embeds[:, 514:], given.text[:, 1:])


@torch.no_grad()
def test_each_picture_gives_the_patches_that_it_gives_alone(model):
    pixels = inputs(model).pixel_values
    both = model.embed_images(pixels)
    alone = [model.embed_images(part) for part in pixels.split(6, dim=1)]
    torch.testing.assert_close(both, torch.cat(alone, dim=1), atol=1e-5, rtol=0)


def test_the_head_reads_one_action_from_the_states_of_its_own_numbers(parts):
    hidden = torch.randn(1, 7 * CHUNK, 64)
    actions = parts.head(hidden)
    hidden[:, 7:] += 1.0
    assert torch.equal(parts.head(hidden)[:, 0], actions[:, 0])
    assert not torch.equal(parts.head(hidden)[:, 1], actions[:, 1])


def test_the_policy_gives_chunks_and_gradients_to_the_state(chunk_policy, raw):
    obs = chunk_policy.prepare(raw)
    sample = chunk_policy.sample(obs, KEY, taps=(Tap("action.resid", tokens="last"),))
    assert sample.actions.shape == (2, CHUNK, 7)
    assert sample.taps["action.resid@all/last/tokens"].shape == (1, 4, 2, 1, 64)

    def score(state):
        here = dataclasses.replace(obs, state=state)
        return chunk_policy.objective(here, KEY, lambda s: s.actions.sum((1, 2))).sum()

    state = jnp.asarray(obs.state)
    grad = jax.grad(score)(state)
    step = 1e-2 * grad / jnp.linalg.norm(grad)
    difference = score(state + step) - score(state - step)
    np.testing.assert_allclose(2 * jnp.sum(grad * step), difference, rtol=0.05)
    both = jax.vmap(jax.grad(score))(jnp.stack([state, state + step]))  # one call of the network
    np.testing.assert_allclose(both[0], grad, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(both[1], jax.grad(score)(state + step), rtol=1e-3, atol=1e-5)


def test_published_names_are_those_of_the_head(parts):
    names = set(parts.head.state_dict())
    assert {"model.layer_norm1.weight", "model.fc1.weight", "model.fc2.bias"} <= names
    assert "model.mlp_resnet_blocks.1.ffn.1.weight" in names


def test_a_component_is_converted_elsewhere_and_loads(parts, tmp_path):
    published, file = tmp_path / "action_head--1_checkpoint.pt", tmp_path / "head.safetensors"
    torch.save({f"module.{k}": v for k, v in parts.head.state_dict().items()}, published)
    convert(published, file)
    head = oft.L1Head(64, 7)
    load_component(head, file)
    assert torch.equal(head.model.fc1.weight, parts.head.model.fc1.weight)
    assert set(load_file(file)) == {f"module.{name}" for name in head.state_dict()}


class Evil:
    def __reduce__(self):
        return print, ("run",)


def unconvertible(parts):
    """Name -> what `torch.save` is given, and what is said about it."""
    state = parts.head.state_dict()
    return {
        "code": ({"a": Evil()}, "could not be converted"),
        "trees": ({"model": state, "ema": state, "step": 3}, "'model' is a tree of its own"),
        "a number": ({"step": 3}, "'step' is a int"),
        "a list": ([torch.ones(2)], "it holds a list"),
        "sparse": ({"a": torch.eye(3).to_sparse()}, "sparse or quantised"),
        "expanded": ({"a": torch.ones(1).expand(10**9)}, "its tensors take 3814 MiB"),
        "nothing": (b"", "is empty"),
        "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        "garbage": (b"garbage", "reader of weights refuses it"),
    }


def test_what_is_no_dictionary_of_tensors_is_not_converted(parts, tmp_path):
    target = tmp_path / "out.safetensors"
    for name, (content, said) in unconvertible(parts).items():
        source = tmp_path / f"{name}.pt"
        if isinstance(content, bytes):
            source.write_bytes(content)
        else:
            torch.save(content, source)
        with pytest.raises(ValueError, match=said):
            write(str(source), str(target)) if name != "code" else convert(source, target)
        assert not target.exists()
    (tmp_path / "link.pt").symlink_to(tmp_path / "a number.pt")
    with pytest.raises(ValueError, match="symbolic link"):
        write(str(tmp_path / "link.pt"), str(target))
    with pytest.raises(FileNotFoundError, match=r"other\.pt"):
        convert(tmp_path / "other.pt", target)


@torch.no_grad()
def test_film_of_the_folder_that_neither_scales_nor_shifts_changes_nothing(
    model, chunk_policy, preset, tmp_path
):
    chunk_policy.save(tmp_path)
    weights = {}
    for name, value in model.vision_backbone.state_dict().items():
        tower, inside, rest = name.partition(".blocks.")
        index, _, inner = rest.partition(".")
        weights[f"{tower}.blocks.{index}.block.{inner}" if inside else name] = value
    for tower, width, depth in (("featurizer", 32, 4), ("fused_featurizer", 48, 3)):
        for block, part in itertools.product(range(depth), ("scale", "shift")):
            prefix = f"{tower}.blocks.{block}.{part}"
            weights[f"{prefix}.weight"] = torch.zeros(width, 64)
            weights[f"{prefix}.bias"] = torch.zeros(width)
    found = {f"vision_backbone.{k}": v.contiguous().clone() for k, v in weights.items()}
    save_file(found, tmp_path / "vision_backbone.safetensors")
    with pytest.raises(ValueError, match='"film": true'):
        OpenVLAPolicy.load(tmp_path, preset)
    config = json.loads((tmp_path / "config.json").read_text()) | {"film": True}
    config["oft"] = {"chunk": CHUNK, "state_dim": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    film = OpenVLAPolicy.load(tmp_path, preset).model
    pixels = inputs(model).pixel_values
    instruction = torch.ones(1, 64)
    torch.testing.assert_close(film.embed_images(pixels, instruction), model.embed_images(pixels))
    film.vision_backbone.featurizer.blocks[0].shift.weight += 0.1
    assert not torch.allclose(film.embed_images(pixels, instruction), model.embed_images(pixels))
    with pytest.raises(ValueError, match="film is True"):
        film.embed_images(pixels)

"""Checkpoints in openpi's layout load, and those that do not fit say why."""

import dataclasses
import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import sentencepiece
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mistjax.models.checkpoints import (
    fingerprint,
    leaf_names,
    load_assets,
    load_config,
    load_params,
    load_tokenizer,
    refuse_foreign,
    save_checkpoint,
)
from mistjax.models.config import TINY, Pi0Config
from mistjax.models.normalize import NormStats, save_norm_stats
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer

STATS = {
    "state": NormStats.of(np.arange(20.0).reshape(10, 2)),
    "actions": NormStats.of(np.arange(30.0).reshape(10, 3)),
}


def params():
    return {
        "layers": {"w": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones((3,))},
        "head": {"kernel": jnp.full((4, 2), 0.5)},
    }


def shapes(tree):
    return jax.eval_shape(lambda: tree)


def write_openpi(folder, tree, *, value=False):
    """What openpi's own code leaves on disk."""
    if value:
        tree = jax.tree.map(lambda leaf: {"value": leaf}, tree)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", {"params": tree})


@pytest.fixture
def tokenizer(tmp_path):
    train_word_tokenizer(["place the stone"], [], tmp_path / "words.model")
    return PromptTokenizer.from_file(tmp_path / "words.model", 8)


@pytest.mark.parametrize("value", [False, True], ids=["plain", "with trailing value"])
def test_parameters_load_as_they_were_saved(tmp_path, value):
    write_openpi(tmp_path, params(), value=value)
    loaded = load_params(tmp_path, shapes(params()))
    assert jax.tree.structure(loaded) == jax.tree.structure(params())
    jax.tree.map(np.testing.assert_array_equal, loaded, params())


@pytest.mark.slow
def test_a_save_that_dies_leaves_no_checkpoint_or_a_whole_one(
    tmp_path, tokenizer, kill_at_every_call
):
    folder, found = tmp_path / "policy", []

    def save():
        about = {"config": {"a": 1}, "norm_stats": STATS, "asset_id": "robot"}
        save_checkpoint(folder, params(), **about, tokenizer=tokenizer)

    for _ in kill_at_every_call(save):
        found.append((folder / "params").exists())
        if found[-1]:
            loaded = load_params(folder, shapes(params()))
            jax.tree.map(np.testing.assert_array_equal, loaded, params())
            assert load_config(folder) == {"a": 1} and load_assets(folder).keys() == STATS.keys()
            assert load_tokenizer(folder, 8).serialized == tokenizer.serialized
            shutil.rmtree(folder)
    assert found == sorted(found) and set(found) == {True, False}
    assert sorted(f.name for f in folder.iterdir()) == ["assets", "config.json", "params"]


def test_parameters_load_in_the_dtype_asked_for(tmp_path):
    write_openpi(tmp_path, params())
    loaded = load_params(tmp_path, shapes(params()), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(
        loaded["layers"]["w"].astype(jnp.float32), params()["layers"]["w"]
    )


def test_parameters_written_by_two_devices_load_onto_one(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
    split = NamedSharding(mesh, PartitionSpec(None, "d"))
    tree = {"w": jax.device_put(jnp.arange(8.0).reshape(2, 4), split)}
    write_openpi(tmp_path, tree)
    loaded = load_params(tmp_path, shapes({"w": jnp.zeros((2, 4))}))
    assert loaded["w"].devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(loaded["w"], tree["w"])


def test_a_wrong_tree_is_one_error_with_missing_surplus_and_misshapen_leaves(tmp_path):
    write_openpi(tmp_path, params())
    expected = shapes(
        {
            "layers": {"w": jnp.zeros((3, 5)), "b": jnp.zeros((3,))},
            "tail": {"kernel": jnp.zeros((4, 2))},
        }
    )
    with pytest.raises(ValueError) as caught:
        load_params(tmp_path, expected)
    message = str(caught.value)
    assert "missing: tail/kernel [4, 2]" in message
    assert "surplus: head/kernel [4, 2]" in message
    assert "misshapen: layers/w: checkpoint [3, 4], model [3, 5]" in message
    assert "layers/b" not in message


def test_a_very_wrong_tree_is_still_a_short_error(tmp_path):
    write_openpi(tmp_path, params())
    expected = shapes({f"layer_{i}": jnp.zeros(1) for i in range(300)})
    with pytest.raises(ValueError, match="missing: and 290 more"):
        load_params(tmp_path, expected)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_openpi(folder, params())
    return folder


@pytest.mark.parametrize("how", ["gone", "half"])
def test_parameters_with_a_damaged_file_are_whole_or_refused(written, tmp_path, how):
    refused = 0
    files = sorted(p for p in (written / "params").rglob("*") if p.is_file())
    for number, path in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(written, folder)
        damaged = folder / path.relative_to(written)
        content = damaged.read_bytes()
        damaged.unlink()
        if how != "gone":
            damaged.write_bytes(content[: len(content) // 2])
        try:
            assert leaf_names(folder) == {"layers/w", "layers/b", "head/kernel"}
            loaded = load_params(folder, shapes(params()))
        except (FileNotFoundError, ValueError) as error:
            assert f"{folder}/params" in str(error) and "copy it again" in str(error)
            refused += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, loaded, params())
    assert refused >= 3


def test_an_empty_folder_of_parameters_is_incomplete(tmp_path):
    (tmp_path / "params").mkdir()
    with pytest.raises(FileNotFoundError, match="no _METADATA: it is incomplete"):
        load_params(tmp_path, shapes(params()))


def save_state(folder, **trees):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, trees)


def test_any_other_tree_than_parameters_is_refused_in_short(tmp_path):
    save_state(tmp_path / "params", layers=params())
    with pytest.raises(
        ValueError, match=r"\['layers'\]: expected one tree.*if these are"
    ) as caught:
        load_params(tmp_path, shapes(params()))
    assert len(str(caught.value)) < 400


def test_of_a_state_of_training_the_average_is_taken_and_said_or_another_tree_chosen(tmp_path):
    average, last = params(), jax.tree.map(lambda x: x + 1, params())
    in_one, apart = tmp_path / "in_one", tmp_path / "apart"
    adam = {"mu": average, "count": jnp.ones((), jnp.int32)}
    beside = {"opt_state": adam, "step": jnp.ones(())}
    save_state(in_one / "params", params=last, ema_params=average, **beside)
    save_state(apart / "params", params=average)  # as openpi saves it
    with_value = jax.tree.map(lambda leaf: {"value": leaf}, last)
    save_state(apart / "train_state", params=with_value, **beside)
    for folder in (in_one, apart):
        with pytest.warns(UserWarning, match="its ema_params.* are loaded.*tree 'params'"):
            loaded = load_params(folder, shapes(params()))
        jax.tree.map(np.testing.assert_array_equal, loaded, average)
        for tree, expected in (("ema_params", average), ("params", last)):
            loaded = load_params(folder, shapes(params()), tree=tree)
            jax.tree.map(np.testing.assert_array_equal, loaded, expected)
        with pytest.raises(ValueError, match="no tree 'opt_state': it has ema_params, params"):
            load_params(folder, shapes(params()), tree="opt_state")


def test_a_state_of_training_without_an_average_has_one_tree(tmp_path):
    save_state(tmp_path / "params", params=params(), opt_state={"mu": params()}, step=jnp.ones(()))
    loaded = load_params(tmp_path, shapes(params()))
    jax.tree.map(np.testing.assert_array_equal, loaded, params())


def test_lora_factors_are_merged_as_openpi_applies_them_and_this_is_said(tmp_path):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    layers, heads, width, size, rank, hidden = 2, 3, 5, 4, 2, 6
    q = {"w": normal(layers, heads, width, size)}
    q |= {"lora_a": normal(layers, heads, width, rank), "lora_b": normal(layers, heads, rank, size)}
    out = {"w": normal(layers, heads, size, width)}
    out |= {"lora_a": normal(layers, heads, size, rank)}
    out |= {"lora_b": normal(layers, heads, rank, width)}
    down = {"linear": normal(layers, hidden, width)}
    down |= {"linear_lora_a": normal(layers, hidden, rank)}
    down |= {"linear_lora_b": normal(layers, rank, width)}
    write_openpi(tmp_path, {"attn": {"q_einsum": q, "attn_vec_einsum": out}, "mlp": down})
    bare = {
        "attn": {"q_einsum": {"w": q["w"]}, "attn_vec_einsum": {"w": out["w"]}},
        "mlp": {"linear": down["linear"]},
    }
    with pytest.warns(UserWarning, match="LoRA factors of 3 weights: they are merged"):
        merged = load_params(tmp_path, shapes(bare))
    x, heads_x, neurons = normal(7, width), normal(7, heads, size), normal(7, hidden)
    for i in range(layers):
        low = jnp.einsum("td,ndl->tnl", x, q["lora_a"][i])
        expected = jnp.einsum("td,ndh->tnh", x, q["w"][i])
        expected += jnp.einsum("tnl,nlh->tnh", low, q["lora_b"][i])
        got = jnp.einsum("td,ndh->tnh", x, merged["attn"]["q_einsum"]["w"][i])
        np.testing.assert_allclose(got, expected, atol=1e-4)
        low = jnp.einsum("tnh,nhl->tl", heads_x, out["lora_a"][i])  # openpi's equation has no n
        expected = jnp.einsum("tnh,nhd->td", heads_x, out["w"][i])
        expected += jnp.einsum("tl,nld->td", low, out["lora_b"][i])
        got = jnp.einsum("tnh,nhd->td", heads_x, merged["attn"]["attn_vec_einsum"]["w"][i])
        np.testing.assert_allclose(got, expected, atol=1e-4)
        low = neurons @ down["linear_lora_a"][i]
        expected = neurons @ down["linear"][i] + low @ down["linear_lora_b"][i]
        got = neurons @ merged["mlp"]["linear"][i]
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_lora_factor_without_its_counterpart_is_refused(tmp_path):
    for name, layers in {
        "w": {"w": jnp.ones((3, 4)), "lora_a": jnp.ones((3, 1))},
        "a": {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.ones((1, 4))},
        "b": {"w": jnp.ones((3, 4)), "lora_b": jnp.ones((1, 4))},
    }.items():
        write_openpi(tmp_path / name, {"layers": layers})
        with pytest.raises(ValueError, match=r"LoRA factors, and layers/.* has no counterpart"):
            load_params(tmp_path / name, shapes({"layers": {"w": jnp.ones((3, 4))}}))


def test_weights_that_are_no_numbers_are_refused_by_leaf(tmp_path):
    sick = params()
    sick["layers"]["w"] = sick["layers"]["w"].at[1, 2].set(jnp.nan)
    sick["head"]["kernel"] = sick["head"]["kernel"].at[0, 0].set(1e30)
    write_openpi(tmp_path / "nan", sick)
    with pytest.raises(ValueError, match=r"NaN or Inf in 1 of 3 leaves, layers/w among them"):
        load_params(tmp_path / "nan", shapes(sick))
    sick["layers"]["w"] = params()["layers"]["w"]
    write_openpi(tmp_path / "large", sick)
    with pytest.raises(ValueError, match=r"head/kernel among them: .*too large for float16"):
        load_params(tmp_path / "large", shapes(sick), "float16")
    with pytest.raises(ValueError, match="weights are floating-point"):
        load_params(tmp_path / "large", shapes(sick), "int8")
    write_openpi(tmp_path / "whole", {"w": jnp.arange(3)})
    with pytest.raises(ValueError, match="w is int32: expected floating-point"):
        load_params(tmp_path / "whole", shapes({"w": jnp.ones(3)}))


@pytest.mark.parametrize("x64", [False, True])
def test_double_precision_is_read_as_single_whatever_jax_is_set_to(tmp_path, x64):
    write_openpi(tmp_path, {"w": np.full((2, 3), 0.1, np.float64)})
    with jax.enable_x64(x64):
        loaded = load_params(tmp_path, shapes({"w": jnp.zeros((2, 3))}))
    assert loaded["w"].dtype == jnp.float32 and loaded["w"][0, 0] == np.float32(0.1)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("meta/info.json", "{}", "is a LeRobot data set"),
        ("config.json", '{"type": "pi0", "input_features": {}}', "a LeRobot policy of type 'pi0'"),
        ("config.json", '{"model_type": "llama"}', "a Hugging Face model of type 'llama'"),
        ("adapter_config.json", "{}", "LoRA adapter"),
        ("run.json", "{}", "a run or a monitor"),
        ("29999/params/_METADATA", "{}", r"with the checkpoints \['29999'\]: name one"),
    ],
)
def test_what_another_tool_wrote_is_called_by_its_name(tmp_path, file, content, message):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        refuse_foreign(tmp_path)


def test_a_tokenizer_with_other_special_tokens_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]),
        model_writer=model,
        model_type="word",
        vocab_size=6,
        minloglevel=2,
    )
    path = tmp_path / "assets" / "tokenizer.model"
    path.parent.mkdir()
    path.write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=r"numbers pad, end, begin and unknown \(-1, 2, 1, 0\)"):
        load_tokenizer(tmp_path, 8)


def test_a_pytorch_checkpoint_is_named_as_such(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="PyTorch format"):
        load_params(tmp_path, {})


def test_a_folder_without_parameters_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no params/"):
        load_params(tmp_path, {})


def test_a_saved_policy_comes_back_whole(tmp_path, tokenizer):
    folder = tmp_path / "policy"
    save_checkpoint(
        folder,
        params(),
        config=TINY.to_json(),
        norm_stats=STATS,
        asset_id="lab/board",
        tokenizer=tokenizer,
    )
    jax.tree.map(np.testing.assert_array_equal, load_params(folder, shapes(params())), params())
    jax.tree.map(np.testing.assert_array_equal, load_assets(folder), STATS)
    assert Pi0Config.from_json(load_config(folder)) == TINY
    assert load_tokenizer(folder, 8) == tokenizer
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if str(tmp_path).encode() in path.read_bytes()]


def test_saving_never_overwrites_parameters(tmp_path, tokenizer):
    write_openpi(tmp_path, params())
    with pytest.raises(ValueError, match="already holds"):
        save_checkpoint(
            tmp_path, params(), config={}, norm_stats=STATS, asset_id="board", tokenizer=tokenizer
        )


def test_statistics_of_several_robots_need_a_name(tmp_path):
    for robot in ("droid", "lab/board"):
        save_norm_stats(tmp_path / "assets" / robot / "norm_stats.json", STATS)
    with pytest.raises(ValueError, match=r"\['droid', 'lab/board'\]"):
        load_assets(tmp_path)
    assert load_assets(tmp_path, "lab/board").keys() == STATS.keys()
    with pytest.raises(FileNotFoundError, match="'aloha'"):
        load_assets(tmp_path, "aloha")


@pytest.mark.parametrize(
    "load", [load_assets, load_config, lambda folder: load_tokenizer(folder, 8)]
)
def test_what_a_checkpoint_lacks_is_said(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load(tmp_path)


def test_fingerprint_survives_the_disk_and_the_trailing_value(tmp_path):
    write_openpi(tmp_path, params())
    config = TINY.to_json()
    before = fingerprint(params(), config, STATS, b"tokens")
    assert before == fingerprint(load_params(tmp_path, shapes(params())), config, STATS, b"tokens")
    valued = jax.tree.map(lambda leaf: {"value": leaf}, params())
    assert before == fingerprint(valued, config, STATS, b"tokens")


def test_fingerprint_changes_with_anything_that_decides_what_the_policy_does():
    config = TINY.to_json()
    other_params = params()
    other_params["layers"]["b"] = other_params["layers"]["b"].at[2].set(1 + 1e-6)
    other_config = dataclasses.replace(TINY, num_steps=4).to_json()
    other_stats = {**STATS, "state": STATS["actions"]}
    prints = {
        fingerprint(params(), config, STATS, b"tokens"),
        fingerprint(other_params, config, STATS, b"tokens"),
        fingerprint(params(), other_config, STATS, b"tokens"),
        fingerprint(params(), config, other_stats, b"tokens"),
        fingerprint(params(), config, STATS, b"others"),
        fingerprint(
            jax.tree.map(lambda p: p.astype(jnp.bfloat16), params()), config, STATS, b"tokens"
        ),
    }
    assert len(prints) == 6

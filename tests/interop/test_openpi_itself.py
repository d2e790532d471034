"""openpi itself, from a checkout: its own models and policies under our hooks, beside its samplers.

    OPENPI_SRC=openpi python -m pytest -m "" tests/interop/test_openpi_itself.py

in openpi's own environment, or with `make test-openpi OPENPI_SRC=openpi`. `test_openpi` does with
doubles what it can, everywhere.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
import types
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from experiments.bench import openpi_sizes
from interop.openpi import InferPolicy, wrap, wrap_policy
from interop.openpi import models as wrapped_models
from mistjax.detect.artifact import Artifact, save_detector
from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.inputs import Input
from mistjax.detect.methods.safe.heads import SafeMLP
from mistjax.hooks import POINTS, Add, Affine, Patch, ProjectOut, Scale, SetNeurons, Tap
from mistjax.models import checkpoints, fast, pi0
from mistjax.models.config import FAST_IMAGE_KEYS, IMAGE_KEYS, TINY, TINY_FAST
from mistjax.models.fast_language import FastTokenizer
from mistjax.models.fast_tokenizer import ActionTokenizer
from mistjax.models.normalize import NormStats
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import BOARD, FastPolicy, PiPolicy
from mistjax.policies.presets import PRESETS
from mistjax.recover import mist
from mistjax.recover.artifact import RemedyConfig, save_remedy
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.mist import MistPolicy, Remedy
from mistjax.steer import Provenance, SteeringArtifact, SteeringVector, save_steering
from mistjax.steer.schedules import constant
from mistjax.steer.table import CauseTable
from tests.interop import openpi_small

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "OPENPI_SRC" not in os.environ and importlib.util.find_spec("openpi") is None,
        reason="needs openpi",
    ),
    # Of openpi and of what it imports, none of it ours.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:openpi", "ignore::ResourceWarning"),
]
PROMOTION = {"jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}
KEY = jax.random.key(0)
ROOT = Path(__file__).parents[2]
STACKS = ("vision", "vlm", "action")
TAPS = tuple(Tap(f"{s}.{p}") for s in STACKS for p in POINTS)
# openpi's transforms make pictures of 224 pixels: four patches each.
TOWER = dataclasses.replace(TINY.siglip, patch_size=(112, 112))
SIZES = {
    "pi0": dataclasses.replace(
        TINY, siglip=TOWER, image_size=224, image_keys=IMAGE_KEYS, num_steps=10
    ),
    "pi0_fast": dataclasses.replace(
        TINY_FAST,
        siglip=TOWER,
        image_size=224,
        image_keys=FAST_IMAGE_KEYS,
        action_dim=4,
        max_decoding_steps=4,
    ),
}
SIZES["pi05"] = dataclasses.replace(SIZES["pi0"], pi05=True)


@pytest.fixture(autouse=True, scope="module")
def promoting():
    """As openpi was written; of what is ours, the other tests forbid it."""
    before = {name: getattr(jax.config, name) for name in PROMOTION}
    for name, value in PROMOTION.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@contextlib.contextmanager
def resized(config):
    """openpi's sizes are these, and its data loader's packages are where they are not."""
    with pytest.MonkeyPatch.context() as patch:
        openpi_small.resize(config, patch.setattr, patch.setitem)
        if config is SIZES["pi0_fast"]:  # openpi compiles the number of steps in
            from openpi.models.pi0_fast import Pi0FAST

            defaults = Pi0FAST.sample_actions.__kwdefaults__ | {"max_decoding_steps": 4}
            patch.setattr(Pi0FAST.sample_actions, "__kwdefaults__", defaults)
        yield patch


def random_params(config, seed=0):
    """No leaf is zero: openpi begins with gates and a tower's head that let nothing through."""
    init = fast.init if config is SIZES["pi0_fast"] else pi0.init
    shapes = jax.eval_shape(lambda: init(config, KEY))["params"]
    rng = np.random.default_rng(seed)

    def leaf(shape):
        fan_in = shape.shape[-2] if len(shape.shape) > 1 else 4
        return jnp.asarray(rng.normal(0, fan_in**-0.5, shape.shape), jnp.float32)

    return jax.tree.map(leaf, shapes)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.model"
    train_word_tokenizer(["Action: | do something", "Task: State:"], [], path)
    return path


def unit(width):
    ones = np.ones(width, np.float32)
    return NormStats(mean=0 * ones, std=ones, q01=-ones, q99=ones)


@pytest.fixture(scope="module", params=["pi0", "pi05", "pi0_fast"])
def pair(request, words, observation):
    """(openpi's model, wrapped, our own policy with the same weights, observation)."""
    config = SIZES[request.param]
    is_fast = request.param == "pi0_fast"
    with resized(config):
        stock = openpi_sizes.model_config(config).load(random_params(config))
        tokenizer = PromptTokenizer.from_file(words, config.max_token_len)
        if is_fast:
            chunks = np.random.default_rng(0).normal(size=(20, 4, 4))
            actions = ActionTokenizer.train(chunks, vocab_size=300)
            tokenizer = FastTokenizer(tokenizer, actions, config.vocab_size)
        stats = {"state": unit(5), "actions": unit(4)}
        steps = {"max_decoding_steps": 4} if is_fast else {}
        wrapped = wrap(stock, BOARD, tokenizer, stats, **steps)
        assert dataclasses.replace(wrapped.config, remat=False) == config
        kind = FastPolicy if is_fast else PiPolicy
        own = kind(config, wrapped.variables, tokenizer, stats, BOARD, name="own")
        yield stock, wrapped, own, observation(config)


def outcome(policy, obs, edits=()):
    sample = policy.sample(obs, KEY, edits=edits, taps=TAPS)
    return sample.aux.get("token_log_prob", sample.actions), sample.taps


def assert_same(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-3), ours, theirs)


def test_actions_are_bit_for_bit_openpis_and_taps_change_none(pair):
    from openpi.shared import nnx_utils

    stock, wrapped, _, obs = pair
    theirs, sample = openpi_sizes.observation_of(obs), nnx_utils.module_jit(stock.sample_actions)
    plain, tapped = wrapped.sample(obs, KEY), wrapped.sample(obs, KEY, taps=TAPS)
    if "tokens" in plain.aux:
        expected = sample(KEY, theirs)
        np.testing.assert_array_equal(plain.aux["tokens"], expected)
        np.testing.assert_array_equal(tapped.aux["tokens"], expected)
        return
    expected = sample(KEY, theirs, noise=wrapped.noise(KEY, 2))
    np.testing.assert_array_equal(plain.actions, expected)
    np.testing.assert_array_equal(tapped.actions, expected)


def test_every_tap_is_that_of_our_own_model(pair):
    _, wrapped, own, obs = pair
    assert_same(outcome(own, obs), outcome(wrapped, obs))


def test_every_edit_does_the_same_as_in_our_own_model_and_compiles_once(pair):
    _, wrapped, own, obs = pair
    rng, config = np.random.default_rng(0), own.config
    vlm, action = config.vlm, config.experts[-1]

    def normal(*shape):
        return jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)

    layers, width = action.depth, action.width
    patches, tower = config.num_image_tokens, config.siglip
    value = normal(tower.depth, 2, patches, tower.width)
    edits = (
        Scale("vision.attn_heads", factor=normal(2, 4, 1)),
        Patch("vision.resid", gate=jnp.array([0.0, 0.5]), value=value),
        Add("vlm.attn_out", "text", vector=normal(vlm.depth, vlm.width)),
        ProjectOut("vlm.resid", "image", direction=normal(vlm.depth, vlm.width)),
        SetNeurons(
            "action.mlp_neurons",
            mask=jnp.ones((layers, action.mlp_dim)),
            value=normal(layers, action.mlp_dim),
        ),
        Affine("action.resid", weight=normal(layers, width, width), bias=normal(layers, width)),
    )
    edited, plain = outcome(wrapped, obs, edits), outcome(wrapped, obs)
    assert_same(outcome(own, obs, edits), edited)
    assert np.abs(edited[0] - plain[0]).max() > 1e-3
    compiled = wrapped_models._sample._cache_size()
    off = [edit.replace(strength=0.0) for edit in edits]
    jax.tree.map(np.testing.assert_array_equal, outcome(wrapped, obs, tuple(off)), plain)
    outcome(wrapped, obs, tuple(edit.replace(strength=0.3) for edit in edits))
    assert wrapped_models._sample._cache_size() == compiled


def test_each_edit_alone_reaches_the_actions(pair):
    _, wrapped, _, obs = pair
    plain = np.asarray(outcome(wrapped, obs)[0])
    spec, rng = wrapped.spec.stacks, np.random.default_rng(0)
    for stack in STACKS:  # no constant vector: the tower's LayerNorm takes it out again
        size = (spec[stack].depth, spec[stack].width)
        vector = jnp.asarray(rng.normal(size=size), jnp.float32)
        edited = wrapped.sample(obs, KEY, edits=(Add(f"{stack}.resid", vector=vector),), taps=TAPS)
        changed = edited.aux.get("token_log_prob", edited.actions)
        assert np.abs(np.asarray(changed) - plain).max() > 1e-4, stack


def test_factors_of_lora_are_merged_to_what_openpi_computes(words, observation, tmp_path):
    config = SIZES["pi0"]
    with resized(config) as patch:
        from openpi.models import gemma, lora

        sizes, rank = gemma.get_config, lora.LoRAConfig(rank=2, alpha=2.0)
        patch.setattr(
            gemma,
            "get_config",
            lambda name: dataclasses.replace(sizes(name), lora_configs={"attn": rank, "ffn": rank}),
        )
        bare = random_params(config)
        stock = openpi_sizes.model_config(config)
        shapes = nnx.eval_shape(stock.create, KEY)
        rng, leaves = np.random.default_rng(1), wrapped_models.unbound(shapes)[1]
        merged_names = checkpoints._by_name(bare)
        params = {
            name: merged_names.get(name, jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32))
            for name, leaf in checkpoints._by_name(leaves).items()
        }
        assert sum("lora" in name for name in params) == 20
        params = checkpoints.unflatten_dict(params, sep="/")
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "params", {"params": params})
        obs = observation(config)
        noise = jax.random.normal(KEY, (2, config.action_horizon, config.action_dim))
        theirs = stock.load(params).sample_actions(
            KEY, openpi_sizes.observation_of(obs), noise=noise
        )
        with pytest.warns(UserWarning, match="LoRA factors of 10 weights"):
            merged = checkpoints.load_params(tmp_path, jax.eval_shape(lambda: bare))
        ours = stock_sample(config, merged, obs, noise)
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
        assert np.abs(stock_sample(config, bare, obs, noise) - theirs).max() > 1e-2


def stock_sample(config, params, obs, noise):
    """Our own model from that noise."""
    from mistjax.models.pi0 import Pi0
    from mistjax.models.sampling import denoise, prefill

    variables, model = {"params": params}, Pi0(config)
    prefix = prefill(model, variables, obs)
    return denoise(model, variables, prefix, obs.state, noise, num_steps=config.num_steps)[0]


@dataclasses.dataclass(frozen=True)
class Made:
    """Calls make what openpi's `create_trained_policy` returns for LIBERO, anew each time."""

    folder: Path
    settings: Any

    def __call__(self):
        from openpi.policies import policy_config

        return policy_config.create_trained_policy(self.settings, self.folder)


@pytest.fixture(scope="module", params=["pi0", "pi05"])
def made(request, words, tmp_path_factory):
    config = dataclasses.replace(SIZES[request.param], action_dim=8, max_token_len=16)
    folder = tmp_path_factory.mktemp("checkpoint")
    home = tmp_path_factory.mktemp("home")
    (home / "big_vision").mkdir()
    (home / "big_vision" / "paligemma_tokenizer.model").write_bytes(words.read_bytes())
    rng = np.random.default_rng(3)

    def statistics(width):
        low = rng.normal(size=width)
        high = low + rng.uniform(1, 2, width)
        return NormStats(mean=(low + high) / 2, std=high - low, q01=low, q99=high)

    checkpoints.save_checkpoint(
        folder,
        random_params(config),
        config=config.to_json(),
        norm_stats={"state": statistics(8), "actions": statistics(7)},
        asset_id="libero",
        tokenizer=PromptTokenizer.from_file(words, config.max_token_len),
    )
    with resized(config) as patch:
        patch.setenv("OPENPI_DATA_HOME", str(home))
        logging.disable(logging.WARNING)  # of prompts that this small model cuts off
        yield Made(folder, openpi_small.settings_of(config))
        logging.disable(logging.NOTSET)


def example(seed):
    rng = np.random.default_rng(seed)
    return {
        "observation/image": rng.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "observation/wrist_image": rng.integers(0, 256, (200, 224, 3), dtype=np.uint8),
        "observation/state": rng.normal(size=8),
        "prompt": "do something",
    }


def test_a_wrapped_policy_infers_bit_for_bit_what_openpi_does_call_by_call(made):
    theirs, ours = made(), InferPolicy(wrap_policy(made()))
    for seed in range(3):
        expected, got = theirs.infer(example(seed)), ours.infer(example(seed))
        assert expected["actions"].shape == (4, 7) and set(got) == set(expected)
        np.testing.assert_array_equal(got["actions"], expected["actions"], strict=True)
    noise = np.random.default_rng(9).normal(size=(4, 8)).astype(np.float32)
    expected = theirs.infer(example(5), noise=noise)
    np.testing.assert_array_equal(
        ours.infer(example(5), noise=noise)["actions"], expected["actions"]
    )


def test_a_robot_gives_names_and_bounds_and_changes_no_action(made):
    named, plain = wrap_policy(made(), PRESETS["pi0_libero"]), wrap_policy(made())
    assert named.spec.action_names[:2] == ("dx", "dy") and named.spec.gripper_index == 6
    assert plain.spec.action_names[0] == "action 0"
    assert plain.spec.cameras["base_0_rgb"] == "base_0_rgb"
    follows = [offset is None for offset in plain.spec.action_offset]
    assert follows in ([False] * 7, [True] * 6 + [False])
    for policy in (named, plain):
        obs = policy.prepare([example(0), example(1)])
        chunk = policy.finish(policy.sample(obs, KEY), [example(0), example(1)])
        assert chunk.shape == (2, 4, 7) and np.isfinite(chunk).all()
    assert named.spec.fingerprint == wrap_policy(made(), PRESETS["pi0_libero"]).spec.fingerprint
    with pytest.raises(ValueError, match="has 14 numbers of action"):
        wrap_policy(made(), PRESETS["pi0_aloha"])


def save_remedy_of(folder, policy):
    stack = policy.spec.stacks["vlm"]
    push = SteeringVector(
        direction=jnp.ones((stack.depth, stack.width)) / stack.width**0.5,
        scale=jnp.ones(stack.depth),
        gate=jnp.ones(stack.depth),
        site="vlm.resid",
        tokens="all",
        provenance=Provenance(policy.spec.fingerprint, "test"),
    )
    fingerprint = policy.spec.fingerprint
    causes = dict.fromkeys((*policy.spec.cameras, "text", "state"), ("push", 5.0))
    save_steering(folder, SteeringArtifact(fingerprint, {"push": push}, causes))
    save_remedy(folder, RemedyConfig(strengths=(1.0, 0.0), cap=0.5))


def save_monitor(folder, policy, limit):
    tap = Tap("action.resid", (-1,), "action", "mean")
    reads = Input.of_taps(tap)
    head = SafeMLP.create(KEY, policy.spec.stacks["action"].width, hidden=8)
    threshold = Threshold(jnp.broadcast_to(limit, 10), 0.1, 9, 10)
    save_detector(folder, Artifact(head, policy.spec.fingerprint, reads, threshold=threshold))
    return head, threshold, reads


def code_of_the_docs(name):
    page = (ROOT / "docs" / "openpi.md").read_text()
    (code,) = re.findall(rf"```python {name}\n(.*?)```", page, re.DOTALL)
    return code


@contextlib.contextmanager
def serve_policy(checkpoint, code, folder):
    """openpi's `serve_policy.py` in a process of its own, with these lines below the one that makes
    the policy; a function that waits until it listens and gives openpi's client.
    """
    import openpi
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    makes = "    policy = create_policy(args)\n"
    source = (Path(openpi.__file__).parents[2] / "scripts" / "serve_policy.py").read_text()
    assert source.count(makes) == 1
    script, log = folder / "serve_policy.py", folder / "log"
    script.write_text(source.replace(makes, makes + textwrap.indent(code, "    ")))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ["--port", port, "policy:checkpoint", "--policy.config", "small"]
    words = [checkpoint, script, *words, "--policy.dir", checkpoint]
    command = [sys.executable, "-m", "tests.interop.openpi_small", *map(str, words)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    env.pop(openpi_sizes.SOURCE, None)  # it is on that path, and may be relative
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT
        )

    def client():
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/healthz").close()
            except urllib.error.URLError:
                time.sleep(0.2)
            else:
                return WebsocketClientPolicy("localhost", port)
        raise AssertionError(log.read_text())

    try:
        yield client
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.timeout(1800)  # two processes compile, which is slow where others compute
def test_the_lines_of_the_docs_watch_a_policy_in_openpis_own_server(made, tmp_path, monkeypatch):
    """openpi's client is given openpi's bits and the score of each; from an alarm on, those of the
    same lines in this process.
    """
    from openpi_client.action_chunk_broker import ActionChunkBroker

    monkeypatch.chdir(tmp_path)
    wrapped = wrap_policy(made())
    late = jnp.where(jnp.arange(10) < 2, jnp.inf, -jnp.inf)  # an alarm from the third look on
    save_monitor(tmp_path / "runs" / "monitor", wrapped, late)
    save_remedy_of(tmp_path / "runs" / "monitor", wrapped)
    code = code_of_the_docs("monitor")
    assert len([line for line in code.splitlines() if line]) == 2
    with serve_policy(made.folder, code + code_of_the_docs("compiled"), tmp_path) as connect:
        names, theirs = {"policy": made()}, made()
        exec(code, names)
        here = names["policy"]
        for policy in (here, theirs):  # as the server did before it listened
            policy.infer(example(9))
        here.reset()
        compiled = mist._sample._cache_size()
        client = connect()
        assert client.get_server_metadata() == here.metadata == theirs.metadata
        for look in range(5):  # an episode of three, and another
            obs = example(look) | ({"mist/reset": True} if look == 3 else {})
            got, same, bare = client.infer(obs), here.infer(obs), theirs.infer(example(look))
            np.testing.assert_array_equal(got["actions"], same["actions"], strict=True)
            assert got["mist"] == same["mist"] and isinstance(got["mist"]["score"], float)
            assert got["mist"]["alarm"] is got["mist"]["edited"] is (look == 2)
            kept = np.array_equal(got["actions"], bare["actions"])
            assert got["actions"].dtype == bare["actions"].dtype and kept is (look != 2)
        assert mist._sample._cache_size() == compiled  # while it compiles, no ping is answered
        broker = ActionChunkBroker(client, len(bare["actions"]))
        step = broker.infer(example(6))
        assert step["actions"].shape == (7,) and step["mist"]["alarm"] is True
        with pytest.raises(RuntimeError, match="mist/reset is a str: expected true or false"):
            client.infer(example(7) | {"mist/reset": "no"})
        client._ws.close()


def test_an_alarm_steers_within_the_cap_and_what_is_not_finite_holds_still(made, tmp_path):
    from mistjax.detect.monitor import Monitor

    wrapped = wrap_policy(made(), PRESETS["pi0_libero"])
    monitor = Monitor(*save_monitor(tmp_path, wrapped, -jnp.inf))
    stack = wrapped.spec.stacks["action"]
    causes = (*wrapped.config.image_keys, "text", "state")
    table = CauseTable(
        causes=causes,
        names=("any",),
        kind=Add,
        site="action.mlp_out",
        tokens="all",
        arrays={"vector": jnp.ones((1, stack.depth, stack.width))},
        rows=jnp.zeros(len(causes), int),
        strengths=jnp.ones(len(causes)),
    )
    limits = FusionLimits.of(wrapped.spec, 0.2, wrapped.chunk_width)
    remedy = Remedy(table, constant(5.0), limits, patch=wrapped.patch)
    policy, bare = InferPolicy(MistPolicy(wrapped, monitor, remedy)), InferPolicy(wrapped)
    got, plain = policy.infer(example(0)), bare.infer(example(0))
    assert got["mist"]["alarm"] and got["mist"]["edited"]
    moved = np.abs(got["actions"] - plain["actions"])[:, :6]
    reach = 0.2 * (np.array(wrapped.spec.action_high) - np.array(wrapped.spec.action_low))[:6]
    assert moved.max() > 1e-3 and (moved <= reach + 1e-5).all()
    policy.reset()
    broken = policy.infer({**example(0), "observation/state": np.full(8, np.nan)})
    assert broken["mist"]["fallback"]
    np.testing.assert_array_equal(broken["actions"], np.zeros((4, 7)))


def test_what_cannot_be_wrapped_is_refused_by_its_reason(made):
    policy = made()
    policy._is_pytorch_model = True
    with pytest.raises(ValueError, match="PyTorch model"):
        wrap_policy(policy)
    policy = made()
    policy._sample_kwargs = {"guidance": 1}
    with pytest.raises(ValueError, match=r"sample_kwargs holds \['guidance'\]"):
        wrap_policy(policy)
    with pytest.raises(TypeError, match="object is no policy of openpi"):
        wrap_policy(object())


class FastWords:
    """In the place of openpi's FASTTokenizer, whose action tokens would be downloaded."""

    def __init__(self, words, actions, length):
        self.prompts = PromptTokenizer.from_file(words, length)
        self._paligemma_tokenizer = self.prompts._processor
        backend = types.SimpleNamespace(to_str=lambda: actions.serialized)
        self._fast_tokenizer = types.SimpleNamespace(
            bpe_tokenizer=types.SimpleNamespace(backend_tokenizer=backend),
            scale=actions.scale,
            min_token=actions.min_token,
        )

    def tokenize(self, prompt, state, actions):
        ids, mask = self.prompts.pad([2, *self.prompts.encode(prompt)])
        return ids, mask, 0 * ids, mask & False

    def extract_actions(self, tokens, horizon, dim):
        return np.random.default_rng(tokens).normal(size=(horizon, dim))


def test_a_wrapped_pi0_fast_infers_what_openpi_does(words):
    config = SIZES["pi0_fast"]
    chunks = np.random.default_rng(0).normal(size=(20, 4, 4))
    tokenizer = FastWords(words, ActionTokenizer.train(chunks, vocab_size=300), 8)

    def robot(raw):
        images = dict.fromkeys(FAST_IMAGE_KEYS, raw["observation/image"])
        masks = dict.fromkeys(FAST_IMAGE_KEYS, np.True_)
        state = raw["observation/state"][:4]
        return {"state": state, "image": images, "image_mask": masks, "prompt": raw["prompt"]}

    with resized(config):
        from openpi import transforms as t
        from openpi.policies.policy import Policy

        stats = {"state": unit(4), "actions": unit(4)}
        extract = t.ExtractFASTActions(tokenizer, action_horizon=4, action_dim=4)

        def make(**options):
            model = openpi_sizes.model_config(config).load(random_params(config))
            inputs = [
                robot,
                t.Normalize(stats, use_quantiles=True),
                t.TokenizeFASTInputs(tokenizer),
            ]
            outputs = [extract, t.Unnormalize(stats, use_quantiles=True)]
            return Policy(
                model, transforms=inputs, output_transforms=outputs, sample_kwargs=options
            )

        theirs, ours = make(), InferPolicy(wrap_policy(make()))
        for seed in range(2):
            expected, got = theirs.infer(example(seed)), ours.infer(example(seed))
            np.testing.assert_array_equal(got["actions"], expected["actions"], strict=True)
        with pytest.raises(ValueError, match="asks for a temperature"):
            wrap_policy(make(temperature=0.5))
        other = wrap_policy(make(), image_keys=IMAGE_KEYS)
        with pytest.raises(ValueError, match="pass them to wrap_policy as `image_keys`"):
            other.prepare([example(0)])

"""openpi's module layout under our hooks: wrapped doubles with its structure act as our own model.

The doubles have what bites in the original: scan over remat, captures that must leave through
outputs whose types are checked, a feed-forward whose neurons pass a helper method, a tower that
hands its layers out one by one.
"""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from flax import nnx
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from interop.openpi import InferPolicy, OpenpiFastPolicy, OpenpiPolicy, wrap
from interop.openpi.models import Modules
from mistjax.hooks import POINTS, Add, Scale, SetNeurons, Tap
from mistjax.models import gemma
from mistjax.models.config import FAST_IMAGE_KEYS, TINY, TINY_FAST
from mistjax.models.fast_language import FastTokenizer
from mistjax.models.fast_tokenizer import ActionTokenizer
from mistjax.models.normalize import NormStats
from mistjax.models.pi0 import time_embedding
from mistjax.models.siglip import DenseGeneral, MlpBlock, SelfAttention
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import BOARD, FastPolicy, LanguagePolicy, PiPolicy, Policy
from mistjax.policies.protocol import Sample

KEYS = (*TINY.image_keys, "right_wrist_0_rgb")
STACKS = ("vision", "vlm", "action")


class Einsum(nn.Module):
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, eqn, x):
        return jnp.einsum(eqn, x, self.param("w", nn.initializers.normal(0.2), self.shape))


class FeedForward(nn.Module):
    features: int
    hidden: int

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(0.2)
        gating = self.param("gating_einsum", init, (2, self.features, self.hidden))
        linear = self.param("linear", init, (self.hidden, self.features))
        gate = nn.gelu(self._dot(x, gating[0]))
        return self._dot(gate * self._dot(x, gating[1]), linear)

    def _dot(self, x, w):
        return x @ w


class Attention(nn.Module):
    configs: tuple

    @nn.compact
    def __call__(self, xs, positions, mask, kv_cache):
        first, parts = self.configs[0], []
        for i, (x, c) in enumerate(zip(xs, self.configs, strict=True)):
            if x is not None:
                name = gemma.expert_name
                q = Einsum((c.num_heads, c.width, c.head_dim), name=name("q_einsum", i))
                kv = Einsum((2, c.num_kv_heads, c.width, c.head_dim), name=name("kv_einsum", i))
                parts.append((q("BTD,NDH->BTNH", x), *kv("BSD,2KDH->2BSKH", x)))
        q, k, v = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        q = gemma.apply_rope(q, positions) * first.head_dim**-0.5
        k = gemma.apply_rope(k, positions)
        if kv_cache is not None and len(kv_cache) == 2:
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(kv_cache, (k, v), strict=True))
        elif kv_cache is not None:
            slot = (0, kv_cache[0][0], 0, 0)
            k = jax.lax.dynamic_update_slice(kv_cache[1], k, slot)
            v = jax.lax.dynamic_update_slice(kv_cache[2], v, slot)
        attended, outs, start = gemma.grouped_attention(q, k, v, mask), [], 0
        for i, (x, c) in enumerate(zip(xs, self.configs, strict=True)):
            if x is None:
                outs.append(None)
                continue
            shape, name = (
                (c.num_heads, c.head_dim, c.width),
                gemma.expert_name("attn_vec_einsum", i),
            )
            heads = attended[:, start : start + x.shape[1]]
            outs.append(Einsum(shape, name=name)("BTNH,NHD->BTD", heads))
            start += x.shape[1]
        return outs, (k, v)


class Block(nn.Module):
    configs: tuple

    @nn.compact
    def __call__(self, xs, kv_cache, positions, mask, conditions, deterministic=True):
        def normed(kind):
            pairs = zip(xs, conditions, strict=True)
            name = gemma.expert_name
            return [
                (None, None) if x is None else gemma.RMSNorm(name=name(kind, i))(x, c)
                for i, (x, c) in enumerate(pairs)
            ]

        before = normed("pre_attention_norm")
        attention = Attention(self.configs, name="attn")
        out, kv_cache = attention([x for x, _ in before], positions, mask, kv_cache)
        xs = [
            None if x is None else gemma.gated_residual(x, y, gate)
            for x, y, (_, gate) in zip(xs, out, before, strict=True)
        ]
        result = []
        for i, (x, (y, gate)) in enumerate(zip(xs, normed("pre_ffw_norm"), strict=True)):
            c, name = self.configs[i], gemma.expert_name("mlp", i)
            ffn = None if x is None else FeedForward(c.width, c.mlp_dim, name=name)(y)
            result.append(None if x is None else gemma.gated_residual(x, ffn, gate))
        return result, kv_cache


KV = Float[Array, "l b t k h"]


class StockGemma(nn.Module):
    configs: tuple
    vocab_size: int
    embed_dtype: str = "float32"

    def setup(self):
        self.embedder = gemma.Embedder(self.vocab_size, self.configs[0].width)
        block = nn.remat(Block, prevent_cse=False, static_argnums=(6,))
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, *4 * (nn.broadcast,)),
            length=self.configs[0].depth,
        )(self.configs)
        self.final_norms = [
            gemma.RMSNorm(name=gemma.expert_name("final_norm", i)) for i in range(len(self.configs))
        ]

    @jaxtyped(typechecker=beartype)
    def __call__(
        self, embedded, positions, mask, adarms_cond=None, *, kv_cache=None, deterministic=True
    ) -> tuple[list[Float[Array, "b _t _d"] | None], tuple[KV, KV]]:
        xs, kv = self.layers(embedded, kv_cache, positions, mask, adarms_cond, deterministic)
        norms = zip(xs, self.final_norms, adarms_cond, strict=True)
        return [None if x is None else f(x, c)[0] for x, f, c in norms], kv

    def embed(self, tokens):
        return self.embedder.lookup(tokens) * self.configs[0].width ** 0.5

    def init_all(self, xs, conditions):
        self.embedder.lookup(jnp.zeros((1, 1), jnp.int32))
        length = sum(x.shape[1] for x in xs)
        mask = jnp.ones((1, length, length), bool)
        return self(xs, jnp.arange(length)[None], mask, conditions)


class FastBlock(nn.Module):
    config: object

    @nn.compact
    def __call__(self, x, kv_cache, positions, mask, decode, deterministic=True):
        block = self.config
        y, _ = gemma.RMSNorm(name="pre_attention_norm")(x, None)
        (out,), (k, v) = Attention((block,), name="attn")([y], positions, mask, kv_cache)
        x = x + out
        y, _ = gemma.RMSNorm(name="pre_ffw_norm")(x, None)
        index = jnp.zeros(x.shape[0], jnp.int32) + k.shape[1]
        return x + FeedForward(block.width, block.mlp_dim, name="mlp")(y), (index, k, v)


class StockGemmaFast(nn.Module):
    config: object
    vocab_size: int
    embed_dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        embedded_prefix,
        positions=None,
        mask=None,
        decode=False,
        kv_cache=None,
        return_prelogits=False,
    ):
        embedder = gemma.Embedder(self.vocab_size, self.config.width, name="embedder")
        layers = nn.scan(
            nn.remat(FastBlock, prevent_cse=False, static_argnums=(5, 6)),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, *4 * (nn.broadcast,)),
            length=self.config.depth,
        )(self.config, parent=self.scope.push("layers"))
        x, kv_cache = layers(embedded_prefix, kv_cache, positions, mask, decode, True)
        x, _ = gemma.RMSNorm(name="final_norm")(x, None)
        return (x if return_prelogits else embedder.decode(x)), kv_cache, {"pre_logits": x}


class TowerBlock(nn.Module):
    config: object

    @nn.compact
    def __call__(self, x, deterministic):
        y = nn.LayerNorm(name="LayerNorm_0")(x)
        y = SelfAttention(self.config.num_heads, name="MultiHeadDotProductAttention_0")(y)
        x = x + y
        z = MlpBlock(self.config.mlp_dim, name="MlpBlock_0")(nn.LayerNorm(name="LayerNorm_1")(x))
        return x + z, {"sa": y, "mlp": z}


class Tower(nn.Module):
    config: object

    @nn.compact
    def __call__(self, x, deterministic=True):
        x, emitted = nn.scan(
            nn.remat(TowerBlock, prevent_cse=False, static_argnums=(2,)),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.depth,
        )(self.config, name="encoderblock")(x, deterministic)
        out = {
            f"block{i:02d}": jax.tree.map(lambda leaf, i=i: leaf[i], emitted)
            for i in range(self.config.depth)
        }
        return nn.LayerNorm(name="encoder_norm")(x), out | {"pre_ln": x}


class StockSiglip(nn.Module):
    config: object
    out_width: int

    @nn.compact
    def __call__(self, image, *, train=False):
        c, (b, h, w, _) = self.config, image.shape
        ph, pw = c.patch_size
        patches = image.reshape(b, h // ph, ph, w // pw, pw, 3).transpose(0, 1, 3, 2, 4, 5)
        x = DenseGeneral((ph, pw, 3), (c.width,), name="embedding")(
            patches.reshape(b, -1, ph, pw, 3)
        )
        x = x + self.param("pos_embedding", nn.initializers.normal(0.2), (1, *x.shape[1:]))
        x, out = Tower(c, name="Transformer")(x, deterministic=not train)
        return DenseGeneral((c.width,), (self.out_width,), name="head")(x), {"encoder": out}


class StockPi(nnx.Module):
    """An openpi model's attributes. NNX modules under bridges, as the original builds them."""

    def __init__(self, config, rngs):
        self.action_dim, self.max_token_len = config.action_dim, config.max_token_len
        self.action_horizon, self.pi05 = config.action_horizon, getattr(config, "pi05", False)
        width = [expert.width for expert in config.experts]
        image = jnp.zeros((1, config.image_size, config.image_size, 3))
        img = nnx.bridge.ToNNX(StockSiglip(config.siglip, width[0]))
        img.lazy_init(image, train=False, rngs=rngs)
        xs = [jnp.zeros((1, 1, w)) for w in width]
        if len(width) == 1:
            llm = nnx.bridge.ToNNX(StockGemmaFast(config.vlm, config.vocab_size))
            mask = jnp.ones((1, 1, 1), bool)
            llm.lazy_init(xs[0], jnp.zeros((1, 1), int), mask, rngs=rngs)
        else:
            condition = jnp.zeros((1, width[1])) if config.pi05 else None
            llm = nnx.bridge.ToNNX(StockGemma(config.experts, config.vocab_size))
            llm.lazy_init(xs, [None, condition], method="init_all", rngs=rngs)
            heads = {"action_in_proj": (config.action_dim, width[1])}
            heads["action_out_proj"] = (width[1], config.action_dim)
            if config.pi05:
                heads |= {"time_mlp_in": (width[1],) * 2, "time_mlp_out": (width[1],) * 2}
            else:
                heads["state_proj"] = (config.action_dim, width[1])
                heads["action_time_mlp_in"] = (2 * width[1], width[1])
                heads["action_time_mlp_out"] = (width[1],) * 2
            for name, shape in heads.items():
                setattr(self, name, nnx.Linear(*shape, rngs=rngs))
        self.PaliGemma = nnx.Dict(llm=llm, img=img)

    def embed_prefix(self, obs):
        tokens, valid = [], []
        for name in obs.images:
            tokens.append(self.PaliGemma.img(obs.images[name], train=False)[0])
            valid.append(jnp.repeat(obs.image_masks[name][:, None], tokens[-1].shape[1], axis=1))
        tokens.append(self.PaliGemma.llm(obs.tokenized_prompt, method="embed"))
        valid.append(obs.tokenized_prompt_mask)
        tokens, valid = (jnp.concatenate(parts, axis=1) for parts in (tokens, valid))
        return tokens, valid, jnp.zeros(tokens.shape[1], bool)

    def embed_suffix(self, obs, noisy, timestep):
        actions, horizon = self.action_in_proj(noisy), self.action_horizon
        time = time_embedding(timestep, self.action_in_proj.out_features)
        if self.pi05:
            condition = nnx.swish(self.time_mlp_out(nnx.swish(self.time_mlp_in(time))))
            return actions, jnp.ones(actions.shape[:2], bool), jnp.arange(horizon) == 0, condition
        both = jnp.concatenate([actions, jnp.tile(time[:, None], (1, horizon, 1))], axis=-1)
        mixed = self.action_time_mlp_out(nnx.swish(self.action_time_mlp_in(both)))
        tokens = jnp.concatenate([self.state_proj(obs.state)[:, None], mixed], axis=1)
        return tokens, jnp.ones(tokens.shape[:2], bool), jnp.arange(horizon + 1) < 2, None


def unit(width):
    ones = np.ones(width, np.float32)
    return NormStats(mean=0 * ones, std=ones, q01=-ones, q99=ones)


STATS = {"state": unit(5), "actions": unit(4)}


@pytest.fixture(scope="module", params=["pi0", "pi05", "pi0_fast"])
def pair(request, tmp_path_factory, observation, lacking):
    """(wrapped double, our own policy with the same weights, observation)."""
    fast = request.param == "pi0_fast"
    config = dataclasses.replace(
        *((TINY_FAST,) if fast else (TINY,)), image_keys=FAST_IMAGE_KEYS if fast else KEYS
    )
    if fast:
        config = dataclasses.replace(config, action_dim=4, max_decoding_steps=4)
    else:
        config = dataclasses.replace(config, pi05=request.param == "pi05", num_steps=10)
    path = tmp_path_factory.mktemp("words") / "words.model"
    train_word_tokenizer(["Action: | go"], [], path)
    tokenizer = PromptTokenizer.from_file(path, config.max_token_len)
    if fast:
        chunks = np.random.default_rng(0).normal(size=(20, 4, 4))
        actions = ActionTokenizer.train(chunks, vocab_size=300)
        tokenizer = FastTokenizer(tokenizer, actions, config.vocab_size)
    double = StockPi(config, nnx.Rngs(0))
    steps = {"max_decoding_steps": 4} if fast else {}
    wrapped = wrap(double, BOARD, tokenizer, STATS, **steps)
    kind = FastPolicy if fast else PiPolicy
    own = kind(
        config=config,
        variables=wrapped.variables,
        tokenizer=tokenizer,
        norm_stats=STATS,
        preset=BOARD,
        name="own",
    )
    assert isinstance(wrapped, OpenpiFastPolicy if fast else OpenpiPolicy)
    assert not lacking(wrapped, Policy) and not lacking(wrapped, LanguagePolicy)
    assert dataclasses.replace(wrapped.config, remat=False) == config
    return wrapped, own, observation(config)


def outcome(policy, obs, edits=()):
    taps = tuple(Tap(f"{stack}.{point}") for stack in STACKS for point in POINTS)
    sample = policy.sample(obs, jax.random.key(0), edits=edits, taps=taps)
    return sample.aux.get("token_log_prob", sample.actions), sample.taps


def assert_same(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=5e-4), ours, theirs)


def test_every_tap_and_the_actions_are_those_of_our_own_model(pair):
    wrapped, own, obs = pair
    assert_same(outcome(own, obs), outcome(wrapped, obs))


def test_edits_do_the_same_as_in_our_own_model(pair):
    wrapped, own, obs = pair
    rng, width = np.random.default_rng(0), own.config.experts[-1].width
    hidden = own.config.experts[-1].mlp_dim

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    edits = (
        Scale(site="vision.attn_heads", factor=normal(2, 4, 1)),
        Add(site="vlm.attn_out", vector=normal(3, 32), tokens="text"),
        SetNeurons(site="action.mlp_neurons", mask=jnp.ones((3, hidden)), value=normal(3, hidden)),
        Add(site="action.resid", vector=normal(3, width)),
    )
    edited = outcome(wrapped, obs, edits)
    assert_same(outcome(own, obs, edits), edited)
    plain, off = outcome(wrapped, obs), [edit.replace(strength=0.0) for edit in edits]
    assert np.abs(edited[0] - plain[0]).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, outcome(wrapped, obs, tuple(off)), plain)


def test_words_go_in_as_in_our_own_model(pair):
    wrapped, own, obs = pair
    words = [policy.embed_prompt(obs).prompt_embedding for policy in (own, wrapped)]
    assert_same(*words)


def test_type_checks_are_on_again_after_a_hooked_run(pair):
    wrapped, _, obs = pair
    outcome(wrapped, obs)

    @jaxtyped(typechecker=beartype)
    def strict(x: Float[Array, "2"]):
        return x

    with pytest.raises(TypeCheckError):
        strict(jnp.zeros(3))


@pytest.mark.parametrize("layout", ["module", "to_nnx__module"])
def test_the_linen_modules_are_found_under_the_name_that_each_flax_gives_them(layout):
    tower, gemma = TowerBlock(None), FastBlock(None)

    def bridge(module):
        return types.SimpleNamespace(**{layout: module})

    pali_gemma = types.SimpleNamespace(img=bridge(tower), llm=bridge(gemma))
    modules = Modules.of(types.SimpleNamespace(PaliGemma=pali_gemma, action_dim=4))
    assert (modules.img, modules.llm) == (tower, gemma)


def test_something_else_than_an_openpi_model_is_refused(pair):
    wrapped, _, _ = pair
    with pytest.raises(TypeError, match="expected openpi's Pi0"):
        wrap(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), BOARD, wrapped.tokenizer, STATS)


class Counting(Policy):
    """Its score is the number of looks since the episode began."""

    def initial_state(self, batch):
        return np.zeros(batch, int)

    def prepare(self, raw):
        assert raw == [{"prompt": "go"}]
        return raw

    def sample(self, obs, key, *, state):
        return Sample(np.zeros((1, 2, 3)), {}, {"score": state}, state=state + 1)

    def outputs(self, sample):
        return [{"actions": sample.actions[0]}]

    def finish(self, sample, raw):
        return sample.actions


def test_an_episode_begins_by_reset_or_by_a_word_of_the_client():
    policy = InferPolicy(Counting())

    def score(**said):
        return policy.infer({"prompt": "go", **said})["mist"]["score"]

    assert [score(), score(), score(**{"mist/reset": False})] == [0, 1, 2]
    assert [score(**{"mist/reset": np.True_}), score()] == [0, 1]
    policy.reset()
    assert score() == 0
    with pytest.raises(ValueError, match="mist/reset is a str: expected true or false"):
        score(**{"mist/reset": "no"})
    assert score() == 1

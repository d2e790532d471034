"""openpi's own models behind the Policy protocol, with taps and edits.

`wrap` takes a `Pi0` or `Pi0FAST` that openpi loaded. Its vision tower and its Gemma stack, linen
modules under an NNX bridge, run as they are, and so do pi0's own methods around them: the same
operations in the same order, one camera at a time, so that an action comes out bit for bit. Only
the loop over flow steps, which has to hand out what was tapped, and pi0-FAST's decoding are ours.
openpi itself is not imported here: whoever has a model has openpi.

openpi checks array types at run time, and a hooked block returns more than its annotation says, so
these checks are off while its code runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import jaxtyping
from flax import nnx
from jaxtyping import Array, Float

from mistjax.hooks.adapters import Point, ScannedStack, Stream
from mistjax.hooks.edits import Edit
from mistjax.hooks.hooks import Hooks
from mistjax.hooks.sites import Tap
from mistjax.models.config import (
    FAST_IMAGE_KEYS,
    IMAGE_KEYS,
    FastConfig,
    GemmaConfig,
    Pi0Config,
    SiglipConfig,
)
from mistjax.models.draws import element_keys, normal
from mistjax.models.fast import Pi0Fast
from mistjax.models.fast_language import FastTokenizer
from mistjax.models.gemma import expert_name
from mistjax.models.normalize import NormStats
from mistjax.models.observation import Observation
from mistjax.models.pi0 import Pi0, PrefixModel
from mistjax.models.sampling import Prefix, prefill, velocity
from mistjax.models.stacks import scanned_stacks
from mistjax.models.tokenizers import PromptTokenizer
from mistjax.policies.fast import FastPolicy
from mistjax.policies.pi import PiPolicy
from mistjax.policies.presets import RobotPreset
from mistjax.policies.protocol import Sample


@dataclasses.dataclass(frozen=True, eq=False)
class Modules:
    """A model of openpi without its weights. Compared by identity, so that jit can key on it.

    Attributes:
        img, llm: SigLIP and Gemma, linen modules.
        kind: the model's class.
        heads: its other modules, each as (graph definition, state); only the state's shape counts.
        attributes: its plain attributes.
    """

    img: nn.Module
    llm: nn.Module
    kind: type
    heads: Mapping[str, tuple[Any, Any]]
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, model: Any) -> Modules:
        """TypeError where it is no model of openpi."""
        held = dict(vars(model))
        try:
            bridges: Any = held.pop("PaliGemma")
            img, llm = _linen(bridges.img), _linen(bridges.llm)
        except (AttributeError, KeyError) as error:
            raise TypeError(
                f"{type(model).__name__} has no PaliGemma.img and PaliGemma.llm under flax's NNX "
                "bridge: expected openpi's Pi0 or Pi0FAST."
            ) from error
        heads = {k: nnx.split(head) for k, head in held.items() if isinstance(head, nnx.Module)}
        plain = {k: v for k, v in held.items() if isinstance(v, bool | int | float | str | None)}
        return cls(img, llm, type(model), heads, plain)

    def bound(self, params: Mapping[str, Any], img: Any, llm: Any) -> Any:
        """What `self` is in the model's own methods: its heads with these parameters, and functions
        in the place of its bridges.
        """
        heads = {
            name: nnx.merge(graph, _filled(state, params[name]))
            for name, (graph, state) in self.heads.items()
        }
        bridges = types.SimpleNamespace(img=img, llm=llm)
        return types.SimpleNamespace(**self.attributes, **heads, PaliGemma=bridges)


class _Stock(nn.Module):
    """Gives the modules their place in the parameter tree."""

    img: nn.Module
    llm: nn.Module


class _StockPrefix(PrefixModel):
    """Reads the prefix with openpi's modules."""

    modules: Modules | None = None

    @nn.nowrap
    def vision_language(self) -> nn.Module:
        assert self.modules is not None
        return _Stock(self.modules.img.clone(), self.modules.llm.clone())

    @nn.nowrap
    def stacks(self) -> tuple[ScannedStack, ...]:
        ours, theirs = scanned_stacks(self.config)
        streams = {
            name: _gemma_stream(index, len(self.config.experts))
            for name, index in (("vlm", 0), ("action", len(self.config.experts) - 1))
        }
        take = _take_second if isinstance(self.config, FastConfig) else theirs.take
        vision = ours.streams["vision"]
        vision = dataclasses.replace(vision, groups=1, calls=vision.groups)
        return (
            dataclasses.replace(ours, streams={"vision": vision}, take=_take_per_layer),
            dataclasses.replace(theirs, streams=streams, take=take),
        )

    def embed_images(self, images):
        keys = self.config.image_keys
        return jnp.concatenate([self._embed_image(images[key])[0] for key in keys], axis=1)

    def _embed_image(self, image, train=False):
        with _unchecked():
            return self.PaliGemma.img(image, train=train)

    def embed_tokens(self, tokens):
        return self._table()[tokens]

    def decode(self, hidden):
        return hidden @ self._table().T.astype(hidden.dtype)

    def _table(self):
        return self.PaliGemma.llm.variables["params"]["embedder"]["input_embedding"]


class StockPi0(_StockPrefix, Pi0):
    """pi0 and pi0.5 on openpi's modules, between its own projections."""

    def embed_prefix(self, obs) -> tuple[Array, Array, Array]:
        """openpi's; embeddings of the prompt and of the pictures stand in for what it embeds."""

        def embed(tokens, method):
            if obs.prompt_embedding is None:
                return getattr(self.PaliGemma.llm, method)(tokens)
            words = obs.prompt_embedding
            scale = jnp.sqrt(self.config.vlm.width).astype(words.dtype)
            return (words * scale).astype(self.config.dtype)

        keys, embed_image = self.config.image_keys, self._embed_image
        if obs.image_embedding is not None:
            each = iter(jnp.split(obs.image_embedding, len(keys), axis=1))

            def embed_image(image, train=False):
                return next(each), {}

        pictures = {key: obs.images[key] for key in keys}
        present = {key: obs.image_masks[key] for key in keys}
        obs_in_order = dataclasses.replace(obs, images=pictures, image_masks=present)
        with _unchecked():
            return self._kind.embed_prefix(self._theirs(embed_image, embed), obs_in_order)

    def embed_suffix(
        self, state, x_t, t, state_mask=None
    ) -> tuple[Array, Array, Array, Array | None]:
        with _unchecked():
            obs = types.SimpleNamespace(state=state)
            tokens, valid, ar, condition = self._kind.embed_suffix(self._theirs(), obs, x_t, t)
        if state_mask is not None and not self.config.pi05:
            valid = valid.at[:, 0].set(state_mask)
        return tokens, valid, ar, condition

    def project_out(self, hidden) -> Array:
        with _unchecked():
            return self._theirs().action_out_proj(hidden)

    @property
    def _kind(self) -> Any:
        assert self.modules is not None
        return self.modules.kind

    def _theirs(self, img=None, llm=None) -> Any:
        assert self.modules is not None
        return self.modules.bound(self.variables["params"], img, llm)

    def run_llm(self, xs, positions, mask, conditions, kv_cache=None) -> tuple[Any, Any]:
        with _unchecked():
            return self.PaliGemma.llm(
                xs,
                positions=positions,
                mask=mask,
                adarms_cond=conditions,
                kv_cache=kv_cache,
            )


class StockPi0Fast(_StockPrefix, Pi0Fast):
    """pi0-FAST on openpi's modules."""

    def run_llm(self, xs, positions, mask, conditions, kv_cache=None) -> tuple[Any, Any]:
        if kv_cache is not None:
            # Theirs writes the token's keys and values into a slot, ours appends them.
            room = ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0))
            k, v = (jnp.pad(leaf, room) for leaf in kv_cache)
            kv_cache = jnp.full(k.shape[:2], k.shape[2] - 1, jnp.int32), k, v
        with _unchecked():
            hidden, (_, k, v), _ = self.PaliGemma.llm(
                embedded_prefix=xs[0],
                positions=positions,
                mask=mask,
                decode=True,
                kv_cache=kv_cache,
                return_prelogits=True,
            )
        return [hidden], (k, v)


@flax.struct.dataclass
class OpenpiPolicy(PiPolicy):
    """A pi0 or pi0.5 that openpi loaded. Make it with `wrap`."""

    modules: Modules | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def model(self) -> StockPi0:
        return StockPi0(self.config, self.modules)

    def sample(
        self,
        obs: Observation,
        key: Array,
        *,
        state: Any = (),
        edits: Sequence[Edit] = (),
        taps: Sequence[Tap] = (),
        prefix: Prefix | None = None,
    ) -> Sample:
        """See `PiPolicy.sample`."""
        noise = self.noise(key, obs.batch_size)
        return _sample(self.model, self.variables, obs, noise, Hooks.of(edits, taps), prefix)

    def noise(self, key: Array, batch: int) -> Float[Array, "b h a"]:
        """What the flow begins from, the same as our own policy's."""
        shape = (self.config.action_horizon, self.config.action_dim)
        return jax.vmap(lambda k: normal(k, shape))(element_keys(key, batch))


@functools.partial(jax.jit, static_argnames="model")
def _sample(model, variables, obs, noise, hooks, prefix):
    """openpi's Euler steps, its rounding included."""
    steps = model.config.num_steps
    hooks.check_steps(steps)
    if prefix is None:
        prefix = prefill(model, variables, obs, hooks)
    prefix.check(model.config, obs)
    dt = -1.0 / steps

    def step(carry, i):
        x_t, time = carry
        v, found = velocity(
            model,
            variables,
            prefix,
            obs.state,
            x_t,
            i,
            hooks,
            num_steps=steps,
            state_mask=obs.state_mask,
            time=time,
        )
        return (x_t + (dt * v).astype(x_t.dtype), time + dt), (found, v)

    begin = noise, jnp.float32(1)
    (actions, _), (found, velocities) = jax.lax.scan(step, begin, jnp.arange(steps))
    aux = {"velocity": jnp.swapaxes(velocities, 0, 1)}
    return Sample(actions, {**prefix.taps, **found}, aux)


@flax.struct.dataclass
class OpenpiFastPolicy(FastPolicy):
    """A pi0-FAST that openpi loaded. Make it with `wrap`."""

    modules: Modules | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def model(self) -> StockPi0Fast:
        return StockPi0Fast(self.config, self.modules)


def wrap(
    model: nnx.Module,
    preset: RobotPreset,
    tokenizer: PromptTokenizer | FastTokenizer,
    norm_stats: dict[str, NormStats],
    *,
    max_decoding_steps: int = 256,
    name: str = "openpi",
) -> OpenpiPolicy | OpenpiFastPolicy:
    """A policy of an openpi model.

    Args:
        model: a `Pi0` or `Pi0FAST` instance of openpi, with its weights.
        preset: the robot.
        tokenizer: a `FastTokenizer` for pi0-FAST, else a `PromptTokenizer`.
        norm_stats: "state" and "actions" statistics, as `load_norm_stats` reads them.
        max_decoding_steps: most tokens of one action (pi0-FAST).
        name: for tables.

    Raises:
        TypeError: not an openpi model, or a tokenizer of the other kind.
    """
    config, params, modules = unbound(model)
    fast = isinstance(config, FastConfig)
    if isinstance(config, FastConfig):
        config = dataclasses.replace(config, max_decoding_steps=max_decoding_steps)
    if fast != isinstance(tokenizer, FastTokenizer):
        raise TypeError(
            f"{type(model).__name__} needs a {'FastTokenizer' if fast else 'PromptTokenizer'}, "
            f"not a {type(tokenizer).__name__}."
        )
    kind: Any = OpenpiFastPolicy if fast else OpenpiPolicy
    return kind(
        config=config,
        variables={"params": params},
        tokenizer=tokenizer,
        norm_stats=norm_stats,
        preset=preset,
        name=name,
        modules=modules,
    )


def unbound(
    model: nnx.Module,
) -> tuple[Pi0Config | FastConfig, dict[str, Any], Modules]:
    """An openpi model taken apart: sizes, parameters and modules; TypeError if it is none."""
    modules = Modules.of(model)
    params = _pure_dict(nnx.state(model, nnx.Param))
    return read_config(model, params), params, modules


def _linen(bridge: Any) -> nn.Module:
    """The linen module under an NNX bridge, by the name that this flax gives it."""
    held = vars(bridge)
    for name in ("to_nnx__module", "module"):
        if name in held:
            return held[name]
    raise AttributeError(f"{type(bridge).__name__} holds no linen module")


def _pure_dict(state: Any) -> dict[str, Any]:
    """An NNX state as nested dicts of arrays: a function of flax, in older releases a method."""
    convert = getattr(nnx, "to_pure_dict", None)
    return state.to_pure_dict() if convert is None else convert(state)


def _filled(state: Any, values: Mapping[str, Any]) -> Any:
    """A copy of an NNX state with other arrays."""
    state = jax.tree.map(lambda leaf: leaf, state)
    replace = getattr(nnx, "replace_by_pure_dict", None)
    if replace is None:
        state.replace_by_pure_dict(dict(values))
    else:
        replace(state, dict(values))
    return state


def read_config(model: Any, params: dict[str, Any]) -> Pi0Config | FastConfig:
    """Model sizes, read off the parameters' shapes."""
    img, llm = params["PaliGemma"]["img"], params["PaliGemma"]["llm"]
    block = img["Transformer"]["encoderblock"]
    query = block["MultiHeadDotProductAttention_0"]["query"]["kernel"]
    patch = img["embedding"]["kernel"].shape[:2]
    side = round(img["pos_embedding"].shape[1] ** 0.5)
    dtype = getattr(_linen(model.PaliGemma.llm), "embed_dtype", "bfloat16")
    common: dict[str, Any] = {
        "siglip": SiglipConfig(
            width=query.shape[1],
            depth=query.shape[0],
            mlp_dim=block["MlpBlock_0"]["Dense_0"]["kernel"].shape[-1],
            num_heads=query.shape[2],
            patch_size=patch,
        ),
        "vlm": _gemma_config(llm["layers"], 0),
        "vocab_size": llm["embedder"]["input_embedding"].shape[0],
        "image_size": side * patch[0],
        "action_dim": model.action_dim,
        "action_horizon": model.action_horizon,
        "max_token_len": model.max_token_len,
        "dtype": str(dtype),
    }
    if "action_in_proj" not in params:
        return FastConfig(image_keys=FAST_IMAGE_KEYS, **common)
    return Pi0Config(
        action_expert=_gemma_config(llm["layers"], 1),
        image_keys=IMAGE_KEYS,
        pi05="time_mlp_in" in params,
        **common,
    )


def _gemma_config(layers: dict[str, Any], index: int) -> GemmaConfig:
    attention, mlp = layers["attn"], layers[expert_name("mlp", index)]
    depth, heads, head_dim, width = attention[expert_name("attn_vec_einsum", index)]["w"].shape
    together = expert_name("qkv_einsum", index) in attention
    kv_heads = heads if together else attention[expert_name("kv_einsum", index)]["w"].shape[2]
    hidden = mlp["linear"].shape[1]
    return GemmaConfig(width, depth, hidden, heads, kv_heads, head_dim)


def _gemma_stream(index: int, experts: int) -> Stream:
    heads, ffn = ("attn", expert_name("attn_vec_einsum", index)), (expert_name("mlp", index),)
    points = {
        # An einsum is called with its equation first.
        "attn_heads": Point(heads, argument=1),
        "attn_out": Point(heads),
        # gate, up, and third the down projection of the neurons.
        "mlp_neurons": Point(ffn, argument=0, method="_dot", call=2),
        "mlp_out": Point(ffn),
    }
    return Stream(points, carry_index=None if experts == 1 else index)


def _take_second(result: Any) -> tuple[Any, Any]:
    """`(out, (y, captures), *rest)` -> `((out, y, *rest), captures)`."""
    out, (y, captures), *rest = result
    return (out, y, *rest), captures


def _take_per_layer(result: Any) -> tuple[Any, Any]:
    """SigLIP's encoder hands what its blocks emit out layer by layer, as `block00`, `block01`..."""
    out, emitted = result
    layers = {name: value for name, value in emitted.items() if name.startswith("block")}
    captures = [layers[name][1] for name in sorted(layers)]
    stacked = jax.tree.map(lambda *values: jnp.stack(values), *captures)
    return (out, {**emitted, **{name: value[0] for name, value in layers.items()}}), stacked


@contextlib.contextmanager
def _unchecked():
    """Around openpi's code: its array types are not checked, and it promotes as it was written to,
    whatever JAX is set to.
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)

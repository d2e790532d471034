"""Gemma with several experts that share one attention, as pi0 uses it.

Parameter names and shapes are openpi's (`layers/attn/q_einsum/w`, `layers/mlp_1/gating_einsum`,
...; the second expert carries the suffix `_1`), so its checkpoints load unchanged. Products are
written on 2-D operands: XLA's CPU weight gradients are several times faster that way, and a GPU
does not mind.

Source: Gemma (arXiv 2403.08295), pi0 (arXiv 2410.24164), adaptive RMSNorm of pi0.5 (arXiv
    2504.16054).
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mistjax.models.config import GemmaConfig

MASKED_LOGIT = -2.3819763e38
_MAX_WAVELENGTH = 10_000

KVCache = tuple[Float[Array, "..."], Float[Array, "..."]]
"""(k, v), each [L,B,S,K,h]."""


def expert_name(name: str, index: int) -> str:
    """openpi's parameter name: the first expert has none, the i-th the suffix `_i`."""
    return name if index == 0 else f"{name}_{index}"


def matmul(x: Float[Array, "... d"], w: Float[Array, "d k"]) -> Float[Array, "... k"]:
    """x @ w with x flattened to two dimensions."""
    return (x.reshape(-1, x.shape[-1]) @ w.astype(x.dtype)).reshape(*x.shape[:-1], w.shape[-1])


def apply_rope(x: Float[Array, "b t n h"], positions: Int[Array, "b t"]) -> Float[Array, "b t n h"]:
    """Rotary embedding with split halves, in float32; returned in the dtype of x."""
    half = x.shape[-1] // 2
    timescale = _MAX_WAVELENGTH ** ((2.0 / x.shape[-1]) * jnp.arange(half, dtype=jnp.float32))
    radians = positions[..., None, None].astype(jnp.float32) / timescale[None, None, None]
    sin, cos = jnp.sin(radians), jnp.cos(radians)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm; with a condition the scale, shift and residual gate come from it (adaRMS)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], condition: Float[Array, "b c"] | None):
        """Returns (normed, gate); gate is None without a condition, else [B,1,D]."""
        var = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
        normed = x.astype(jnp.float32) * jax.lax.rsqrt(var + 1e-6)
        if condition is None:
            scale = self.param("scale", nn.initializers.zeros_init(), (x.shape[-1],))
            scale = (1 + scale[None, None]).astype(jnp.float32)
            return (normed * scale).astype(x.dtype), None
        dense = nn.Dense(3 * x.shape[-1], kernel_init=nn.initializers.zeros_init(), dtype=x.dtype)
        scale, shift, gate = jnp.split(dense(condition)[:, None], 3, axis=-1)
        out = normed * (1 + scale).astype(jnp.float32) + shift.astype(jnp.float32)
        return out.astype(x.dtype), gate


def gated_residual(x: Array, y: Array, gate: Array | None) -> Array:
    """The residual stream after a block: x + y, times adaRMS's gate if there is one."""
    return x + y if gate is None else x + y * gate


class Embedder(nn.Module):
    """The tied token embedding."""

    vocab_size: int
    width: int

    def setup(self) -> None:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
        self.input_embedding = self.param("input_embedding", init, (self.vocab_size, self.width))

    def lookup(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Unscaled rows of the table."""
        return self.input_embedding[tokens]

    def decode(self, x: Float[Array, "... d"]) -> Float[Array, "... v"]:
        return matmul(x, self.input_embedding.T)


class Projection(nn.Module):
    """A weight named `w`, as openpi's Einsum; `fan_in` axes of its shape are the input."""

    shape: tuple[int, ...]
    in_axis: tuple[int, ...]

    def setup(self) -> None:
        batch = tuple(i for i in range(len(self.shape) - 2) if i not in self.in_axis)
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "normal", in_axis=self.in_axis, out_axis=-1, batch_axis=batch
        )
        self.w = self.param("w", init, self.shape)


class HeadsIn(Projection):
    """Width to heads, w [..., N, D, h]: x [B,T,D] -> [B,T,M,h] with M = every leading axis of w."""

    def __call__(self, x):
        w = self.w.reshape(-1, *self.shape[-2:])
        flat = jnp.transpose(w, (1, 0, 2)).reshape(x.shape[-1], -1)
        return matmul(x, flat).reshape(*x.shape[:-1], w.shape[0], w.shape[2])


class HeadsOut(Projection):
    """Heads to width, w [N,h,D]: x [B,T,N,h] -> [B,T,D]."""

    def __call__(self, x):
        return matmul(x.reshape(*x.shape[:-2], -1), self.w.reshape(-1, self.shape[-1]))


def grouped_attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: Bool[Array, "b t s"],
) -> Float[Array, "b t n h"]:
    """Grouped-query attention; the N/K heads of a group are folded into the query axis."""
    b, t, n, h = q.shape
    kv_heads = k.shape[2]
    rows = q.reshape(b, t, kv_heads, n // kv_heads, h).transpose(0, 2, 1, 3, 4)
    rows = rows.reshape(b, kv_heads, -1, h)
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    logits = jnp.matmul(rows, keys.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    logits = logits.reshape(b, kv_heads, t, n // kv_heads, -1)
    logits = jnp.where(mask[:, None, :, None], logits, MASKED_LOGIT)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype).reshape(b, kv_heads, -1, k.shape[1])
    heads = jnp.matmul(weights, values).reshape(b, kv_heads, t, n // kv_heads, h)
    return heads.transpose(0, 2, 1, 3, 4).reshape(b, t, n, h)


class Attention(nn.Module):
    """Each expert projects its own tokens; all of them attend together."""

    configs: Sequence[GemmaConfig]

    @nn.compact
    def __call__(self, xs, positions, mask, kv_cache):
        first = self.configs[0]
        heads, kv_heads, size = first.num_heads, first.num_kv_heads, first.head_dim
        queries, keys, values = [], [], []
        for i, (x, config) in enumerate(zip(xs, self.configs, strict=True)):
            if x is None:
                continue
            if heads == kv_heads:
                shape = (3, heads, config.width, size)
                qkv = HeadsIn(shape, (2,), name=expert_name("qkv_einsum", i))(x)
                q, k, v = jnp.split(qkv, 3, axis=2)
            else:
                shape = (heads, config.width, size)
                q = HeadsIn(shape, (1,), name=expert_name("q_einsum", i))(x)
                shape = (2, kv_heads, config.width, size)
                kv = HeadsIn(shape, (2,), name=expert_name("kv_einsum", i))(x)
                k, v = jnp.split(kv, 2, axis=2)
            queries.append(q)
            keys.append(k)
            values.append(v)
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in (queries, keys, values))
        q = apply_rope(q, positions) * size**-0.5
        k = apply_rope(k, positions)
        if kv_cache is not None:
            k = jnp.concatenate([kv_cache[0], k], axis=1)
            v = jnp.concatenate([kv_cache[1], v], axis=1)
        attended = grouped_attention(q, k, v, mask)
        outs, start = [], 0
        for i, (x, config) in enumerate(zip(xs, self.configs, strict=True)):
            if x is None:
                outs.append(None)
                continue
            project = HeadsOut(
                (heads, size, config.width), (0, 1), name=expert_name("attn_vec_einsum", i)
            )
            outs.append(project(attended[:, start : start + x.shape[1]]))
            start += x.shape[1]
        return outs, (k, v)


class FeedForward(nn.Module):
    """gelu(x W0) * (x W1), the neuron activations, then the down projection."""

    width: int
    hidden: int

    def setup(self) -> None:
        up = nn.initializers.variance_scaling(
            1.0, "fan_in", "normal", in_axis=1, out_axis=2, batch_axis=0
        )
        self.gating_einsum = self.param("gating_einsum", up, (2, self.width, self.hidden))
        down = nn.initializers.lecun_normal()
        self.linear = self.param("linear", down, (self.hidden, self.width))

    def __call__(self, x):
        gate = jax.nn.gelu(matmul(x, self.gating_einsum[0]), approximate=True)
        return self.project_down(gate * matmul(x, self.gating_einsum[1]))

    def project_down(self, neurons: Float[Array, "b t f"]) -> Float[Array, "b t d"]:
        return matmul(neurons, self.linear)


class Block(nn.Module):
    """One layer of all experts: shared attention, then a feed-forward each."""

    configs: Sequence[GemmaConfig]

    @nn.compact
    def __call__(self, xs, kv_cache, positions, mask, conditions):
        normed, gates = self._norm("pre_attention_norm", xs, conditions)
        attended, kv_cache = Attention(self.configs, name="attn")(normed, positions, mask, kv_cache)
        xs = [
            None if x is None else gated_residual(x, y, gate)
            for x, y, gate in zip(xs, attended, gates, strict=True)
        ]
        normed, gates = self._norm("pre_ffw_norm", xs, conditions)
        out = []
        for i, (x, y, config) in enumerate(zip(xs, normed, self.configs, strict=True)):
            if x is None:
                out.append(None)
                continue
            ffn = FeedForward(config.width, config.mlp_dim, name=expert_name("mlp", i))
            out.append(gated_residual(x, ffn(y), gates[i]))
        return out, kv_cache

    def _norm(self, name, xs, conditions):
        pairs = [
            (None, None) if x is None else RMSNorm(name=expert_name(name, i))(x, condition)
            for i, (x, condition) in enumerate(zip(xs, conditions, strict=True))
        ]
        return [normed for normed, _ in pairs], [gate for _, gate in pairs]


class Gemma(nn.Module):
    """The layer stack of all experts, scanned: every parameter has the layer axis first."""

    configs: Sequence[GemmaConfig]
    vocab_size: int
    dtype: str
    remat: bool

    def setup(self) -> None:
        self.embedder = Embedder(self.vocab_size, self.configs[0].width)
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.configs[0].depth,
        )(self.configs)
        self.final_norms = [
            RMSNorm(name=expert_name("final_norm", i)) for i in range(len(self.configs))
        ]

    def __call__(
        self,
        xs: Sequence[Float[Array, "b _t _d"] | None],
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t s"],
        conditions: Sequence[Float[Array, "b c"] | None],
        kv_cache: KVCache | None = None,
    ):
        """Runs the experts whose tokens are given.

        Args:
            xs: tokens of each expert, or None for an expert that does not run.
            positions: of the concatenated tokens, for rotary embedding.
            mask: True where a query (concatenated tokens) may see a key (cache, then tokens).
            conditions: adaRMS condition of each expert, or None.
            kv_cache: keys and values of earlier tokens, [L,B,S,K,h] each.

        Returns:
            (outputs of each expert after its final norm, the KV cache with the new tokens
            appended).
        """
        xs = [None if x is None else x.astype(self.dtype) for x in xs]
        xs, kv_cache = self.layers(xs, kv_cache, positions, mask, list(conditions))
        outs = [
            None if x is None else norm(x, condition)[0]
            for x, norm, condition in zip(xs, self.final_norms, conditions, strict=True)
        ]
        return outs, kv_cache

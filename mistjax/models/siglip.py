"""The SigLIP vision tower (So400m/14 in pi0): patches in, one token per patch out, no pooling.

Parameter names are big_vision's, as in openpi's checkpoints. Embedding runs in float32, the encoder
in the compute dtype.

Source: SigLIP (arXiv 2303.15343).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mistjax.models.config import SiglipConfig
from mistjax.models.gemma import matmul


class DenseGeneral(nn.Module):
    """A dense layer whose kernel is `in_shape + out_shape` (heads kept as an axis), with bias."""

    in_shape: Sequence[int]
    out_shape: Sequence[int]

    @nn.compact
    def __call__(self, x):
        rows, columns = math.prod(self.in_shape), math.prod(self.out_shape)

        def init(key, shape, dtype=jnp.float32):
            return nn.initializers.xavier_uniform()(key, (rows, columns), dtype).reshape(shape)

        kernel = self.param("kernel", init, (*self.in_shape, *self.out_shape))
        bias = self.param("bias", nn.initializers.zeros_init(), tuple(self.out_shape))
        flat = x.reshape(*x.shape[: x.ndim - len(self.in_shape)], rows)
        bias = bias.reshape((1,) * (flat.ndim - 1) + (columns,)).astype(x.dtype)
        out = matmul(flat, kernel.reshape(rows, columns)) + bias
        return out.reshape(*flat.shape[:-1], *self.out_shape)


def _norm(x, name: str):
    # Flax takes statistics in float32, which strict promotion refuses for half precision.
    with jax.numpy_dtype_promotion("standard"):
        return nn.LayerNorm(dtype=x.dtype, name=name)(x)


class SelfAttention(nn.Module):
    """Multi-head attention among all tokens of a picture."""

    num_heads: int

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        heads = (self.num_heads, width // self.num_heads)
        q, k, v = (
            DenseGeneral((width,), heads, name=name)(x) for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqnh,bknh->bnqk", q * heads[1] ** -0.5, k)
        weights = jax.nn.softmax(logits, axis=-1)
        return DenseGeneral(heads, (width,), name="out")(jnp.einsum("bnqk,bknh->bqnh", weights, v))


class MlpBlock(nn.Module):
    """Two layers with GELU between them."""

    mlp_dim: int

    @nn.compact
    def __call__(self, x):
        hidden = DenseGeneral((x.shape[-1],), (self.mlp_dim,), name="Dense_0")(x)
        hidden = jax.nn.gelu(hidden, approximate=True)
        return DenseGeneral((self.mlp_dim,), (x.shape[-1],), name="Dense_1")(hidden)


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP; the carry and output of a scan over layers."""

    config: SiglipConfig

    @nn.compact
    def __call__(self, x, _):
        attention = SelfAttention(self.config.num_heads, name="MultiHeadDotProductAttention_0")
        x = x + attention(_norm(x, "LayerNorm_0"))
        mlp = MlpBlock(self.config.mlp_dim, name="MlpBlock_0")
        return x + mlp(_norm(x, "LayerNorm_1")), None


class Encoder(nn.Module):
    """The blocks as one scan, and the final norm."""

    config: SiglipConfig
    remat: bool

    @nn.compact
    def __call__(self, x):
        """Returns (normed tokens, what the blocks emitted; None unless a hook adds to it)."""
        block = nn.remat(EncoderBlock, prevent_cse=False) if self.remat else EncoderBlock
        x, emitted = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.config.depth,
        )(self.config, name="encoderblock")(x, None)
        return _norm(x, "encoder_norm"), emitted


def project(params: Mapping[str, Any], resid: Float[Any, "*b n w"]) -> Float[Array, "*b n d"]:
    """What leaves a tower whose last block left `resid`.

    Args:
        params: of a `Siglip`.
        resid: value of the tap `vision.resid@-1`.
    """
    norm: Any = nn.LayerNorm().apply({"params": params["Transformer"]["encoder_norm"]}, resid)
    return norm @ params["head"]["kernel"] + params["head"]["bias"][(None,) * (norm.ndim - 1)]


class Siglip(nn.Module):
    """Images in [-1, 1] to tokens of the language model's width."""

    config: SiglipConfig
    out_width: int
    dtype: str
    remat: bool

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
        (ph, pw), (b, height, width, _) = self.config.patch_size, images.shape
        rows, columns = height // ph, width // pw
        patches = images.astype(jnp.float32)[:, : rows * ph, : columns * pw]
        patches = patches.reshape(b, rows, ph, columns, pw, 3).transpose(0, 1, 3, 2, 4, 5)
        embed = DenseGeneral((ph, pw, 3), (self.config.width,), name="embedding")
        x = embed(patches.reshape(b, rows * columns, ph, pw, 3))
        init = nn.initializers.normal(stddev=self.config.width**-0.5)
        x = x + self.param("pos_embedding", init, (1, rows * columns, self.config.width))
        x, _ = Encoder(self.config, self.remat, name="Transformer")(x.astype(self.dtype))
        return DenseGeneral((self.config.width,), (self.out_width,), name="head")(x)

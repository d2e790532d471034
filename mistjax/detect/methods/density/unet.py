"""A conditional 1-D U-Net, the network of the RND and logpZO detectors.

Convolutions along a short sequence; a step embedding (and optionally a condition vector) modulates
every block. Source: the Diffusion Policy network (arXiv 2303.04137) as FAIL-Detect (arXiv
2503.08558) and SAFE use it.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def sinusoidal_embedding(step: Float[Array, " n"], dim: int) -> Float[Array, "n e"]:
    """sin then cos of `step` at dim / 2 frequencies from 1 to 1/10000."""
    rate = jnp.exp(-jnp.log(10000.0) / (dim // 2 - 1) * jnp.arange(dim // 2, dtype=jnp.float32))
    angle = step[:, None] * rate[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class ConvBlock(nn.Module):
    """Convolution, group normalisation, Mish."""

    features: int
    kernel: int
    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h c"]) -> Float[Array, "n h d"]:
        x = nn.Conv(self.features, (self.kernel,), padding=self.kernel // 2, name="conv")(x)
        x = nn.GroupNorm(self.groups, epsilon=1e-5, name="norm")(x)
        return jax.nn.mish(x)


class ResidualBlock(nn.Module):
    """Two convolution blocks with the modulation between them, and a skip connection."""

    features: int
    kernel: int
    groups: int
    scale: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h c"], condition: Float[Array, "n k"]
    ) -> Float[Array, "n h d"]:
        y = ConvBlock(self.features, self.kernel, self.groups, name="block_0")(x)
        width = self.features * (2 if self.scale else 1)
        shift = nn.Dense(width, name="condition")(jax.nn.mish(condition))[:, None]
        if self.scale:
            gain, shift = jnp.split(shift, 2, axis=-1)
            y = gain * y
        y = ConvBlock(self.features, self.kernel, self.groups, name="block_1")(y + shift)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1,), name="residual")(x)
        return y + x


class UNet1D(nn.Module):
    """Sequence [n, h, c] to sequence [n, h, c]; h must be a multiple of 2 ** (levels - 1).

    Attributes:
        channels: width of each level.
        kernel: of the convolutions.
        groups: of the normalisation.
        step_dim: size of the step embedding.
        scale: modulate by scale and bias, not by bias only.
    """

    channels: tuple[int, ...] = (256, 512, 1024)
    kernel: int = 5
    groups: int = 8
    step_dim: int = 128
    scale: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h c"],
        step: Float[Array, " n"],
        condition: Float[Array, "n k"] | None = None,
    ) -> Float[Array, "n h c"]:
        def block(features: int, name: str) -> ResidualBlock:
            return ResidualBlock(features, self.kernel, self.groups, self.scale, name=name)

        e = sinusoidal_embedding(step, self.step_dim)
        e = jax.nn.mish(nn.Dense(4 * self.step_dim, name="step_in")(e))
        e = nn.Dense(self.step_dim, name="step_out")(e)
        c = e if condition is None else jnp.concatenate([e, condition], axis=-1)
        out_dim, skips, last = x.shape[-1], [], len(self.channels) - 1
        for i, features in enumerate(self.channels):
            x = block(features, f"down_{i}_1")(block(features, f"down_{i}_0")(x, c), c)
            skips.append(x)
            if i < last:
                x = nn.Conv(features, (3,), strides=(2,), padding=1, name=f"shrink_{i}")(x)
        for i in range(2):
            x = block(self.channels[-1], f"mid_{i}")(x, c)
        for i, features in enumerate(reversed(self.channels[:-1])):
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = block(features, f"up_{i}_1")(block(features, f"up_{i}_0")(x, c), c)
            x = nn.ConvTranspose(features, (4,), strides=(2,), padding=((2, 2),), name=f"grow_{i}")(
                x
            )
        x = ConvBlock(self.channels[0], self.kernel, self.groups, name="final")(x)
        return nn.Conv(out_dim, (1,), name="out")(x)


def to_sequence(
    flat: Float[Array, "n d"], channels: int, multiple: int = 4
) -> Float[Array, "n h c"]:
    """Reshape vectors to [n, h, channels], zero-padded at the end so that h is a multiple of
    `multiple`.
    """
    block = channels * multiple
    padded = jnp.pad(flat, ((0, 0), (0, -flat.shape[-1] % block)))
    return padded.reshape(flat.shape[0], -1, channels)

"""pi0 and pi0.5: a vision-language model and an action expert that denoises a chunk of actions.

In the order that data flows: prefix (cameras, prompt) -> KV cache; suffix (state, noisy actions,
time) -> velocity. The sampler lives in `sampling`, the loss here. The prefix never sees the suffix,
so its cache is computed once for all flow steps, and for all noise samples of a training example.

Source: pi0 (arXiv 2410.24164), pi0.5 (arXiv 2504.16054). Parameter tree and conventions: openpi.
Time runs from 1 (noise) to 0 (action).
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mistjax.hooks.adapters import ScannedStack
from mistjax.models.config import FastConfig, Pi0Config
from mistjax.models.gemma import Gemma, KVCache
from mistjax.models.observation import Observation
from mistjax.models.siglip import Siglip
from mistjax.models.stacks import scanned_stacks


def attention_mask(valid: Bool[Array, "b t"], ar: Bool[Array, " t"]) -> Bool[Array, "b t t"]:
    """A query sees valid keys of its own and earlier blocks; `ar` is True where one begins."""
    block = jnp.cumsum(ar)
    return (block[None, :] <= block[:, None])[None] & valid[:, None, :] & valid[:, :, None]


def time_embedding(
    t: Float[Array, " b"], width: int, min_period: float = 4e-3, max_period: float = 4.0
) -> Float[Array, "b w"]:
    """Sine then cosine of `t * 2 pi / period`, periods geometric."""
    fraction = jnp.linspace(0.0, 1.0, width // 2, dtype=jnp.float32)
    period = min_period * (max_period / min_period) ** fraction
    angle = t[:, None] * (1.0 / period * 2 * jnp.pi)[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class PaliGemma(nn.Module):
    """Vision tower and language model, under the names of openpi."""

    config: Pi0Config | FastConfig

    def setup(self) -> None:
        c = self.config
        self.img = Siglip(c.siglip, c.vlm.width, c.dtype, c.remat)
        self.llm = Gemma(c.experts, c.vocab_size, c.dtype, c.remat)


class PrefixModel(nn.Module):
    """What reads the prefix: cameras and prompt. Base of the pi0 family; the subclass acts."""

    config: Pi0Config | FastConfig

    def setup(self) -> None:
        self.PaliGemma = self.vision_language()

    @nn.nowrap
    def vision_language(self) -> nn.Module:
        """The module that holds `img` and `llm`."""
        return PaliGemma(self.config)

    @nn.nowrap
    def stacks(self) -> tuple[ScannedStack, ...]:
        """The scanned stacks, for taps and edits."""
        return scanned_stacks(self.config)

    def run_llm(self, xs, positions, mask, conditions, kv_cache=None) -> tuple[Any, KVCache]:
        """The Gemma stack: (outputs of each expert, KV cache), see `Gemma`."""
        return self.PaliGemma.llm(xs, positions, mask, conditions, kv_cache)

    def embed_images(self, images: dict[str, Float[Array, "b h w 3"]]) -> Float[Array, "b n d"]:
        """All cameras in one pass of the vision tower, tokens in `image_keys` order."""
        keys = self.config.image_keys
        stacked = jnp.stack([images[key] for key in keys], axis=1)
        tokens = self.PaliGemma.img(stacked.reshape(-1, *stacked.shape[2:]))
        return tokens.reshape(stacked.shape[0], -1, tokens.shape[-1])

    def embed_tokens(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Rows of the embedding table, before the sqrt(width) scale."""
        return self.PaliGemma.llm.embedder.lookup(tokens)

    def decode(self, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
        """Hidden states (after the final norm) or directions -> logits over the vocabulary."""
        return self.PaliGemma.llm.embedder.decode(hidden)

    def embed_prefix(self, obs: Observation) -> tuple[Array, Array, Array]:
        """Camera tokens then prompt tokens: (tokens [B,P,D], valid [B,P], ar [P])."""
        images = obs.image_embedding
        if images is None:
            images = self.embed_images(obs.images)  # pyright: ignore[reportArgumentType]
        per_camera = images.shape[1] // len(self.config.image_keys)
        present = jnp.stack([obs.image_masks[k] for k in self.config.image_keys], axis=1)
        words = obs.prompt_embedding
        if words is None:
            words = self.embed_tokens(obs.tokenized_prompt)  # pyright: ignore[reportArgumentType]
        words = words * self.config.vlm.width**0.5
        tokens = jnp.concatenate([images, words.astype(images.dtype)], axis=1)
        valid = jnp.concatenate(
            [jnp.repeat(present, per_camera, axis=1), obs.tokenized_prompt_mask], axis=1
        )
        return tokens, valid, jnp.zeros(tokens.shape[1], bool)

    def prefill(
        self, obs: Observation, continuation: Int[Array, "b c"] | None = None
    ) -> tuple[KVCache, Array, Array]:
        """Runs the VLM over the prefix.

        Args:
            obs: the observation.
            continuation: text that follows the prompt (0 = padding), read causally; used to train
                and to score language. An action expert never sees it.

        Returns:
            (KV cache of the prefix, valid [B,P], hidden states after the final norm [B,P(+C),D]).
        """
        tokens, valid, ar = self.embed_prefix(obs)
        prefix_valid, prefix = valid, tokens.shape[1]
        if continuation is not None:
            more = self.embed_tokens(continuation) * self.config.vlm.width**0.5
            tokens = jnp.concatenate([tokens, more.astype(tokens.dtype)], axis=1)
            valid = jnp.concatenate([valid, continuation != 0], axis=1)
            ar = jnp.concatenate([ar, jnp.ones(continuation.shape[1], bool)])
        positions = jnp.cumsum(valid, axis=1) - 1
        mask = attention_mask(valid, ar)
        others = [None] * (len(self.config.experts) - 1)
        (hidden, *_), cache = self.run_llm([tokens, *others], positions, mask, [None, *others])
        return jax.tree.map(lambda leaf: leaf[:, :, :prefix], cache), prefix_valid, hidden


class Pi0(PrefixModel):
    """The model. Apply its methods with `model.apply(variables, ..., method=Pi0.prefill)`."""

    config: Pi0Config

    def setup(self) -> None:
        width, out = self.config.action_expert.width, self.config.action_dim
        super().setup()
        self.action_in_proj = nn.Dense(width)
        if self.config.pi05:
            self.time_mlp_in, self.time_mlp_out = nn.Dense(width), nn.Dense(width)
        else:
            self.state_proj = nn.Dense(width)
            self.action_time_mlp_in, self.action_time_mlp_out = nn.Dense(width), nn.Dense(width)
        self.action_out_proj = nn.Dense(out)

    def __call__(self, obs: Observation, x_t, t):
        """Touches every parameter; what `init` calls. Returns the velocity [B,H,A]."""
        cache, valid, _ = self.prefill(obs)
        return self.velocity(cache, valid, obs.state, x_t, t)[0]  # pyright: ignore[reportArgumentType]

    def embed_suffix(
        self, state, x_t, t, state_mask=None
    ) -> tuple[Array, Array, Array, Array | None]:
        """State (pi0 only) and noisy actions: (tokens, valid, ar, adaRMS condition or None)."""
        b, horizon, _ = x_t.shape
        actions = self.action_in_proj(x_t)
        time = time_embedding(t, self.config.action_expert.width)
        if self.config.pi05:
            condition = nn.swish(self.time_mlp_out(nn.swish(self.time_mlp_in(time))))
            tokens, ar = actions, jnp.arange(horizon) == 0
        else:
            both = jnp.concatenate(
                [actions, jnp.broadcast_to(time[:, None], actions.shape)], axis=-1
            )
            actions = self.action_time_mlp_out(nn.swish(self.action_time_mlp_in(both)))
            tokens = jnp.concatenate([self.state_proj(state)[:, None], actions], axis=1)
            ar, condition = jnp.arange(horizon + 1) < 2, None
        valid = jnp.ones((b, tokens.shape[1]), bool)
        if state_mask is not None and not self.config.pi05:
            valid = valid.at[:, 0].set(state_mask)
        return tokens, valid, ar, condition

    def velocity(
        self,
        cache: KVCache,
        prefix_valid: Bool[Array, "b p"],
        state: Float[Array, "b s"],
        x_t: Float[Array, "b h a"],
        t: Float[Array, " b"],
        state_mask: Bool[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b h a"], Float[Array, "b t d"]]:
        """Runs the action expert once: (velocity [B,H,A], its hidden states [B,T,D] after the final
        norm).
        """
        tokens, valid, ar, condition = self.embed_suffix(state, x_t, t, state_mask)
        own = attention_mask(valid, ar)
        to_prefix = jnp.broadcast_to(prefix_valid[:, None], (*valid.shape, prefix_valid.shape[1]))
        positions = jnp.sum(prefix_valid, axis=1, keepdims=True) + jnp.cumsum(valid, axis=1) - 1
        (_, hidden), _ = self.run_llm(
            [None, tokens],
            positions,
            jnp.concatenate([to_prefix, own], axis=-1),
            [None, condition],
            cache,
        )
        return self.project_out(hidden[:, -x_t.shape[1] :]), hidden

    def project_out(self, hidden: Float[Array, "b h d"]) -> Float[Array, "b h a"]:
        """The velocity that hidden states of the action tokens stand for."""
        return self.action_out_proj(hidden.astype(jnp.float32))


def flow_noise(
    key: PRNGKeyArray, actions: Float[Array, "b h a"]
) -> tuple[Float[Array, "b h a"], Float[Array, " b"]]:
    """openpi's draws of (noise, time); time ~ Beta(1.5, 1) on (0.001, 1]."""
    _, noise_key, time_key = jax.random.split(key, 3)
    noise = jax.random.normal(noise_key, actions.shape)
    time = jax.random.beta(time_key, 1.5, 1, actions.shape[:1]) * 0.999 + 0.001
    return noise, time


def flow_loss(
    velocity: Float[Array, "b h a"], noise: Float[Array, "b h a"], actions: Float[Array, "b h a"]
) -> Float[Array, "b h"]:
    """Flow-matching loss: squared distance to `noise - actions`, mean over the action dimension."""
    return jnp.mean(jnp.square(velocity - (noise - actions)), axis=-1)


def compute_loss(
    model: Pi0, variables, key: PRNGKeyArray, obs: Observation, actions: Float[Array, "b h a"]
) -> Float[Array, "b h"]:
    """The flow-matching loss of one batch with one noise sample each."""
    noise, t = flow_noise(key, actions)
    wide = t[:, None, None]
    x_t = wide * noise + (1 - wide) * actions
    cache, valid, _ = model.apply(variables, obs, method=Pi0.prefill)  # pyright: ignore[reportAssignmentType]
    velocity, _ = model.apply(variables, cache, valid, obs.state, x_t, t, method=Pi0.velocity)
    return flow_loss(velocity, noise, actions)


@functools.partial(jax.jit, static_argnames="config")
def init(config: Pi0Config, key: PRNGKeyArray) -> Any:
    """Random variables `{"params": tree}` for a configuration."""
    return Pi0(config).init(key, *example_inputs(config))


def example_inputs(config: Pi0Config, batch: int = 1) -> tuple[Observation, Array, Array]:
    """(observation, x_t, t) of zeros in the right shapes."""
    x_t = jnp.zeros((batch, config.action_horizon, config.action_dim))
    return example_observation(config, batch), x_t, jnp.ones(batch)


def example_observation(config: Pi0Config | FastConfig, batch: int = 1) -> Observation:
    """All zeros in the right shapes."""
    c = config
    return Observation(
        images={k: jnp.zeros((batch, c.image_size, c.image_size, 3)) for k in c.image_keys},
        image_masks={k: jnp.ones(batch, bool) for k in c.image_keys},
        state=jnp.zeros((batch, c.action_dim)),
        tokenized_prompt=jnp.zeros((batch, c.max_token_len), jnp.int32),
        tokenized_prompt_mask=jnp.ones((batch, c.max_token_len), bool),
    )

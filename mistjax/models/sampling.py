"""Prefill and Euler sampling of the pi0 family, with taps and edits in both.

Source: pi0 (arXiv 2410.24164), section IV; Euler steps from t=1 (noise) to t=0 (action) as in
    openpi.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mistjax.hooks.hooks import Hooks
from mistjax.hooks.interceptor import Tokens, hooked_apply
from mistjax.models.config import FastConfig, Pi0Config
from mistjax.models.draws import element_keys, normal
from mistjax.models.gemma import KVCache
from mistjax.models.inpainting import Pending, guided
from mistjax.models.observation import Observation, check_observation
from mistjax.models.pi0 import Pi0, PrefixModel
from mistjax.models.stacks import token_layouts


@flax.struct.dataclass
class Prefix:
    """What acting needs of an observation, and what was tapped on the way.

    Attributes:
        cache: keys and values of the prefix.
        valid: which prefix tokens are real.
        hidden: VLM hidden states after the final norm.
        taps: `vision` and `vlm` taps.
    """

    cache: KVCache
    valid: Bool[Array, "b p"]
    hidden: Float[Array, "b p d"]
    taps: dict[str, Array]

    def check(self, config: Pi0Config | FastConfig, obs: Observation) -> None:
        """ValueError where it is the prefix of another batch size, or of another model."""
        expected = obs.batch_size, config.prefix_len
        if self.valid.shape != expected:
            raise ValueError(
                f"the prefix is of {self.valid.shape} elements and tokens, the observation of "
                f"{expected}: compute it from this observation."
            )


def prefill(
    model: PrefixModel,
    variables,
    obs: Observation,
    hooks: Hooks = Hooks(),
) -> Prefix:
    """Runs vision tower and VLM once; taps and edits of the `vision` and `vlm` stacks.

    If the observation brings its image embedding, edits of the vision tower come too late, and
    taps of it run the tower again.

    Raises:
        ValueError: an observation or an edit of other sizes than the model's.
    """
    config = model.config
    check_observation(config, obs)
    hooks.check_steps(config.num_steps)
    layouts = token_layouts(config)
    image_valid = _image_valid(config, obs)
    valid = jnp.concatenate([image_valid, obs.tokenized_prompt_mask], axis=1)
    tokens = {
        "vision": Tokens(layouts["vision"], image_valid),
        "vlm": Tokens(layouts["vlm"], valid),
    }
    seen: dict[str, Array] = {}
    if obs.image_embedding is not None:
        del tokens["vision"]
        if any(tap.stack == "vision" for tap in hooks.taps):
            seen = embed_images(model, variables, obs, hooks)[1]
    (cache, valid, hidden), found = hooked_apply(
        model,
        variables,
        obs,
        method=PrefixModel.prefill,
        stacks=model.stacks(),
        tokens=tokens,
        taps=hooks.taps,
        edits=hooks.edits,
    )
    return Prefix(cache, valid, hidden, {**seen, **found})


def embed_images(
    model: PrefixModel, variables, obs: Observation, hooks: Hooks = Hooks()
) -> tuple[Float[Array, "b n d"], dict[str, Array]]:
    """(projected tokens of all cameras, taps) of the vision tower alone; see
    `Observation.image_embedding`.
    """
    layout = token_layouts(model.config)["vision"]
    return hooked_apply(
        model,
        variables,
        obs.images,
        method=PrefixModel.embed_images,
        stacks=model.stacks(),
        tokens={"vision": Tokens(layout, _image_valid(model.config, obs))},
        taps=hooks.taps,
        edits=hooks.edits,
    )


def _image_valid(config: Pi0Config | FastConfig, obs: Observation) -> Bool[Array, "b n"]:
    present = jnp.stack([obs.image_masks[key] for key in config.image_keys], axis=1)
    return jnp.repeat(present, config.siglip.num_tokens(config.image_size), axis=1)


Field = Callable[[Float[Array, "b h a"]], tuple[Float[Array, "b h a"], dict[str, Array]]]
"""Noisy actions -> (velocity, taps of the action expert)."""
Guide = Callable[[Field, Float[Array, "b h a"], Float[Array, ""]], tuple[Array, dict[str, Array]]]
"""(plain field, noisy actions, time) -> (another velocity, the taps)."""


def draw_noise(config: Pi0Config, key: Array, batch: int) -> Float[Array, "b h a"]:
    """What the flow starts from: of one key, or of one for each batch element."""
    shape = (config.action_horizon, config.action_dim)
    return jax.vmap(lambda k: normal(k, shape))(element_keys(key, batch))


def denoise(
    model: Pi0,
    variables,
    prefix: Prefix,
    state: Float[Array, "b s"],
    noise: Float[Array, "b h a"],
    hooks: Hooks = Hooks(),
    *,
    num_steps: int,
    state_mask: Bool[Array, " b"] | None = None,
    pending: Pending | None = None,
    guide: Guide | None = None,
    first: int = 0,
) -> tuple[Float[Array, "b h a"], dict[str, Array], Float[Array, "n b h a"]]:
    """Euler steps from noise to actions, guided by what is `pending`; taps and edits of the
    `action` stack at every step.

    Args:
        model, variables, prefix, state, noise, hooks: what runs, and from where.
        num_steps: from noise to actions.
        state_mask, pending: see `Observation`.
        guide: changes the velocity of every step; None for none.
        first: step that begins, where `noise` is noisy actions of its time.

    Returns:
        (actions, taps with the flow step as leading axis, velocities of all steps).
    """
    hooks.check_steps(num_steps)

    def plain(x_t, i):
        return velocity(
            model,
            variables,
            prefix,
            state,
            x_t,
            i,
            hooks,
            num_steps=num_steps,
            state_mask=state_mask,
        )

    def steered(x_t, i):
        assert pending is not None
        return guided(lambda x: plain(x, i), x_t, 1.0 - jnp.float32(i) / num_steps, pending)

    def integrate(field, noise):
        def step(x_t, i):
            time = 1.0 - jnp.float32(i) / num_steps
            v, found = field(x_t, i) if guide is None else guide(lambda x: field(x, i), x_t, time)
            return x_t - v / num_steps, (found, v)

        actions, (found, velocities) = jax.lax.scan(step, noise, jnp.arange(first, num_steps))
        return actions, found, velocities

    if pending is None:
        return integrate(plain, noise)
    return jax.lax.cond(
        jnp.any(pending.weight > 0),
        lambda noise: integrate(steered, noise),
        lambda noise: integrate(plain, noise),
        noise,
    )


def velocity(
    model: Pi0,
    variables,
    prefix: Prefix,
    state: Float[Array, "b s"],
    noisy: Float[Array, "b h a"],
    step: Int[Array, ""] | int,
    hooks: Hooks = Hooks(),
    *,
    num_steps: int,
    state_mask: Bool[Array, " b"] | None = None,
    time: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "b h a"], dict[str, Array]]:
    """The velocity at noisy actions of one Euler step, and what was tapped; `time` defaults to that
    of the step.
    """
    at = 1.0 - jnp.float32(step) / num_steps if time is None else time
    layout = token_layouts(model.config)["action"]
    tokens = {"action": Tokens(layout, jnp.ones((noisy.shape[0], layout.length), bool))}
    (value, _), found = hooked_apply(
        model,
        variables,
        prefix.cache,
        prefix.valid,
        state,
        noisy,
        jnp.full(noisy.shape[0], at),
        state_mask,
        method=Pi0.velocity,
        stacks=model.stacks(),
        tokens=tokens,
        taps=hooks.taps,
        edits=hooks.edits,
        step=step,
    )
    return value, found

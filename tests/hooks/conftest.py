"""A tiny model whose sampler is one jitted function of edits, and an edit for any site."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import POINTS, Add, Affine, Hooks, Patch, ProjectOut, Scale, SetNeurons, Tap
from mistjax.models.config import TINY, TINY_FAST, FastConfig, Pi0Config
from mistjax.models.fast import Pi0Fast, write
from mistjax.models.observation import Observation
from mistjax.models.pi0 import Pi0
from mistjax.models.sampling import denoise, prefill
from mistjax.models.stacks import token_layouts

STACKS = ("vision", "vlm", "action")
TAPS = tuple(Tap(f"{stack}.{point}") for stack in STACKS for point in POINTS)
NARROW = (
    Tap("vlm.resid", (-1, 0), "text"),
    Tap("vlm.resid", (2,), "image", "mean"),
    Tap("vlm.attn_heads", None, "all", "max"),
    Tap("vlm.resid", (1,), "last"),
    Tap("action.mlp_out", (0,), "action:1-3"),
)


def depth(config, stack):
    return config.siglip.depth if stack == "vision" else config.vlm.depth


def value_shape(config, site):
    """One token's value at a site."""
    stack, point = site.split(".")
    sizes = {"vision": config.siglip, "vlm": config.vlm, "action": config.experts[-1]}[stack]
    if point == "mlp_neurons":
        return (sizes.mlp_dim,)
    if point == "attn_heads":
        head_dim = getattr(sizes, "head_dim", sizes.width // sizes.num_heads)
        return sizes.num_heads, head_dim
    return (sizes.width,)


def make_edit(config, kind, site, seed=0, batch=2, **fields):
    """An edit with random arrays that moves every chosen activation visibly."""
    rng, stack = np.random.default_rng(seed), site.split(".")[0]
    layers, shape = depth(config, stack), value_shape(config, site)

    def normal(*axes):
        return jnp.asarray(rng.normal(size=(layers, *axes, *shape)), jnp.float32)

    if kind == "Add":
        return Add(site=site, vector=normal(), **fields)
    if kind == "SetNeurons":
        mask = jnp.asarray(rng.integers(0, 2, (layers, *shape)), jnp.float32)
        return SetNeurons(site=site, mask=mask.at[..., 0].set(1), value=normal(), **fields)
    if kind == "Scale":
        return Scale(site=site, factor=normal(), **fields)
    if kind == "ProjectOut":
        return ProjectOut(site=site, direction=normal(), **fields)
    if kind == "Affine":  # on the last axis, so one map for all heads
        rows = jnp.asarray(rng.normal(size=(layers, 2, shape[-1])), jnp.float32)
        weight = rows[:, 0, :, None] * rows[:, 1, None]
        return Affine(site=site, weight=weight, bias=rows[:, 0], **fields)
    length = token_layouts(config)[stack].length
    return Patch(site=site, value=normal(batch, length), **fields)


@dataclasses.dataclass
class Rig:
    """A random model, its inputs, and its sampler as one jitted function of edits.

    Weights and inputs are arguments of the program: constants would be folded differently in every
    program, and bits could not be compared.
    """

    config: Pi0Config | FastConfig
    variables: dict
    obs: Observation
    noise: jax.Array
    traces: int = 0

    @property
    def fast(self):
        return isinstance(self.config, FastConfig)

    @property
    def inputs(self):
        return self.variables, self.obs, self.noise

    def sample(self, inputs, edits=(), taps=()):
        """(actions, taps) of prefill and all steps, not jitted.

        pi0-FAST gives the log-probabilities of its tokens in place of actions.
        """
        (variables, obs, noise), hooks = inputs, Hooks.of(edits, taps)
        self.traces += 1
        if self.fast:
            model = Pi0Fast(self.config)
            prefix = prefill(model, variables, obs, hooks)
            written = write(model, variables, prefix, noise, hooks)
            return written.log_probs, {**prefix.taps, **written.taps}
        model = Pi0(self.config)
        prefix = prefill(model, variables, obs, hooks)
        steps = self.config.num_steps
        actions, found, _ = denoise(
            model, variables, prefix, obs.state, noise, hooks, num_steps=steps
        )
        return actions, {**prefix.taps, **found}

    @functools.cached_property
    def _jitted(self):
        return jax.jit(self.sample, static_argnums=2)

    def run(self, edits=(), taps=(), **changes):
        """The jitted sampler on NumPy's side; `changes` are fields of the observation."""
        inputs = self.variables, self.obs.replace(**changes), self.noise
        return jax.device_get(self._jitted(inputs, edits, tuple(taps)))

    def off(self, **changes):
        """No edits, everything tapped: (actions, taps)."""
        return self.run((), TAPS if self.fast else TAPS + NARROW, **changes)

    def edit(self, kind, site, **fields):
        return make_edit(self.config, kind, site, **fields)

    def depth(self, stack):
        return depth(self.config, stack)

    @property
    def valid(self):
        """Which prefix tokens are real, [B,P]."""
        cameras = [self.obs.image_masks[key] for key in self.config.image_keys]
        tokens = self.config.siglip.num_tokens(self.config.image_size)
        present = jnp.repeat(jnp.stack(cameras, axis=1), tokens, axis=1)
        return np.asarray(jnp.concatenate([present, self.obs.tokenized_prompt_mask], axis=1))


@pytest.fixture(scope="session")
def rig(pi_variables, fast_variables, observation):
    """`rig(**changes of TINY)`, `rig(fast=True, **changes of TINY_FAST)`."""

    @functools.cache
    def make(fast=False, **changes):
        config = dataclasses.replace(TINY_FAST if fast else TINY, **changes)
        variables = (fast_variables if fast else pi_variables)(config)
        shape = (2, config.action_horizon, config.action_dim)
        noise = jax.random.normal(jax.random.key(3), shape)
        draws = jax.random.split(jax.random.key(3), 2) if fast else noise
        return Rig(config, variables, observation(config), draws)

    return make


@pytest.fixture(scope="session")
def narrow_taps():
    return NARROW

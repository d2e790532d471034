"""`PiPolicy`: pi0 and pi0.5 behind the Policy protocol, jit-compiled end to end.

One compiled program per batch size, number of edits and tuple of taps; edits, keys and
observations are arguments, so a study over strengths or directions compiles once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mistjax.hooks.edits import Edit
from mistjax.hooks.hooks import Hooks
from mistjax.hooks.sites import Tap
from mistjax.models import checkpoints, pi0
from mistjax.models.config import Pi0Config
from mistjax.models.normalize import Normalizer, NormStats, Quantile, ZScore, pad_to
from mistjax.models.observation import Observation, check_observation
from mistjax.models.pi0 import Pi0, PrefixModel
from mistjax.models.sampling import (
    Prefix,
    denoise,
    draw_noise,
    embed_images,
    prefill,
    velocity,
)
from mistjax.models.stacks import token_layouts
from mistjax.models.tokenizers import PI05_TAIL, PaddedTokens, PromptTokenizer, state_prompt
from mistjax.models.transforms import Cameras, DeltaActions, flat_batch
from mistjax.models.written_state import StateWriter
from mistjax.policies.families import Family, register
from mistjax.policies.pi_values import pi_value_vectors
from mistjax.policies.presets.base import RobotPreset
from mistjax.policies.presets.check import check_model, check_sizes, check_statistics
from mistjax.policies.presets.registry import first_preset
from mistjax.policies.protocol import Policy, PolicySpec, RawObs, Sample, StackSpec
from mistjax.policies.value_vectors import ValueVectors

FORMAT = 1  # raise it when a policy acts differently than in an earlier release


@flax.struct.dataclass
class PiPolicy(Policy):
    """A pi0 or pi0.5 policy; a pytree, so that weights are arguments of whatever jits around it.

    Attributes:
        config: model sizes.
        variables: `{"params": tree}`.
        tokenizer: for prompts, and to name vocabulary entries.
        norm_stats: "state" and "actions" statistics in the robot's units.
        preset: the robot.
        name: for tables.
    """

    config: Pi0Config = flax.struct.field(pytree_node=False)
    variables: Any
    tokenizer: PromptTokenizer = flax.struct.field(pytree_node=False)
    norm_stats: dict[str, NormStats]
    preset: RobotPreset = flax.struct.field(pytree_node=False)
    name: str = flax.struct.field(pytree_node=False)

    config_type: ClassVar[Any] = Pi0Config
    initialise: ClassVar[Callable[..., Any]] = staticmethod(pi0.init)

    def __post_init__(self):
        pieces, rows = self.prompt_tokenizer.vocab_size, self.config.vocab_size
        if pieces > rows:  # an index beyond the table reads its last row
            raise ValueError(f"the tokenizer has {pieces} pieces, the model embeds {rows}.")

    @classmethod
    def load(
        cls,
        folder: str | Path,
        preset: RobotPreset,
        *,
        config: Any = None,
        tokenizer: Any = None,
        dtype: str | None = None,
        tree: str | None = None,
    ) -> PiPolicy:
        """Reads a checkpoint folder in openpi's layout.

        Args:
            folder: the checkpoint.
            preset: the robot; it must be the one that the checkpoint was trained with.
            config: model sizes; None reads the folder's `config.json`, or takes the preset's model
                where there is none, as in published checkpoints.
            tokenizer: of the class's own kind; None reads the folder's own.
            dtype: what to convert the parameters to; None keeps what is stored.
            tree: which parameters of a training state; see `checkpoints.load_params`.

        Raises:
            FileNotFoundError: a file of the checkpoint is missing.
            ValueError: the parameters do not fit the configuration, or the checkpoint does not fit
                the preset.
        """
        checkpoints.refuse_foreign(folder)
        if config is None and preset.model is not None and not checkpoints.has_config(folder):
            config = preset.model
        config = config or checkpoints.read_config(folder, cls.config_type)
        norm_stats = checkpoints.load_assets(folder, preset.asset_id)
        check_model(folder, preset, config, checkpoints.leaf_names(folder))
        check_sizes(folder, preset, config)
        check_statistics(folder, preset, norm_stats)
        expected = jax.eval_shape(lambda: cls.initialise(config, jax.random.key(0)))["params"]
        return cls(
            config=config,
            variables={"params": checkpoints.load_params(folder, expected, dtype, tree)},
            tokenizer=tokenizer or cls.read_tokenizer(folder, config),
            norm_stats=norm_stats,
            preset=preset,
            name=Path(folder).resolve().name,
        )

    @classmethod
    def read_tokenizer(cls, folder: str | Path, config: Any) -> Any:
        """The tokenizer in a checkpoint folder."""
        return checkpoints.load_tokenizer(folder, config.max_token_len)

    def save(self, folder: str | Path) -> None:
        """Writes the checkpoint folder in openpi's layout; ValueError when it holds one already."""
        checkpoints.save_checkpoint(
            folder,
            self.variables["params"],
            config=self.config.to_json(),
            norm_stats=self.norm_stats,
            asset_id=self.preset.asset_id,
            tokenizer=self.prompt_tokenizer,
        )

    @property
    def prompt_tokenizer(self) -> PromptTokenizer:
        """What reads text."""
        return self.tokenizer

    @property
    def model(self) -> PrefixModel:
        """The linen module, unbound."""
        return Pi0(self.config)

    @functools.cached_property
    def spec(self) -> PolicySpec:
        c, layouts = self.config, token_layouts(self.config)
        vision = StackSpec(
            c.siglip.depth,
            c.siglip.width,
            c.siglip.mlp_dim,
            c.siglip.num_heads,
            c.siglip.width // c.siglip.num_heads,
            layouts["vision"],
        )
        experts = {
            name: StackSpec(e.depth, e.width, e.mlp_dim, e.num_heads, e.head_dim, layouts[name])
            for name, e in (("vlm", c.vlm), ("action", c.experts[-1]))
        }
        p = self.preset
        zero = self._to_robot(np.zeros(p.action_dim))
        relative = np.pad(np.array(p.delta, bool), (0, p.action_dim - len(p.delta)))
        return PolicySpec(
            name=self.name,
            fingerprint=checkpoints.fingerprint(
                self.variables["params"],
                c.to_json(),
                self.norm_stats,
                self.tokenizer.serialized,
                self._options(),
            ),
            action_dim=p.action_dim,
            action_horizon=c.action_horizon,
            execute_steps=p.execute_steps,
            action_names=p.action_names,
            action_low=p.action_low,
            action_high=p.action_high,
            gripper_index=p.gripper_index,
            action_scale=tuple((self._to_robot(np.ones(p.action_dim)) - zero).tolist()),
            cameras={name: key for name, key in p.cameras.items() if key is not None},
            stacks={"vision": vision, **experts},
            num_steps=c.num_steps,
            action_offset=tuple(
                None if follows else float(at) for at, follows in zip(zero, relative, strict=True)
            ),
        )

    def _options(self) -> dict[str, Any] | None:
        """For the fingerprint: what else decides what this policy does.

        None where that is what the first preset that fits implies. Fingerprints of such policies,
        and what was made with them, are those of before options were part of a fingerprint.
        """
        keys = self.config.image_keys
        mine = {"format": FORMAT, **self._settings, **self.preset.behaviour(keys)}
        usual = first_preset(self.config, self.norm_stats)
        if usual is None:
            return mine
        implied = {"format": 1, **dict.fromkeys(self._settings, 0.0), **usual.behaviour(keys)}
        return None if mine == implied else mine

    @property
    def _settings(self) -> dict[str, float]:
        """Numbers of its own that a policy acts by; 0 by default."""
        return {}

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.variables))

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels (height, width) of one vision patch."""
        return self.config.siglip.patch_size

    @property
    def chunk_width(self) -> int:
        """Numbers of one action in `Sample.actions`, padding included."""
        return self.config.action_dim

    @property
    def state_normalizer(self) -> Normalizer:
        return self._normalizer("state")

    @property
    def action_normalizer(self) -> Normalizer:
        return self._normalizer("actions")

    def _normalizer(self, which: str) -> Normalizer:
        kind = {"zscore": ZScore, "quantile": Quantile}[self.preset.normalizer]
        return kind(self.norm_stats[which])

    def prepare(self, raw: Sequence[RawObs]) -> Observation:
        """See `Policy.prepare`; ValueError names what a raw observation lacks or has wrong."""
        raw = flat_batch(raw)
        state = self._state(raw)
        words = [self.preset.prompt(r) for r in raw]
        if self.preset.state_in_prompt:
            encode = self.tokenizer.encode_pi05
            prompts = [encode(text, s) for text, s in zip(words, state, strict=True)]
        else:
            prompts = [self.tokenizer.encode_pi0(text) for text in words]
        return self._observation(raw, np.asarray(self._padded(state)), prompts)

    def _state(self, raw: Sequence[RawObs]) -> Float[np.ndarray, "b s"]:
        """The normalised state."""
        state = np.stack([self.preset.state(r) for r in raw])
        with np.errstate(over="ignore"):
            normal = np.asarray(self.state_normalizer.normalize(state))
        if not np.isfinite(normal).all():
            raise ValueError(f"the state {state} is too large to be normalised: is it faulty?")
        return normal

    def _observation(
        self,
        raw: Sequence[RawObs],
        state: Float[np.ndarray, "b s"],
        prompts: Sequence[PaddedTokens],
    ) -> Observation:
        cameras = self._cameras(self._absent_mask)
        seen = [cameras(r) for r in raw]
        return Observation(
            images={name: np.stack([images[name] for images, _ in seen]) for name in cameras.keys},
            image_masks={name: np.array([mask[name] for _, mask in seen]) for name in cameras.keys},
            state=state,
            tokenized_prompt=np.stack([tokens for tokens, _ in prompts]),
            tokenized_prompt_mask=np.stack([mask for _, mask in prompts]),
        )

    def _cameras(self, absent_mask: bool) -> Cameras:
        keys = {name: self.preset.cameras.get(name) for name in self.config.image_keys}
        return Cameras(keys, self.config.image_size, absent_mask)

    def encode_prompts(
        self, prompts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Token ids of the prompts and their validity, for `observe`; without the state, where the
        policy reads it in the prompt.

        Raises:
            ValueError: a prompt is too long.
        """
        if (writer := self._writer) is not None:
            texts = list(map(self._state_prompt, prompts))
            numbers = self.preset.state_dim
            return writer.prefixes(self.prompt_tokenizer, texts, self._tail, numbers)
        tokens, masks = zip(*map(self.tokenizer.encode_pi0, prompts), strict=True)
        return np.stack(tokens), np.stack(masks)

    def observe(
        self, raw: Mapping[str, Array], words: tuple[Int[Array, "b l"], Bool[Array, "b l"]]
    ) -> Observation:
        """`prepare` on arrays, inside jit.

        Args:
            raw: pictures in the model's size and the state, by key, with a leading batch axis.
            words: what `encode_prompts` returned, for each batch element.
        """
        state = self.state_normalizer.normalize(self._raw_state(raw))
        images, masks = self._cameras(self._absent_mask).batch(raw, len(state))
        if (writer := self._writer) is not None:
            words = writer.write(words, jnp.asarray(state))
        return Observation(images, masks, self._padded(state), *words)

    def erase_state(self, obs: Observation) -> Observation:
        """See `StatePromptPolicy`; a prompt without the state is left as it is."""
        if (writer := self._writer) is None:
            return obs
        return self._worded(obs, writer.erase)

    def write_state(self, obs: Observation) -> Observation:
        """See `StatePromptPolicy`; a prompt without the state is left as it is."""
        if (writer := self._writer) is None:
            return obs
        return self._worded(obs, writer.write)

    def _worded(self, obs: Observation, change: Callable[..., Any]) -> Observation:
        words = jnp.asarray(obs.tokenized_prompt), jnp.asarray(obs.tokenized_prompt_mask)
        state = jnp.asarray(obs.state, jnp.float32)[:, : self.preset.state_dim]
        tokens, mask = change(words, state)
        return dataclasses.replace(obs, tokenized_prompt=tokens, tokenized_prompt_mask=mask)

    def _padded(self, state: Any) -> Any:
        """The state as the model takes it."""
        return pad_to(state, self.config.action_dim)

    _absent_mask: ClassVar[bool] = False
    _tail: ClassVar[str] = PI05_TAIL
    _state_prompt: ClassVar[Callable[[str], str]] = staticmethod(state_prompt)

    @property
    def _writer(self) -> StateWriter | None:
        """Of the state in the prompt, where the policy reads it there."""
        if not self.preset.state_in_prompt:
            return None
        return StateWriter.of(self.prompt_tokenizer, self._tail)

    def act(self, sample: Sample, raw: Mapping[str, Array]) -> Float[Array, "b h a"]:
        """`finish` on arrays, inside jit; `raw` as in `observe`."""
        p, state = self.preset, self._raw_state(raw)
        chunk = sample.actions[..., : p.action_dim]
        actions = self._to_robot(chunk, state if p.delta else None)
        broken = sample.broken | ~jnp.isfinite(actions).all(axis=(1, 2))
        if "fallback" in sample.aux:  # a monitor's
            broken |= sample.aux["fallback"]
        return jnp.asarray(p.held(actions, broken, state))

    def _raw_state(self, raw: Mapping[str, Array]) -> Float[Array, "b s"]:
        keys = self.preset.state_key
        keys = (keys,) if isinstance(keys, str) else keys
        return jnp.concatenate([raw[key] for key in keys], axis=-1)

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> Prefix:
        """The part of `sample` before the action expert; pass the result on as `prefix`."""
        return _prefill(self.model, self.variables, obs, Hooks.of(edits, taps))

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
        """See `Policy.sample`.

        `aux["velocity"]` holds the velocity of every flow step, [B,S,H,A].
        """
        return _sample(self.model, self.variables, obs, key, Hooks.of(edits, taps), prefix)

    def velocity(
        self,
        obs: Observation,
        noisy: Float[Array, "b h a"],
        prefix: Prefix,
        *,
        step: int,
        edits: Sequence[Edit] = (),
    ) -> Float[Array, "b h a"]:
        """The velocity field of a flow step at noisy actions: what `sample` integrates."""
        return _velocity(self.model, self.variables, prefix, obs, noisy, step, tuple(edits))

    def finish(self, sample: Sample, raw: Sequence[RawObs]) -> np.ndarray:
        """See `Policy.finish`; ValueError where a chunk is not an action and the preset has no
        fallback, or where the chunks do not belong to these observations and this robot.
        """
        p, raw = self.preset, flat_batch(raw)
        sample = dataclasses.replace(sample, actions=np.asarray(sample.actions, np.float32))
        actions = sample.actions[..., : p.action_dim]
        if actions.ndim != 3 or (len(actions), actions.shape[-1]) != (len(raw), p.action_dim):
            raise ValueError(
                f"chunks of {np.shape(sample.actions)} for {len(raw)} observations of preset "
                f"{p.name!r}: expected [{len(raw)}, steps, {p.action_dim} or more]."
            )
        state = np.stack([p.state(r) for r in raw]) if p.delta else None
        with np.errstate(over="ignore", invalid="ignore"):  # `bounded` holds the robot still then
            actions = self._to_robot(actions, state)
        return p.bounded(actions, np.asarray(sample.broken), raw)

    def _to_robot(self, actions: Float[Array | np.ndarray, "*b a"], state: Any = None) -> Any:
        """Model units to the robot's, relative to a state that is given; NumPy in, NumPy out."""
        plain = self.action_normalizer.unnormalize(actions)
        actions = np.asarray(plain) if isinstance(actions, np.ndarray) else plain
        if state is not None:
            actions = DeltaActions(self.preset.delta).to_absolute(actions, state)
        units = self.preset.units
        return actions if units is None else units.to_robot_actions(actions)  # type: ignore[arg-type]

    def embed_prompt(self, obs: Observation) -> Observation:
        """The same observation with `prompt_embedding` filled in, so that words have gradients."""
        words = self.model.apply(self.variables, obs.tokenized_prompt, method="embed_tokens")
        return dataclasses.replace(obs, prompt_embedding=words)

    def embed_images(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> tuple[Observation, dict[str, Array]]:
        """(the same observation with `image_embedding` filled in, taps of the vision tower)."""
        return _embed_images(self.model, self.variables, obs, Hooks.of(edits, taps))

    def value_vectors(self, stack: str = "vlm") -> ValueVectors:
        """See `LanguagePolicy.value_vectors`; the parameters are not copied."""
        return pi_value_vectors(
            self.config, self.variables, self.prompt_tokenizer, self.spec, stack
        )


@functools.partial(jax.jit, static_argnames="model")
def _prefill(model, variables, obs, hooks):
    return prefill(model, variables, obs, hooks)


@functools.partial(jax.jit, static_argnames="model")
def _embed_images(model, variables, obs, hooks):
    check_observation(model.config, obs)
    tokens, found = embed_images(model, variables, obs, hooks)
    return dataclasses.replace(obs, image_embedding=tokens), found


@functools.partial(jax.jit, static_argnames=("model", "step"))
def _velocity(model, variables, prefix, obs, noisy, step, edits):
    return velocity(
        model,
        variables,
        prefix,
        obs.state,
        noisy,
        step,
        Hooks.of(edits, ()),
        num_steps=model.config.num_steps,
        state_mask=obs.state_mask,
    )[0]


@functools.partial(jax.jit, static_argnames="model")
def _sample(model, variables, obs, key, hooks, prefix):
    config = model.config
    if prefix is None:
        prefix = prefill(model, variables, obs, hooks)
    prefix.check(model.config, obs)
    noise = draw_noise(config, key, obs.batch_size)
    actions, found, velocity = denoise(
        model,
        variables,
        prefix,
        obs.state,
        noise,
        hooks,
        num_steps=config.num_steps,
        state_mask=obs.state_mask,
        pending=obs.pending,
    )
    aux = {"velocity": jnp.swapaxes(velocity, 0, 1)}
    return Sample(actions, {**prefix.taps, **found}, aux)


def random_policy(
    config: Pi0Config,
    tokenizer: PromptTokenizer,
    preset: RobotPreset,
    *,
    seed: int = 0,
) -> PiPolicy:
    """A policy with random weights and unit statistics: for tests and for timing."""

    def unit(width: int) -> NormStats:
        ones = np.ones(width, np.float32)
        return NormStats(mean=0 * ones, std=ones, q01=-ones, q99=ones)

    stats = {"state": unit(preset.state_dim), "actions": unit(preset.action_dim)}
    variables = pi0.init(config, jax.random.key(seed))
    return PiPolicy(config, variables, tokenizer, stats, preset, name="random")


def _reads(config: Mapping[str, Any] | None, preset: RobotPreset) -> bool:
    if config is None:
        return isinstance(preset.model, Pi0Config)
    return "siglip" in config and "max_decoding_steps" not in config


register(Family("pi0 and pi0.5", _reads, PiPolicy.load, trees=True))

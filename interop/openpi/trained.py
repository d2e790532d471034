"""The policy objects that openpi hands out, behind our protocol, and ours behind openpi's.

`wrap_policy` takes what `policy_config.create_trained_policy` returned and keeps all of it: its
input transforms, tokenizer, statistics and output transforms run as they are, so that no preset
has to match. `monitored` is for openpi's own scripts: whatever calls `policy.infer(obs)` goes on
doing so, with a monitor and its remedy inside.

One inference of openpi splits its key, draws the noise from the second half and goes on with the
first. `InferPolicy` does the same, so that actions are bit for bit those of `policy.infer`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from interop.openpi.models import OpenpiFastPolicy, OpenpiPolicy, unbound
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.config import FAST_IMAGE_KEYS, FastConfig
from mistjax.models.draws import element_keys
from mistjax.models.fast_language import FastTokenizer
from mistjax.models.fast_tokenizer import ActionTokenizer
from mistjax.models.normalize import NormStats
from mistjax.models.observation import Observation
from mistjax.models.sampling import Prefix
from mistjax.models.tokenizers import PromptTokenizer
from mistjax.policies.fingerprint import fingerprint
from mistjax.policies.presets import RobotPreset
from mistjax.policies.protocol import Policy, PolicySpec, RawObs, Sample
from mistjax.policies.wrapper import Wrapper, innermost
from mistjax.recover.artifact import load_mist
from mistjax.rollouts.loop import beside

_ANY = float(np.finfo(np.float32).max)  # a bound that no action reaches
_SPREAD = 3.0  # standard deviations that stand for the range of actions, without quantiles


@dataclasses.dataclass(frozen=True, eq=False)
class Transforms:
    """openpi's own way from a raw observation to the model and back, by identity.

    Attributes:
        inputs, outputs: its transforms, in their order.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]

    def model_inputs(self, raw: RawObs) -> dict[str, Any]:
        data: Any = jax.tree.map(lambda leaf: leaf, dict(raw))  # transforms may write into it
        for transform in self.inputs:
            data = transform(data)
        return data

    def robot_outputs(
        self, state: Float[np.ndarray, " s"], actions: np.ndarray, *, written: bool
    ) -> dict[str, Any]:
        """What openpi returns.

        Args:
            state: the model's state input.
            actions: the chunk, or where `written` the tokens that stand for it.
            written: see `actions`.
        """
        data: Any = {"state": state, "actions": actions}
        for transform in self.outputs:
            if written or not _reads_tokens(transform):
                data = transform(data)
        return data

    def first(self, name: str) -> Any:
        """The first attribute of that name among the input transforms; None if none has one."""
        found = (getattr(transform, name, None) for transform in self.inputs)
        return next((value for value in found if value is not None), None)


def _reads_tokens(transform: Any) -> bool:
    return hasattr(getattr(transform, "tokenizer", None), "extract_actions")


class _Trained(Policy):
    """What both kinds have in common: observations and actions go through openpi's transforms."""

    transforms: Transforms
    robot: RobotPreset | None
    config: Any
    preset: RobotPreset

    @property
    def _state_width(self) -> int:
        """Numbers of the state that openpi's output transforms take."""
        raise NotImplementedError

    def prepare(self, raw: Sequence[RawObs]) -> Observation:
        """See `Policy.prepare`; what is wrong with a raw observation, openpi's transforms say."""
        rows = [self.transforms.model_inputs(r) for r in raw]
        keys = self.config.image_keys
        if surplus := [row for row in rows if set(row["image"]) != set(keys)]:
            raise ValueError(
                f"openpi's transforms give the cameras {sorted(surplus[0]['image'])}, this policy "
                f"was wrapped for {sorted(keys)}: pass them to wrap_policy as `image_keys`."
            )

        def stacked(name):
            return np.stack([np.asarray(row[name]) for row in rows])

        return Observation(
            images={k: _picture(np.stack([row["image"][k] for row in rows])) for k in keys},
            image_masks={
                k: np.array([bool(row["image_mask"].get(k, True)) for row in rows]) for k in keys
            },
            state=stacked("state").astype(np.float32),
            tokenized_prompt=stacked("tokenized_prompt").astype(np.int32),
            tokenized_prompt_mask=stacked("tokenized_prompt_mask").astype(bool),
        )

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
        """The model's; `aux["state"]` is what it read, for openpi's output transforms."""
        sample = super().sample(obs, key, edits=edits, taps=taps, prefix=prefix)  # type: ignore[safe-super]
        return sample.replace(aux={**sample.aux, "state": obs.state})  # type: ignore[attr-defined]

    def outputs(self, sample: Sample) -> list[dict[str, Any]]:
        """What `policy.infer` returns for each row, without its timing."""
        states, chunks = np.asarray(sample.aux["state"]), np.asarray(sample.actions)
        edited = np.asarray(sample.aux.get("edited", np.zeros(len(chunks), bool)))
        written = np.asarray(sample.aux["tokens"]) if "tokens" in sample.aux else None
        return [
            self.transforms.robot_outputs(states[i], chunks[i], written=False)
            if written is None or edited[i]
            else self.transforms.robot_outputs(states[i], written[i], written=True)
            for i in range(len(chunks))
        ]

    def finish(self, sample: Sample, raw: Sequence[RawObs]) -> np.ndarray:
        """See `Policy.finish`; openpi knows no bounds, so there are none here either.

        Raises:
            ValueError: a chunk is not finite, and the preset does not say what holds the robot
                still; or the transforms' own.
        """
        chunks = np.stack([row["actions"] for row in self.outputs(sample)]).astype(np.float32)
        broken = np.asarray(sample.broken) & (self.preset.fallback is not None)
        return self.preset.bounded(chunks, broken, raw)

    @functools.cached_property
    def spec(self) -> PolicySpec:
        base, t = super().spec, self.transforms  # type: ignore[misc]
        shape = (self.config.action_horizon, self.config.action_dim)

        def robot(value: float, state: float = 0.0) -> np.ndarray:
            states = np.full(self._state_width, state, np.float32)
            chunk = np.full(shape, value, np.float32)
            return np.asarray(t.robot_outputs(states, chunk, written=False)["actions"])[0]

        zero, one, reach = robot(0.0), robot(1.0), 1.0 if t.first("use_quantiles") else _SPREAD
        ends = np.sort([robot(-reach), robot(reach)], axis=0)
        low, high = ends[0], np.maximum(ends[1], np.nextafter(ends[0], np.inf))
        if (given := self.robot) is not None:
            low, high = given.action_low, given.action_high
        follows = robot(0.0, 1.0) != zero
        return dataclasses.replace(
            base,
            fingerprint=fingerprint(base.fingerprint, _plain((t.inputs, t.outputs))),
            action_low=tuple(map(float, low)),
            action_high=tuple(map(float, high)),
            action_scale=tuple((one - zero).tolist()),
            action_offset=tuple(
                None if moves else float(at) for at, moves in zip(zero, follows, strict=True)
            ),
        )


def _picture(image: np.ndarray) -> Array:
    """Pictures as openpi gives them to its model: bytes become numbers in [-1, 1]."""
    picture = jnp.asarray(image)
    if image.dtype == np.uint8:
        picture = picture.astype(np.float32) / 255.0 * 2.0 - 1.0
    return picture


@flax.struct.dataclass
class TrainedPolicy(_Trained, OpenpiPolicy):
    """openpi's policy of a pi0 or pi0.5. Make it with `wrap_policy`.

    Attributes:
        transforms: openpi's.
        robot: the preset that was given to name things, or None.
        drawn: noise [B,H,A] to begin from in place of the key's; None draws it.
    """

    transforms: Transforms = flax.struct.field(pytree_node=False, default=Transforms((), ()))
    robot: RobotPreset | None = flax.struct.field(pytree_node=False, default=None)
    drawn: Float[Array, "b h a"] | None = None

    @property
    def _state_width(self) -> int:
        return self.config.action_dim

    def noise(self, key: Array, batch: int) -> Float[Array, "b h a"]:
        """openpi's draw from a key; that of one row is its draw for a batch of one."""
        shape = (self.config.action_horizon, self.config.action_dim)
        if self.drawn is not None:
            if self.drawn.shape != (batch, *shape):
                raise ValueError(f"noise of {self.drawn.shape}: expected {(batch, *shape)}.")
            return self.drawn
        if key.ndim == 0 and batch == 1:
            return jax.random.normal(key, (1, *shape))
        return jax.vmap(lambda k: jax.random.normal(k, shape))(element_keys(key, batch))


@flax.struct.dataclass
class TrainedFastPolicy(_Trained, OpenpiFastPolicy):
    """openpi's policy of a pi0-FAST. Make it with `wrap_policy`.

    Attributes:
        transforms, robot: as `TrainedPolicy`.
    """

    transforms: Transforms = flax.struct.field(pytree_node=False, default=Transforms((), ()))
    robot: RobotPreset | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def _state_width(self) -> int:
        return self.norm_stats["state"].width


def wrap_policy(
    policy: Any,
    robot: RobotPreset | None = None,
    *,
    image_keys: Sequence[str] | None = None,
    name: str = "openpi",
) -> TrainedPolicy | TrainedFastPolicy:
    """A policy of the object that openpi's `create_trained_policy` returned, with its transforms.

    Args:
        policy: an openpi `Policy` of a JAX model.
        robot: names and bounds of actions, keys of the raw observation, and what holds the robot
            still; nothing of it goes into observations or actions. Without one, dimensions are
            numbered, their ranges are those of the statistics, and a chunk that is not finite is
            refused.
        image_keys: the cameras of a pi0-FAST that has others than DROID's.
        name: for tables.

    Raises:
        TypeError: something else, a model that is no `Pi0` or `Pi0FAST`, or no tokenizer among the
            transforms.
        ValueError: a PyTorch model, options of its sampler that are not known here, or a robot
            with another number of actions.
    """
    try:
        model, options = policy._model, dict(policy._sample_kwargs)
        transforms = Transforms(
            tuple(policy._input_transform.transforms), tuple(policy._output_transform.transforms)
        )
    except AttributeError as error:
        raise TypeError(
            f"{type(policy).__name__} is no policy of openpi ({error}): expected what its "
            "policy_config.create_trained_policy returns."
        ) from None
    if getattr(policy, "_is_pytorch_model", False):
        raise ValueError(
            "this openpi policy runs a PyTorch model: make it from the JAX checkpoint of the same "
            "name, which has a params/ folder and no model.safetensors."
        )
    config, params, modules = unbound(model)
    fast = isinstance(config, FastConfig)
    known = {"max_decoding_steps": 256, "temperature": 0.0} if fast else {"num_steps": 10}
    theirs = getattr(type(model).sample_actions, "__kwdefaults__", None) or {}
    known |= {option: theirs[option] for option in known if option in theirs}
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"sample_kwargs holds {unknown}: known here are {sorted(known)}.")
    options = {**known, **options}
    if options.pop("temperature", 0.0) > 0:
        raise ValueError(
            "sample_kwargs asks for a temperature: openpi's draws of tokens are not reproduced, so "
            "leave it at 0."
        )
    config = dataclasses.replace(config, **options)
    if fast:
        config = dataclasses.replace(
            config, image_keys=tuple(sorted(image_keys or FAST_IMAGE_KEYS))
        )
    stats = _statistics(transforms, config.action_dim)
    tokenizer = _tokenizer(transforms, config)
    state = np.zeros(stats["state"].width if fast else config.action_dim, np.float32)
    chunk = np.zeros((config.action_horizon, config.action_dim), np.float32)
    width = transforms.robot_outputs(state, chunk, written=False)["actions"].shape[-1]
    kind: Any = TrainedFastPolicy if fast else TrainedPolicy
    return kind(
        config=config,
        variables={"params": params},
        tokenizer=tokenizer,
        norm_stats=stats,
        preset=_preset(robot, config, stats, width, name),
        name=name,
        modules=modules,
        transforms=transforms,
        robot=robot,
    )


def _preset(
    robot: RobotPreset | None, config: Any, stats: Mapping[str, NormStats], width: int, name: str
) -> RobotPreset:
    """The robot without its rules, which openpi's transforms stand for, and without bounds."""
    wide: Any = {"action_low": (-_ANY,) * width, "action_high": (_ANY,) * width}
    if robot is not None:
        if robot.action_dim != width:
            raise ValueError(
                f"preset {robot.name!r} has {robot.action_dim} numbers of action, openpi's "
                f"transforms give {width}: it is of another robot."
            )
        return dataclasses.replace(robot, delta=(), units=None, model=None, **wide)
    return RobotPreset(
        name=name,
        cameras={key: key for key in config.image_keys},
        state_key="state",
        state_dim=stats["state"].width,
        action_names=tuple(f"action {i}" for i in range(width)),
        gripper_index=None,
        execute_steps=config.action_horizon,
        **wide,
    )


def _statistics(transforms: Transforms, width: int) -> dict[str, NormStats]:
    found: Any = transforms.first("norm_stats") or {}
    ones = np.ones(width, np.float32)
    unit = NormStats(mean=0 * ones, std=ones, q01=-ones, q99=ones)

    def converted(stats: Any) -> NormStats:
        fields = ((name, getattr(stats, name)) for name in ("mean", "std", "q01", "q99"))
        arrays: Any = {k: None if v is None else np.asarray(v) for k, v in fields}
        return NormStats(**arrays)

    return {k: converted(found[k]) if k in found else unit for k in ("state", "actions")}


def _tokenizer(transforms: Transforms, config: Any) -> Any:
    """Ours with openpi's vocabulary, to name words by and to read action tokens on the device."""
    theirs = transforms.first("tokenizer")
    pieces = getattr(theirs, "_tokenizer", None) or getattr(theirs, "_paligemma_tokenizer", None)
    actions: Any = getattr(theirs, "_fast_tokenizer", None)
    if pieces is None or (isinstance(config, FastConfig) and actions is None):
        raise TypeError(
            f"the transforms hold {type(theirs).__name__} for a tokenizer: expected openpi's "
            "PaligemmaTokenizer, or its FASTTokenizer for a pi0-FAST."
        )
    words = PromptTokenizer(pieces.serialized_model_proto(), config.max_token_len)
    if not isinstance(config, FastConfig):
        return words
    bytes_ = ActionTokenizer(
        actions.bpe_tokenizer.backend_tokenizer.to_str(),
        config.action_horizon,
        config.action_dim,
        actions.scale,
        actions.min_token,
    )
    return FastTokenizer(words, bytes_, config.vocab_size)


def _plain(value: Any) -> Any:
    """What a fingerprint can be made of: transforms by their class and all that they hold."""
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | jax.Array | str | bytes | bool | int | float | None):
        return value
    if hasattr(value, "serialized_model_proto"):
        return value.serialized_model_proto()
    held = vars(value) if hasattr(value, "__dict__") else {}
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return [kind, {k: _plain(v) for k, v in held.items() if not callable(v)}]


class InferPolicy:
    """A policy of ours with openpi's interface: `infer(obs)`, `reset()` and `metadata`.

    It remembers what a monitor knows of the episode, so it is for one robot at a time, and has to
    be told where an episode begins, which openpi's own loop never says: by `reset`, or by a client
    in an observation with a true `mist/reset`.

    Results hold what `policy.infer` gives, and of a monitored policy a dict `mist` of numbers:
    `score`, `threshold`, `alarm`, `edited` and whether the `fallback` goes out.
    """

    def __init__(self, policy: Any, *, rng: Array | None = None, metadata: Any = None):
        """Args:
        policy: from `wrap_policy`, or a wrapper around one such as `MistPolicy`.
        rng: the key to begin with; openpi's own default.
        metadata: what a server tells its clients.
        """
        self.policy, self.metadata = policy, dict(metadata or {})
        self._rng = jax.random.key(0) if rng is None else rng
        self.reset()

    def reset(self) -> None:
        """Forgets the episode."""
        self._state = beside(self.policy, self.policy.initial_state(1))

    def infer(self, obs: Mapping[str, Any], *, noise: np.ndarray | None = None) -> dict[str, Any]:
        """See openpi's `Policy.infer`; ValueError where `mist/reset` is neither true nor false."""
        obs = dict(obs)
        if not isinstance(begins := obs.pop("mist/reset", False), bool | np.bool_):
            raise ValueError(f"mist/reset is a {type(begins).__name__}: expected true or false.")
        if begins:
            self.reset()
        prepared = self.policy.prepare([obs])
        self._rng, key = jax.random.split(self._rng)
        policy = self.policy if noise is None else _with_noise(self.policy, noise)
        begun = time.monotonic()
        sample = policy.sample(prepared, key, state=self._state)
        jax.block_until_ready(sample.actions)
        taken = time.monotonic() - begun
        self._state = sample.state
        held = np.asarray(sample.aux.get("fallback", False))
        outputs = innermost(policy).outputs(sample)[0]
        if held.any():
            outputs["actions"] = self.policy.finish(sample, [obs])[0]
        outputs["policy_timing"] = {"infer_ms": taken * 1000}
        said = ("score", "threshold", "alarm", "edited", "fallback")
        if told := {k: np.asarray(sample.aux[k])[0].item() for k in said if k in sample.aux}:
            outputs["mist"] = told
        return outputs


def _with_noise(policy: Any, noise: np.ndarray) -> Any:
    """The policy, its wrappers included, beginning from this noise [H,A] or [1,H,A]."""
    if isinstance(policy, Wrapper):
        inner: Any = policy
        return inner.replace(policy=_with_noise(inner.policy, noise))
    if not isinstance(policy, TrainedPolicy):
        raise ValueError(f"{type(policy).__name__} begins from no noise.")
    array = jnp.asarray(noise)
    return policy.replace(drawn=array[None] if array.ndim == 2 else array)  # type: ignore[attr-defined]


def monitored(
    policy: Any,
    folder: str | Path,
    robot: RobotPreset | None = None,
    *,
    arm: str = "mist",
    **options: Any,
) -> InferPolicy:
    """openpi's policy with the monitor of a folder and its remedy, for openpi's own scripts.

    Args:
        policy: an openpi `Policy`, see `wrap_policy`; its key is gone on with.
        folder, arm: see `load_mist`.
        robot: see `wrap_policy`.
        **options: of `load_mist`.

    Raises:
        TypeError, ValueError: see `wrap_policy`.
        FileNotFoundError, FingerprintError: see `load_mist`.
    """
    mist = load_mist(folder, wrap_policy(policy, robot), arm, **options)
    return InferPolicy(mist, rng=policy._rng, metadata=policy.metadata)

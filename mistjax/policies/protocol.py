"""The `Policy` protocol: all that the rest of the library knows about a model.

`PiPolicy`, `OpenVLAPolicy` and `MistPolicy` satisfy it. A policy is stateless from the outside:
what a monitor remembers of an episode travels in `Sample.state`, back in through `state`.

A policy of one's own inherits from `Policy` and writes what has no default, or has every member
without inheriting. What only policies with words can do is `LanguagePolicy`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from typing_extensions import Protocol, runtime_checkable

from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap, TokenLayout
from mistjax.models.observation import Observation
from mistjax.policies.fingerprint import fingerprint
from mistjax.policies.presets.base import RobotPreset
from mistjax.policies.value_vectors import ValueVectors

RawObs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StackSpec:
    """Sizes of one stack of a policy's network."""

    depth: int
    width: int
    neurons: int
    heads: int
    head_dim: int
    layout: TokenLayout


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """What a policy is, without its weights.

    Attributes:
        name: for tables and file names.
        fingerprint: hash of weights, configuration, statistics, tokenizer and all that the robot's
            preset changes; artefacts made for one policy refuse to load for another.
        action_dim: width of an action in the env's units.
        action_horizon: actions in one chunk.
        execute_steps: how many of a chunk to execute before the next inference.
        action_names: what each action dimension means, e.g. ("dx", "dy", "dz", "gripper").
        action_low, action_high: per-dimension bounds in the env's units.
        gripper_index: which action dimension is the gripper, or None.
        action_scale: env units per model unit of each action dimension.
        cameras: model camera name -> key of the raw observation.
        stacks: stack name -> sizes.
        num_steps: flow steps or decoded tokens of one inference.
        action_offset: env units at 0 model units; None where they follow the state. () where it is
            not known.
        inputs: what a monitor of inputs can name, in its order; () without one.
    """

    name: str
    fingerprint: str
    action_dim: int
    action_horizon: int
    execute_steps: int
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    gripper_index: int | None
    action_scale: tuple[float, ...]
    cameras: Mapping[str, str]
    stacks: Mapping[str, StackSpec]
    num_steps: int
    action_offset: tuple[float | None, ...] = ()
    inputs: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[str, ...]:
        """Cameras whose pictures the network has a place for, in its order: those of `cameras`,
        and any that the robot lacks.
        """
        return tuple(name for name in self.stacks["vision"].layout.segments if name != "image")

    @property
    def prompt_length(self) -> int:
        """Tokens of `Observation.tokenized_prompt`, padding included."""
        segments = self.stacks["vlm"].layout.segments
        spans = [segments[name] for name in ("bos", "text") if name in segments]
        return sum(stop - start for start, stop in spans)

    def wrapped(self, name: str, parts: Any) -> PolicySpec:
        """The spec of a policy around this one: its fingerprint also covers `parts`, whatever is
        in them; see `fingerprint`.
        """
        return dataclasses.replace(
            self, name=name, fingerprint=fingerprint(self.fingerprint, parts)
        )


@flax.struct.dataclass
class Sample:
    """One inference.

    Attributes:
        actions: model units [B,H,A]; `Policy.finish` turns them into the env's units.
        taps: `str(tap)` -> values. Taps on `action` have the flow step (or token) axis first.
        aux: anything else a policy reports; leading axis B (or scalars).
        state: what the policy remembers of the episode, leading axis B; () if nothing.
    """

    actions: Float[Any, "b h a"]
    taps: dict[str, Array]
    aux: dict[str, Any]
    state: Any = ()

    @property
    def broken(self) -> Bool[Array | np.ndarray, " b"]:
        """Batch elements whose chunk is not an action: not finite, or not decodable. On the host
        where the actions are.
        """
        xp = jnp if isinstance(self.actions, jax.Array) else np
        broken = ~xp.all(xp.isfinite(self.actions), axis=(1, 2))
        return broken | ~self.aux["decode_ok"] if "decode_ok" in self.aux else broken


@runtime_checkable
class Policy(Protocol):
    """See the module docstring; every array has a leading batch axis.

    Attributes:
        spec: what the policy is.
        preset: the robot.
        patch: pixels (height, width) of one region that explanations tell apart: a vision patch.
        num_parameters: of the network.
    """

    spec: PolicySpec
    preset: RobotPreset
    patch: tuple[int, int]
    num_parameters: int

    @property
    def chunk_width(self) -> int:
        """Numbers of one action in `Sample.actions`, padding included."""
        return self.spec.action_dim

    @property
    def reports(self) -> tuple[str, ...]:
        """Names in `Sample.aux` that every recorded run should hold."""
        return ()

    def initial_state(self, batch: int) -> Any:
        """The episode state before the first inference; () for a policy without memory."""
        return ()

    def begin(self, seeds: Sequence[int]) -> Any:
        """`initial_state` of the episodes with these seeds: the same for all, unless the policy is
        told something about an episode. A wrapper that tells, or passes on what is told, inherits
        from `wrapper.Briefed`: in a compiled rollout the whole of `begin` is kept of each episode.
        """
        return self.initial_state(len(seeds))

    @abc.abstractmethod
    def prepare(self, raw: Sequence[RawObs]) -> Observation:
        """Raw observations (one dict each) -> model inputs: resize, normalise, tokenise, pad."""

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> Any:
        """The part of an inference before the first flow step or decoded token; None if several
        samples of an observation have nothing to share.
        """
        return None

    @abc.abstractmethod
    def sample(
        self,
        obs: Observation,
        key: Array,
        *,
        state: Any = (),
        edits: Sequence[Edit] = (),
        taps: Sequence[Tap] = (),
        prefix: Any = None,
    ) -> Sample:
        """One inference, jit-compiled. `key` is one PRNG key, or one per batch element [B].

        `prefix` is what `prefill` returned for the same observation; edits and taps of the prefix's
        stacks then belong to that call.
        """

    @abc.abstractmethod
    def finish(self, sample: Sample, raw: Sequence[RawObs]) -> np.ndarray:
        """Actions in the env's units [B,H,action_dim], finite and inside their bounds: a chunk that
        is not an action holds the robot still (`RobotPreset.fallback`).
        """

    def objective(
        self,
        obs: Observation,
        key: Array,
        readout: Callable[[Sample], Float[Array, " b"]],
        *,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
    ) -> Float[Array, " b"]:
        """`readout(sample)`, differentiable in the leaves of `obs` (traceable under jax.grad)."""
        return readout(self.sample(obs, key, edits=edits, taps=taps))


@runtime_checkable
class Pieces(Protocol):
    """A SentencePiece-like vocabulary: `▁` begins a word, control tokens look like `<s>`."""

    def id_to_piece(self, index: int) -> str: ...


@runtime_checkable
class TraceablePolicy(Protocol):
    """What a policy can do inside a compiled rollout: `prepare` and `finish` on arrays; see
    `wrapper.traceable`. Raw observations are one dict of arrays with a leading batch axis."""

    def encode_prompts(
        self, prompts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Token ids of the prompts and their validity, on the host."""
        ...

    def observe(
        self, raw: Mapping[str, Array], words: tuple[Int[Array, "b l"], Bool[Array, "b l"]]
    ) -> Observation:
        """`Policy.prepare`; pictures have the model's size, `words` are `encode_prompts`'."""
        ...

    def act(self, sample: Sample, raw: Mapping[str, Array]) -> Float[Array, "b h a"]:
        """`Policy.finish`."""
        ...


@runtime_checkable
class StatePromptPolicy(Protocol):
    """What a policy can do whose prompt may hold the robot's state beside the words; see
    `wrapper.erase_state`."""

    def erase_state(self, obs: Observation) -> Observation:
        """The same observation with the words of the prompt alone."""
        ...

    def write_state(self, obs: Observation) -> Observation:
        """The inverse: with `obs.state` written behind the words."""
        ...


@runtime_checkable
class SeeingPolicy(Protocol):
    """What a policy can do whose vision tower runs apart from the rest; see `wrapper.seeing`."""

    def embed_images(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> tuple[Observation, dict[str, Array]]:
        """(the same observation with `image_embedding` filled in, taps of the vision tower)."""
        ...


@runtime_checkable
class WritingPolicy(Protocol):
    """What a policy can do that writes its action as tokens, and so has no gradient in it."""

    def saying(self, obs: Observation, key: Array) -> Policy:
        """The policy that writes, whatever it sees, what this one writes here: the sum of its
        `token_log_prob` says how likely that is, and has a gradient.
        """
        ...


@runtime_checkable
class LanguagePolicy(Protocol):
    """What a policy that reads words can do besides acting; see `wrapper.language`."""

    @property
    def tokenizer(self) -> Pieces:
        """Names the tokens of `Observation.tokenized_prompt`."""
        ...

    def embed_prompt(self, obs: Observation) -> Observation:
        """The same observation with `prompt_embedding` filled in, so that words have gradients."""
        ...

    def value_vectors(self, stack: str = "vlm") -> ValueVectors:
        """What each FFN neuron of a stack writes, and the names to read it by.

        Raises:
            ValueError: a stack without names to read it by.
        """
        ...

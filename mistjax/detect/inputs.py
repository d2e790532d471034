"""`Input`: what a detector reads of an inference, said once.

The same declaration makes the vector of a live sample and of a recorded episode, with the same
operations, so that training, calibration and monitoring cannot drift apart. An artefact stores it.

Parts, joined in order:

- `hidden`         activations at taps, tokens and steps pooled
- `chunk`          the executed chunk of actions
- `samples`        several chunks for one observation, see `policies.resampled`
- `positions`      the same, translations summed over the chunk where actions are displacements
- `probabilities`  of decoded tokens, `aux["token_log_prob"]`, and zeros for their entropies
- `tokens`         the same with `aux["token_entropy"]`
- `sensitivity`    `aux["sensitivity"]`, see `policies.sensitivity`
- `velocity`       `aux["velocity"]` of every flow step
- `grounding`      `aux["grounding"]`, see `policies.grounding`
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from mistjax.hooks.pooling import parse_pool, pool
from mistjax.hooks.sites import Tap
from mistjax.models.tokenizers import PAD
from mistjax.policies.grounding import Grounded
from mistjax.policies.protocol import Policy, Sample
from mistjax.policies.resampled import Resampled
from mistjax.policies.sensitivity import Sensitive
from mistjax.rollouts.trace import Trace

DEFAULT_TAPS = (
    Tap("action.resid", (-1,), "action", "mean"),
    Tap("vlm.resid", None, "image", "mean"),
)
"""What the actions were decoded from, and what was seen: the second shows trouble before anything
has gone wrong, while there is time to steer."""

AUX = {
    "chunk": ("sampled_actions",),
    "samples": ("sampled_actions",),
    "positions": ("sampled_actions",),
    "probabilities": ("token_log_prob",),
    "tokens": ("token_log_prob", "token_entropy"),
    "sensitivity": ("sensitivity",),
    "velocity": ("velocity",),
    "grounding": ("grounding",),
}
"""Part -> names in `Sample.aux`."""
PARTS = ("hidden", *AUX)
_SEVERAL = "Record several with `mistjax collect --samples 10`."
_HINTS = {
    "sampled_actions": _SEVERAL,
    "sensitivity": "Record it with `mistjax collect --sensitivity`.",
    "velocity": "Record it with `mistjax collect --velocity`.",
    "grounding": "Record it with `mistjax collect --grounding`.",
    "token_log_prob": "Policies that decode tokens report it (pi0-FAST, OpenVLA).",
    "token_entropy": "Policies that decode tokens report it (pi0-FAST, OpenVLA).",
}
ACTIONS = ("chunk", "samples", "positions")
SHAPED = (*ACTIONS, "velocity")
"""Parts that need a layout."""
TINY = 1e-37  # the least probability of a token that was decoded
_PADDED_TO = 64  # recorded inferences, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class ChunkLayout:
    """How flat features divide into sampled action chunks, or velocities of flow steps."""

    samples: int
    horizon: int
    dim: int

    @property
    def size(self) -> int:
        """Numbers of all chunks."""
        return self.samples * self.horizon * self.dim

    def unflatten(self, features: Float[Array, "b d"]) -> Float[Array, "b s h a"]:
        """[b, samples, horizon, dim].

        Raises:
            ValueError: features of another size.
        """
        if features.shape[-1] != self.size:
            raise ValueError(
                f"expected {self.size} features (samples {self.samples} x horizon {self.horizon} x "
                f"action dim {self.dim}); got {features.shape[-1]}."
            )
        return features.reshape(features.shape[0], self.samples, self.horizon, self.dim)


@dataclasses.dataclass(frozen=True)
class Input:
    """What a detector reads.

    Attributes:
        parts: see the module; none at all for a detector that only counts.
        features: of `hidden`: taps as text, or names of an imported run's features.
        pool: how tokens, and then steps, of each feature become one, see `hooks.pooling`.
        layout: of `chunk`, `samples` and `positions`; of `velocity`, with flow steps as samples.
        displacements: actions are changes of position.
        robot_units: actions are in the robot's units, as imported runs have them. A sample has
            them in the model's, so that such a detector scores recorded episodes only.
        pad: token that stands for none (probability 0 and entropy 0 in the vector); None where
            every token is one.
    """

    parts: tuple[str, ...] = ("hidden",)
    features: tuple[str, ...] = ()
    pool: str = "mean"
    layout: ChunkLayout | None = None
    displacements: bool = True
    robot_units: bool = False
    pad: int | None = None

    def __post_init__(self):
        parse_pool(self.pool)
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise ValueError(f"no input has parts {unknown}: choose among {', '.join(PARTS)}.")
        lacking = ["features"] * ("hidden" in self.parts and not self.features)
        lacking += ["layout"] * (bool(set(self.parts) & set(SHAPED)) and self.layout is None)
        if lacking:
            raise ValueError(f"an input of {'+'.join(self.parts)} needs {' and '.join(lacking)}.")
        if "chunk" in self.parts and self.layout and self.layout.samples != 1:
            raise ValueError(f"`chunk` is one chunk, and the layout has {self.layout.samples}.")
        if "velocity" in self.parts and set(self.parts) & set(ACTIONS):
            raise ValueError("`velocity` and actions have layouts of their own: read one of them.")

    @classmethod
    def of_taps(cls, *taps: Tap, pool: str = "mean") -> Input:
        """Activations at taps."""
        return cls(features=tuple(str(tap) for tap in taps), pool=pool)

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What a policy has to record."""
        return tuple(Tap.parse(name) for name in self.features if is_tap(name))

    @property
    def not_live(self) -> str:
        """Why no live sample has this; "" where one has."""
        if imported := [name for name in self.features if not is_tap(name)]:
            return f"features {imported} are of an imported run, and no tap of a policy"
        if self.robot_units:
            return "it reads actions in the robot's units, and a sample has them in the model's"
        return ""

    def watched(self, policy: Policy) -> Policy:
        """The policy, with everything in its samples that is read beside taps.

        Raises:
            ValueError: see `not_live`.
        """
        if self.not_live:
            raise ValueError(f"This detector scores recorded episodes only: {self.not_live}.")
        if "sensitivity" in self.parts:
            policy = Sensitive(policy)
        if "grounding" in self.parts:
            policy = Grounded(policy)
        if self.layout is None or "velocity" in self.parts:
            return policy
        return Resampled(policy, self.layout.samples, self.layout.dim)

    def live(self, sample: Sample) -> Float[Array, "b d"]:
        """The vector of each element of a sample of `watched(policy)`.

        Raises:
            ValueError: the sample lacks something, or has it in another shape.
        """
        found = [tap for tap in self.taps if str(tap) in sample.taps]
        values = {str(tap): tap.batch_first(sample.taps[str(tap)]) for tap in found}
        return self._vector(values | sample.aux, len(sample.actions))

    def recorded(self, trace: Trace) -> Float[np.ndarray, "n d"]:
        """The vector of each inference of an episode, what `live` gave then.

        Raises:
            ValueError: something was not recorded, or in another shape.
        """
        values = {**trace.aux, **trace.features}
        if self.robot_units:
            values["sampled_actions"] = trace.chunks[:, None]
        n = len(trace.chunks)
        read = {name: values[name] for name in (*self.features, *self.aux) if name in values}
        if wrong := [name for name, value in read.items() if len(value) != n]:
            raise ValueError(
                f"seed {trace.seed} has {n} inferences, and another number of {', '.join(wrong)}."
            )
        more = -n % _PADDED_TO
        padded = {
            name: np.pad(_single(value), ((0, more), *((0, 0),) * (value.ndim - 1)))
            for name, value in read.items()
        }
        return np.asarray(_padded_vector(self, padded, n + more))[:n]

    @property
    def aux(self) -> tuple[str, ...]:
        """Names in `Sample.aux` and `Trace.aux` that the vector is made of."""
        names = [name for part in self.parts for name in AUX.get(part, ())]
        return (*names, *(("tokens",) if self.pad is not None else ()))

    def _vector(self, values: Mapping[str, Any], n: int) -> Float[Array, "b d"]:
        """The vector, from values with a leading batch axis."""
        missing = [name for name in (*self.features, *self.aux) if name not in values]
        if missing:
            raise ValueError(
                f"{', '.join(missing)}: not recorded, or not in the policy's sample. "
                f"There are {', '.join(sorted(values)) or 'none'}."
            )
        vectors = [vector for part in self.parts for vector in self._part(part, values)]
        vectors = [jnp.asarray(vector, jnp.float32).reshape(n, -1) for vector in vectors]
        return jnp.concatenate(vectors, axis=1) if vectors else jnp.zeros((n, 0), jnp.float32)

    def _part(self, part: str, values: Mapping[str, Any]) -> list[Array]:
        if part == "hidden":
            return [_pooled(name, values[name], self.pool) for name in self.features]
        if part in ACTIONS:
            return [self._actions(part, values["sampled_actions"])]
        if part == "velocity":
            return [self._shaped(values["velocity"])]
        if part in ("sensitivity", "grounding"):
            return [values[part]]
        log_prob = jnp.asarray(values["token_log_prob"], jnp.float32)
        probability = jnp.maximum(jnp.exp(log_prob), TINY)
        entropy = values["token_entropy"] if part == "tokens" else jnp.zeros_like(log_prob)
        if self.pad is not None:
            none = values["tokens"] == self.pad
            probability, entropy = (jnp.where(none, 0, x) for x in (probability, entropy))
        return [probability, entropy]

    def _shaped(self, velocity: Array) -> Array:
        """In the robot's dimensions."""
        layout = self.layout
        assert layout is not None
        steps, horizon, width = velocity.shape[1:]
        if (steps, horizon) != (layout.samples, layout.horizon) or width < layout.dim:
            raise ValueError(
                f"the detector reads velocities of {layout.samples} flow steps, {layout.horizon} x "
                f"{layout.dim}; there are {steps} of {horizon} x {width}."
            )
        return velocity[..., : layout.dim]

    def _actions(self, part: str, chunks: Array) -> Array:
        layout = self.layout
        assert layout is not None
        samples, *size = chunks.shape[1:]
        if samples < layout.samples or size != [layout.horizon, layout.dim]:
            raise ValueError(
                f"the detector reads {layout.samples} chunks of {layout.horizon} x {layout.dim} "
                f"numbers; there are {samples} of {' x '.join(map(str, size))}."
            )
        chunks = jnp.asarray(chunks[:, : layout.samples], jnp.float32)
        if part != "positions" or not self.displacements:
            return chunks
        return jnp.concatenate([jnp.cumsum(chunks[..., :3], axis=2), chunks[..., 3:]], axis=-1)

    def describe(self) -> str:
        """In words, for messages."""
        chunks = self.layout.samples if self.layout else 0
        names = {
            "hidden": ", ".join(self.features),
            "chunk": "the executed chunk",
            "samples": f"{chunks} sampled chunks",
            "positions": f"the positions of {chunks} sampled chunks",
            "probabilities": "the probabilities of decoded tokens",
            "tokens": "the probabilities and entropies of decoded tokens",
            "sensitivity": "the sensitivity of the velocity",
            "velocity": "the velocity of every flow step",
            "grounding": "the reaction to ablations of the cache",
        }
        return " and ".join(names[part] for part in self.parts) or "the number of inferences only"

    def to_json(self) -> dict[str, Any]:
        """JSON types only; fields that are at their default are left out."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        given = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in given.items()
            if name == "parts" or value != fields[name]
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Input:
        """The inverse of `to_json`; also reads `{"taps": ..., "steps": ...}` of older artefacts.

        Raises:
            ValueError: not an input in this form.
        """
        if "taps" in data:
            return cls(features=tuple(data["taps"]), pool=OLD_STEPS.get(data["steps"], "mean"))
        given: dict[str, Any] = dict(data)
        given |= {name: tuple(v) for name, v in data.items() if isinstance(v, list)}
        try:
            if "layout" in given:
                given["layout"] = ChunkLayout(**given["layout"])
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"{data!r} does not say what a detector reads ({error}).") from None


DEFAULT_INPUT = Input.of_taps(*DEFAULT_TAPS)
OLD_STEPS = {"mean": "mean", "first": "0.0", "last": "1.0", "concat": "concat"}
"""Names of an older release -> commands of `hooks.pooling`."""


def is_tap(name: str) -> bool:
    """Whether the name of a recorded feature is a tap; those of imported runs are not."""
    return "@" in name


def declare(
    parts: Sequence[str],
    probes: Sequence[Trace],
    *,
    features: Sequence[str] = (),
    pool: str = "mean",
    displacements: bool = True,
) -> Input:
    """The input that recorded runs have.

    Args:
        parts: what a detector reads.
        probes: one episode of each run.
        features: of `hidden`; () takes the taps that `collect` records by default, or the only
            feature that there is.
        pool, displacements: see `Input`.

    Raises:
        ValueError: says what was not recorded.
    """
    lacking = [name for part in parts if part != "chunk" for name in AUX.get(part, ())]
    lacking = [name for name in lacking if any(name not in probe.aux for probe in probes)]
    if lacking:
        raise ValueError(f"not recorded: aux {', '.join(lacking)}. {_HINTS[lacking[0]]}")
    sampled = all("sampled_actions" in probe.aux for probe in probes)
    layout = None
    if set(parts) & set(ACTIONS):
        shapes = [p.aux["sampled_actions"].shape if sampled else p.chunks.shape for p in probes]
        samples = min(shape[1] for shape in shapes) if sampled and "chunk" not in parts else 1
        layout = ChunkLayout(samples, *shapes[0][-2:])
        if "chunk" not in parts and samples < 2:
            raise ValueError(f"one chunk per inference shows no disagreement. {_SEVERAL}")
    if "velocity" in parts:
        steps, horizon, width = probes[0].aux["velocity"].shape[1:]
        layout = ChunkLayout(steps, horizon, min(width, probes[0].chunks.shape[-1]))
    masked = {"probabilities", "tokens"} & set(parts) and all("tokens" in p.aux for p in probes)
    return Input(
        tuple(parts),
        hidden_features(probes, features) if "hidden" in parts else (),
        pool,
        layout,
        displacements,
        robot_units="chunk" in parts and not sampled,
        pad=PAD if masked else None,
    )


def hidden_features(probes: Sequence[Trace], wanted: Sequence[str]) -> tuple[str, ...]:
    """The recorded features that detectors of hidden states read.

    Raises:
        ValueError: they were not all recorded, or there is a choice to make.
    """
    recorded = sorted(set.intersection(*(set(probe.features) for probe in probes)))
    default = tuple(str(tap) for tap in DEFAULT_TAPS)
    if not wanted and set(default) <= set(recorded):
        return default
    names = tuple(wanted) or tuple(recorded)
    if set(names) <= set(recorded) and (wanted or len(recorded) == 1):
        return names
    raise ValueError(
        f"features {list(wanted or default)} were not recorded in every run. Choose with "
        f"--features among {recorded}."
    )


def _pooled(name: str, value: Array, command: str) -> Array:
    """[N,...] of a tap or an imported feature -> [N,d]: tokens are pooled first, then steps."""
    value = jnp.asarray(value, jnp.float32)
    if not is_tap(name):
        while value.ndim > 2:
            value = jnp.asarray(pool(value, command))
        return value
    axes = Tap.parse(name).axes(value.ndim)
    if "head" in axes:
        value = value.reshape(*value.shape[:-2], -1)
    if "token" in axes:
        value = jnp.asarray(pool(value, command))
    if "step" in axes:
        value = jnp.asarray(pool(value.reshape(*value.shape[:2], -1), command))
    return value


def _single(value: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    return value.astype(np.float32) if np.issubdtype(value.dtype, np.floating) else value


@functools.partial(jax.jit, static_argnums=(0, 2))
def _padded_vector(reads: Input, values: Mapping[str, Array], n: int) -> Float[Array, "b d"]:
    return reads._vector(values, n)

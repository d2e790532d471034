"""`explain`: raw observations in, an attribution, its cause and a sentence out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxtyping import Array

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.batching import compiled
from mistjax.attribute.localiser import Cause, describe, localise
from mistjax.attribute.readouts import Readout
from mistjax.attribute.registry import attribute
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, RawObs
from mistjax.policies.wrapper import language


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a readout is what it is, one entry per observation.

    Attributes:
        obs: what the model saw.
        attribution: each patch, word and state dimension.
        cause: modality, regions, words.
        sentences: the same in words.
    """

    obs: Observation
    attribution: Attribution
    cause: Cause
    sentences: tuple[str, ...]


_localise = compiled(localise)


def explain(
    policy: Policy,
    raw: Sequence[RawObs],
    key: Array,
    readout: Readout,
    *,
    method: str = "integrated_gradients",
    top: int = 3,
    state_names: Sequence[str] = (),
    **options: Any,
) -> Explanation:
    """Explains a readout of raw observations.

    Args:
        policy: one with words, see `LanguagePolicy`.
        raw: raw observations, for example at a recorded alarm.
        key: of the sampling noise; the key of that inference explains exactly that action.
        readout: what to explain, for example `FailureScore`.
        method: key of `ATTRIBUTIONS`.
        top: how many regions, words and state dimensions to name.
        state_names: of the state's dimensions.
        **options: of the method.

    Raises:
        ValueError: what `Policy.prepare` or the method refuses.
    """
    obs = policy.prepare(raw)
    attribution = attribute(method, policy, obs, key, readout, **options)
    cause = _localise(attribution, top=top)
    sentences = describe(
        cause, obs, language(policy).tokenizer, what=readout.name, state_names=state_names
    )
    return Explanation(obs, attribution, cause, tuple(sentences))

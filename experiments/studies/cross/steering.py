"""Does the same recipe steer every architecture? Speed and height against strength.

Open loop: scenes in which a stone is carried, one a seed; what changes is the chunk that the policy
would execute next. Two recipes at the VLM's text tokens, each for two axes (quickly - slowly, high
- low): the difference of means between prompts, and value vectors of the two words. The difference
of means keeps its own length, at which strength 1 goes from one prompt's mean to the other's; value
vectors are scaled to the mean activation at their site. Asking for it is the yardstick, random
vectors of the same length are the control.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.studies.cross.scenes import Scene
from mistjax.hooks import Tap
from mistjax.policies.protocol import Policy
from mistjax.steer import (
    SteeringVector,
    concept_vector,
    control_responses,
    difference_of_means,
    dose_response,
    find_concept,
    observation_group,
    top_names,
    value_vectors,
)
from mistjax.steer.effects import action_statistics

AXES = {"speed": ("quickly", "slowly", "speed"), "height": ("high", "low", "dz")}
"""Modifier of the task -> towards, away, and the statistic that it should raise."""
TEXT = Tap("vlm.resid", None, "text", "mean")
NEURONS, CONTROLS = 24, 6


def steering_rows(
    policy: Policy, scenes: Sequence[Scene], strengths: Sequence[float], key: Array
) -> list[dict[str, Any]]:
    """One row for each recipe and axis."""
    carrying = [scene for scene in scenes if scene.carrying]
    plain = [scene.asked() for scene in carrying]
    rows = []
    for axis, (towards, away, statistic) in AXES.items():
        asked = {
            word: [scene.asked(**{axis: word}) for scene in carrying] for word in (towards, away)
        }
        a, b = (observation_group(policy, asked[word], TEXT, key) for word in (towards, away))
        vectors = {
            "difference of means": difference_of_means(a, b, TEXT, policy.spec),
            "value vectors": _word_vector(policy, plain, towards, away, key),
        }
        prompt = [_mean(policy, asked[word], statistic, key) for word in (away, towards)]
        for recipe, vector in vectors.items():
            row = _row(policy, plain, vector, statistic, strengths, key)
            rows.append({"axis": axis, "recipe": recipe, "asking": prompt, **row})
    return rows


def _mean(policy: Policy, raw: list, statistic: str, key: Array) -> float:
    keys = jax.random.split(key, len(raw))
    actions = policy.finish(policy.sample(policy.prepare(raw), keys), raw)
    return float(action_statistics(actions, policy.spec)[statistic].mean())


def _word_vector(
    policy: Policy, plain: list, towards: str, away: str, key: Array
) -> SteeringVector:
    values = value_vectors(policy, "vlm")
    top = top_names(values, 1)
    a, b = (find_concept(values, top, w, [w], limit=NEURONS) for w in (towards, away))
    vector = concept_vector(values, a, against=b, tokens="text")
    tap = Tap("vlm.mlp_out", None, "text", "mean")
    size = jnp.asarray(np.linalg.norm(observation_group(policy, plain, tap, key), axis=-1))
    return dataclasses.replace(vector, scale=size.mean(0) * vector.gate)


def _row(
    policy: Policy,
    raw: list,
    vector: SteeringVector,
    statistic: str,
    strengths: Sequence[float],
    key: Array,
) -> dict[str, Any]:
    response = dose_response(policy, raw, vector, strengths, key)
    ends = (min(strengths), max(strengths))
    controls = control_responses(policy, raw, vector, ends, key, controls=CONTROLS)
    spans = [float(np.diff(control.effect(statistic))[0]) for control in controls]
    low, *_, high = response.effect(statistic)
    chance = float(np.sqrt(np.mean(np.square(spans))))
    return {
        "statistic": statistic,
        "n": len(raw),
        "plain": float(response.baseline[statistic].mean()),
        "strengths": [float(s) for s in response.strengths],
        "change": response.effect(statistic).tolist(),
        "interval": response.interval(statistic).tolist(),
        "rho": response.monotonicity(statistic),
        "control spans": spans,
        "z": float(high - low) / chance if chance else None,
    }

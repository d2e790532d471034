"""What a monitor said at an alarm, read back from a recorded episode."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.inputs import Regions
from mistjax.attribute.localiser import describe, localise, named_words
from mistjax.attribute.questions import raw_observation
from mistjax.policies.protocol import Policy
from mistjax.policies.wrapper import language
from mistjax.report.build import Explanation
from mistjax.report.unsound import STATE_NAMES
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace


def first_remedy(trace: Trace) -> int | None:
    """The inference at which a remedy began, which is the one attributed; None if none did."""
    if trace.edited is None or not trace.edited.any():
        return None
    return int(np.argmax(trace.edited))


def alarm_explanation(policy: Policy, trace: Trace) -> Explanation:
    """The attribution that the monitor made when the remedy began, as a sentence and pictures.

    Args:
        policy: the bare policy.
        trace: an episode in which a remedy began, recorded with pictures and the `why/` outputs.

    Raises:
        ValueError: any other episode.
    """
    inference = first_remedy(trace)
    if inference is None or "why/text" not in trace.aux or not trace.images:
        raise ValueError(
            f"episode {trace.seed} has no recorded explanation: it needs an alarm that began a "
            "remedy, the aux outputs why/*, and pictures (record_video)."
        )
    why = {name: jnp.asarray(value)[None, inference] for name, value in trace.aux.items()}
    score = jnp.asarray(trace.score)[None, inference]  # type: ignore[index]
    parts = Regions(
        images={name: why[f"why/{name}"] for name in policy.spec.cameras},
        text=why["why/text"],
        state=why["why/state"],
    )
    patch = policy.patch
    attribution = Attribution.unsigned(parts, score, jnp.zeros(1), patch)
    return _explanation(policy, trace, inference, attribution)


def alarm_explanations(policy: Policy, run: Run, limit: int = 3) -> list[Explanation]:
    """Explanations of the first recorded episodes in which a remedy began."""
    rows = [r for r in run.finished if r["edited_inferences"] and run.video(r["seed"])]
    return [alarm_explanation(policy, run.trace(row["seed"])) for row in rows[:limit]]


def _explanation(
    policy: Policy, trace: Trace, inference: int, attribution: Attribution
) -> Explanation:
    obs = policy.prepare([raw_observation(policy, trace, inference)])
    cause, tokenizer = localise(attribution), language(policy).tokenizer
    states = STATE_NAMES.get(policy.preset.name, ())
    sentence = describe(cause, obs, tokenizer, state_names=states)[0]
    heat = {
        key: np.asarray(attribution.images[camera][0])
        for camera, key in policy.spec.cameras.items()
    }
    words = named_words(cause, obs, tokenizer, 0, states)
    return Explanation(trace, inference, sentence, heat, words)

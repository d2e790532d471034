"""What a monitor said at an alarm, read back from a recorded episode."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.inputs import Regions
from mistjax.attribute.localiser import describe, localise, named_words
from mistjax.policies.protocol import RawObs
from mistjax.report.build import Explanation
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace

STATE_NAMES = {"board": ("x", "y", "z", "opening", "last gripper command")}


def raw_observation(policy: Any, trace: Trace, inference: int) -> RawObs:
    """What the policy saw at an inference of an episode recorded with pictures."""
    images = {key: frames[inference] for key, frames in trace.images.items()}
    state = trace.state[trace.inference_step[inference]]
    return {**images, policy.preset.state_key: state, "prompt": trace.prompt}


def first_remedy(trace: Trace) -> int | None:
    """The inference at which a remedy began, the one that was attributed; None if none did."""
    if trace.edited is None or not trace.edited.any():
        return None
    return int(np.argmax(trace.edited))


def alarm_explanation(policy: Any, trace: Trace) -> Explanation:
    """The attribution that the monitor made when the remedy began, in a sentence and pictures.

    Args:
        policy: the bare policy.
        trace: an episode in which a remedy began, recorded with pictures and the `why/` outputs.

    Raises:
        ValueError: it is not such an episode.
    """
    inference = first_remedy(trace)
    names = [name for name in trace.aux if name.startswith("why/")]
    if inference is None or not names or not trace.images:
        raise ValueError(
            f"episode {trace.seed} has no recorded explanation: it needs an alarm that began a "
            "remedy, the aux outputs why/*, and pictures (record_video)."
        )
    obs = policy.prepare([raw_observation(policy, trace, inference)])
    why = {name.removeprefix("why/"): trace.aux[name][None, inference] for name in names}
    parts = Regions(
        images={name: jnp.asarray(why[name]) for name in policy.config.image_keys},
        text=jnp.asarray(why["text"]),
        state=jnp.asarray(why["state"]),
    )
    score = jnp.asarray(trace.score)[None, inference]  # type: ignore[index]
    patch = policy.config.siglip.patch_size
    attribution = Attribution.unsigned(parts, score, jnp.zeros(1), patch)
    cause = localise(attribution)
    names_of_state = STATE_NAMES.get(policy.preset.name, ())
    sentence = describe(cause, obs, policy.tokenizer, state_names=names_of_state)[0]
    heat = {key: np.asarray(parts.images[camera][0]) for camera, key in policy.spec.cameras.items()}
    words = named_words(cause, obs, policy.tokenizer, 0)
    return Explanation(trace, inference, sentence, heat, words)


def alarm_explanations(policy: Any, run: Run, limit: int = 3) -> list[Explanation]:
    """Explanations of the first recorded episodes in which a remedy began."""
    found = []
    for row in run.finished:
        if run.video(row["seed"]) is None or not row["edited_inferences"]:
            continue
        found.append(alarm_explanation(policy, run.trace(row["seed"])))
        if len(found) == limit:
            break
    return found

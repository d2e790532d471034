"""What a monitor said at an alarm, read back from a recorded episode."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.inputs import Regions
from mistjax.attribute.localiser import describe, localise, named_words
from mistjax.attribute.readouts import FailureScore
from mistjax.attribute.registry import attribute
from mistjax.detect.detector import observe
from mistjax.policies.protocol import Policy, RawObs
from mistjax.policies.wrapper import language
from mistjax.report.build import Explanation, explanations
from mistjax.report.html import write_report
from mistjax.report.unsound import STATE_NAMES
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace


def raw_observation(policy: Policy, trace: Trace, inference: int) -> RawObs:
    """What the policy saw at an inference of an episode recorded with pictures.

    Raises:
        ValueError: the preset joins its state from several keys.
    """
    preset = policy.preset
    if not isinstance(preset.state_key, str):
        raise ValueError(
            f"preset {preset.name!r} joins its state from {preset.state_key}, and an episode holds "
            "it as one vector: its observations cannot be shown to the policy again."
        )
    images = {key: frames[inference] for key, frames in trace.images.items()}
    state = trace.state[trace.inference_step[inference]]
    return {**images, preset.state_key: state, "prompt": trace.prompt}


def first_remedy(trace: Trace) -> int | None:
    """The inference at which a remedy began, the one that was attributed; None if none did."""
    if trace.edited is None or not trace.edited.any():
        return None
    return int(np.argmax(trace.edited))


def alarm_explanation(policy: Policy, trace: Trace) -> Explanation:
    """The attribution that the monitor made when the remedy began, in a sentence and pictures.

    Args:
        policy: the bare policy.
        trace: an episode in which a remedy began, recorded with pictures and the `why/` outputs.

    Raises:
        ValueError: it is not such an episode.
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


def explain_episode(
    policy: Policy,
    detector: Path,
    run: Run,
    seed: int,
    out: Path,
    inference: int | None = None,
    method: str = "integrated_gradients",
    memory: int | None = None,
) -> str:
    """Explains the failure score at one inference of a recorded episode, and writes a page.

    The detector is run over the episode again, so any policy's episode that was recorded with
    pictures and the detector's taps can be explained after the fact.

    Args:
        policy: the bare policy.
        detector: folder of a calibrated detector.
        run: the run.
        seed: which episode.
        out: HTML file to write.
        inference: which one; None takes the first alarm, or the highest score if there is none.
        method: key of `ATTRIBUTIONS`.
        memory: bytes, see `attribute`.

    Returns:
        The sentence.

    Raises:
        ValueError: the episode was recorded without pictures or taps, or has no such inference.
    """
    from mistjax.recover.artifact import load_monitor

    monitor, trace = load_monitor(detector, policy), run.trace(seed)
    if not trace.images:
        raise ValueError(f"episode {seed} was recorded without pictures: collect it with --videos.")
    features = jnp.asarray(monitor.reads.recorded(trace))
    state, states, scores = monitor.initial_state(1).detector, [], []
    for row in features:
        states.append(state)
        state, score = observe(monitor.detector, state, row[None])
        scores.append(score)
    score = jnp.concatenate(scores)
    steps = jnp.arange(len(score))
    alarm = monitor.threshold.alarm(steps, score)
    if inference is None:
        inference = int(jnp.argmax(alarm) if alarm.any() else jnp.argmax(score))
    if not 0 <= inference < len(score):
        raise ValueError(f"episode {seed} has inferences 0 to {len(score) - 1}, not {inference}.")
    obs = policy.prepare([raw_observation(policy, trace, inference)])
    key = jax.random.fold_in(jax.random.key(seed), inference)[None]
    readout = FailureScore(monitor.detector, states[inference], monitor.reads)
    watched = monitor.watched(policy)
    attribution = attribute(method, watched, obs, key, readout, memory=memory)
    scored = dataclasses.replace(
        trace,
        score=np.asarray(score),
        threshold=np.asarray(monitor.threshold.at(steps)),
        alarm=np.asarray(alarm),
        edited=np.zeros(len(score), bool),
    )
    shown = _explanation(policy, scored, inference, attribution)
    write_report([explanations([shown])], out, f"Episode {seed}", trace.prompt)
    return shown.sentence


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

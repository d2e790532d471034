"""One repair, shown: the sentence with its evidence, and the repaired input beside the sensor's.

The episode is shown to the policy again, from the start to the first repair. Imputed tokens are not
a picture: shown in their place is the clean picture of the same scene whose tokens are nearest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mistjax.attribute.naming import describe_inputs
from mistjax.detect.novelty.monitor import InputEvidence
from mistjax.policies.pi import PiPolicy
from mistjax.policies.protocol import Policy, RawObs
from mistjax.policies.wrapper import seeing
from mistjax.recover.repaired import Repaired, RepairedState, looking
from mistjax.report.blocks import Block, Picture, Quote, Row, Table
from mistjax.report.explanation import STATE_NAMES, raw_observation
from mistjax.rollouts.trace import Trace
from mistjax.steer.remedies.remedy import Proposal, Seen


@dataclasses.dataclass(frozen=True)
class Repair:
    """The first repair of an episode.

    Attributes:
        trace: the episode, recorded with pictures.
        inference: at which the repair began to act.
        named: index of the repaired input among the monitor's.
        sentence: what the monitor says.
        seen: the observation there.
        proposal: what stood in for the input.
    """

    trace: Trace
    inference: int
    named: int
    sentence: str
    seen: RawObs
    proposal: Proposal


def first_repair(policy: Repaired, trace: Trace, batch: int) -> Repair | None:
    """Plays a recorded episode to the policy again; None if nothing was repaired.

    Args:
        policy: the recorded policy, without its preparation.
        trace: an episode with pictures.
        batch: batch size of the recorded run, so that nothing is compiled anew.
    """
    acted = trace.aux["repaired"].any(axis=1)
    if not acted.any():
        return None
    last = int(np.argmax(acted))
    state, evidence = policy.initial_state(batch), None
    for number in range(last + 1):
        before, raw = state, raw_observation(policy, trace, number)
        obs = policy.prepare([raw] * batch)
        key = jax.random.fold_in(jax.random.key(trace.seed, impl="threefry2x32"), number)
        sample = policy.sample(obs, jnp.stack([key] * batch), state=before)
        state = sample.state
        if evidence is None and sample.aux["unsound"][0]:
            evidence = _evidence(sample.aux)
    named = int(np.argmax(trace.aux["repaired"][last]))
    names = STATE_NAMES.get(policy.preset.name, ())
    said = "" if evidence is None else describe_inputs(policy.inputs, evidence, 0, names)
    return Repair(trace, last, named, said, raw, _proposal(policy, obs, before, state, named))


def _evidence(aux) -> InputEvidence:
    """What the monitor said, from what a sample reports."""
    found = {
        field.name: aux[f"evidence/{field.name}"]
        for field in dataclasses.fields(InputEvidence)
        if f"evidence/{field.name}" in aux
    }
    return InputEvidence(
        **found,
        score=aux["input_score"],
        threshold=aux["input_threshold"],
        unsound=aux["unsound"],
        named=aux["named"],
        blamed=aux["named"],
        suspect=jnp.argmax(found["ratios"].max(2), axis=1),
    )


def _proposal(
    policy: Repaired, obs, before: RepairedState, after: RepairedState, named: int
) -> Proposal:
    """What the remedy proposed at the inference between two states, from the memory that it had
    then.
    """
    name = policy.inputs.inputs[named]
    obs, _ = seeing(policy).embed_images(obs)
    command = jnp.where((before.inputs.looks > 0)[:, None, None], before.inputs.command, 0.0)
    seen = Seen(obs, command, looking(policy, obs))
    return policy.remedies[name].propose(after.repair.notes[name].good, seen, name)


def blocks(repair: Repair, bare: Policy, scene: Sequence[RawObs]) -> list[Block]:
    """The repair for a page.

    Args:
        repair: of an episode.
        bare: the policy.
        scene: clean observations of the same scene, among which the nearest is sought.
    """
    trace = repair.trace
    step = int(trace.inference_step[repair.inference])
    fault, onset = trace.info.get("fault"), trace.info.get("fault_onset")
    broken = "nothing" if fault is None else f"{fault.replace('_', ' ')}, from step {onset} on"
    source = f"Seed {trace.seed}, repaired from step {step} on. Broken on purpose: {broken}."
    shown: list[Block] = [Quote(repair.sentence, source)]
    cameras = list(bare.spec.cameras)
    if repair.named < len(cameras):
        sensor = repair.seen[bare.spec.cameras[cameras[repair.named]]]
        nearest, left = nearest_picture(bare, repair, scene)
        shown.append(
            Row(
                [
                    Picture(_large(sensor), "What the sensor delivered.", "Sensor"),
                    Picture(
                        _large(nearest),
                        "The clean picture of this scene whose tokens are nearest to the imputed "
                        f"ones, which are {left:.0%} of the sensor's distance from it.",
                        "In its place",
                    ),
                ],
                least=240,
            )
        )
    elif cameras and repair.named == len(cameras) and isinstance(bare, PiPolicy):
        shown.append(Table(state_rows(bare, repair), "In metres, the robot's own units."))
    return shown


def _large(picture: np.ndarray) -> np.ndarray:
    factor = max(1, 384 // picture.shape[0])
    return picture.repeat(factor, 0).repeat(factor, 1)


def nearest_picture(
    bare: Policy, repair: Repair, scene: Sequence[RawObs]
) -> tuple[np.ndarray, float]:
    """(clean picture of the named camera that is nearest to the imputed tokens, their distance from
    its tokens divided by the sensor's).
    """

    def tokens(embedding) -> np.ndarray:
        rows = np.asarray(embedding)
        per = rows.shape[1] // len(bare.spec.cameras)
        return rows[:, repair.named * per : (repair.named + 1) * per].reshape(len(rows), -1)

    def seen(raw: Sequence[RawObs]) -> np.ndarray:
        return tokens(seeing(bare).embed_images(bare.prepare(raw))[0].image_embedding)

    clean = seen(scene)
    imputed = tokens(repair.proposal.obs.image_embedding)[0]
    away = np.linalg.norm(clean - imputed, axis=1)
    best = int(np.argmin(away))
    delivered = np.linalg.norm(seen([repair.seen])[0] - clean[best])
    key = list(bare.spec.cameras.values())[repair.named]
    return scene[best][key], float(away[best] / delivered)


def state_rows(bare: PiPolicy, repair: Repair) -> list[dict[str, str]]:
    """The sensor's state, and the one in its place."""
    names = STATE_NAMES.get(bare.preset.name, ())
    sensor = np.asarray(repair.seen[bare.preset.state_key])  # type: ignore[index]
    reckoned = np.asarray(
        bare.state_normalizer.unnormalize(np.asarray(repair.proposal.obs.state)[0, : len(sensor)])
    )
    return [
        {
            "entry": names[i] if i < len(names) else str(i),
            "sensor": f"{sensor[i]:+.4f}",
            "in its place": f"{reckoned[i]:+.4f}",
        }
        for i in range(len(sensor))
    ]

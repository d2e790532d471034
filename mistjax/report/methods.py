"""Explanations of a recorded moment, episode or run by any methods, as a page.

A moment: the methods side by side over the pictures, the words and the state, with the cost of each
and how far its numbers are from adding up to the readout. An episode or a run: the share of each
input at every moment, and maps of some moments.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.interventional import equal_area
from mistjax.attribute.localiser import describe, localise
from mistjax.attribute.questions import (
    SCORE,
    TOKENS,
    Question,
    Scored,
    joined,
    raw_observation,
    scored,
)
from mistjax.attribute.registry import attribute
from mistjax.attribute.text import words_of
from mistjax.detect.monitor import Monitor
from mistjax.envs.faults.battery import input_name
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, RawObs
from mistjax.policies.wrapper import language
from mistjax.report import plots
from mistjax.report.blocks import Block, Picture, Plot, Quote, Row, Table, Text, Words
from mistjax.report.html import Section, write_report
from mistjax.report.unsound import STATE_NAMES
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace

BATCH = 8
_SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Moment:
    """An inference of a recorded episode.

    Attributes:
        trace: the episode, with scores where there is a detector.
        inference: its number.
        raw: what the policy saw.
        state: the detector's state before it; None without a detector.
    """

    trace: Trace
    inference: int
    raw: RawObs
    state: Any

    @property
    def step(self) -> int:
        return int(self.trace.inference_step[self.inference])

    @property
    def key(self) -> Any:
        return jax.random.fold_in(jax.random.key(self.trace.seed), self.inference)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a method says about one moment.

    Attributes:
        moment: the moment.
        obs: what was seen, a batch of one.
        attribution: of `obs`; its cameras have the names that `input_name` gives.
    """

    moment: Moment
    obs: Observation
    attribution: Attribution


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a method says about all moments.

    Attributes:
        method: its name.
        each: in the order of the moments.
        milliseconds: per moment, once compiled.
        changes: of a single moment, see `equal_area`.
    """

    method: str
    each: Sequence[Answer]
    milliseconds: float
    changes: tuple[float, Sequence[float]] | None


def moments(
    policy: Policy,
    run: Run,
    monitor: Monitor | None,
    seed: int | None,
    inference: int | str | None,
) -> list[Moment]:
    """The moments that are asked about.

    Args:
        policy: the one that was recorded.
        run: its run.
        monitor: its first alarm is taken where no inference is given; without a monitor, the first
            inference.
        seed: an episode; None takes every one that was recorded with pictures.
        inference: a number, "all", or None.

    Raises:
        ValueError: nothing was recorded with pictures, or see `raw_observation`.
    """
    seeds = [seed] if seed is not None else [s for s in run.seeds if run.video(s) is not None]
    if not seeds:
        raise ValueError(f"{run.path} has no episode with pictures: collect some with --videos.")
    found = []
    for one in seeds:
        trace, states, chosen = run.trace(one), None, 0
        if monitor is not None:
            run_over: Scored = scored(monitor, trace)
            trace, states, chosen = run_over.trace, run_over.states, run_over.moment
        which: Sequence[int] = (
            range(len(trace.inference_step))
            if inference == "all"
            else [chosen if inference is None else int(inference)]
        )
        found += [
            Moment(trace, i, raw_observation(policy, trace, i), states and states[i]) for i in which
        ]
    return found


def ask(
    policy: Policy,
    asked: Sequence[Moment],
    method: str,
    question: Question,
    monitor: Monitor | None,
    memory: int | None = None,
    **options: Any,
) -> Answers:
    """One method's answers, several moments at a time; ValueError where it refuses."""
    size = min(len(asked), BATCH)
    watched = monitor.watched(policy) if monitor is not None and question.of == SCORE else policy
    spoken = {camera: input_name(key) for camera, key in policy.spec.cameras.items()}
    answers, spent, changes = [], 0.0, None
    for first in range(0, len(asked), size):
        some = list(asked[first : first + size])
        filled = some + [some[-1]] * (size - len(some))
        raw = [moment.raw for moment in filled]
        obs, key = policy.prepare(raw), jnp.stack([moment.key for moment in filled])
        detector = None
        if monitor is not None and question.of == SCORE:
            detector = monitor, joined([moment.state for moment in filled])
        readout = question.readout(policy, raw, obs, key, detector)
        source = question.asked(watched, obs, key)

        def explained(source=source, obs=obs, key=key, readout=readout):
            found = attribute(method, source, obs, key, readout, memory=memory, **options)
            return jax.block_until_ready(found)

        found = explained()
        if not first:
            begun = time.perf_counter()
            explained()
            spent = 1000 * (time.perf_counter() - begun) / size
        if len(asked) == 1:
            strongest, random = equal_area(source, obs, key, readout, found)
            changes = float(strongest[0]), [float(x) for x in random[:, 0]]
        named = {spoken.get(camera, camera): grid for camera, grid in found.images.items()}
        found = dataclasses.replace(found, images=named)
        for row, moment in enumerate(some):
            one = jax.tree.map(lambda x, row=row: x[row : row + 1], (obs, found))
            answers.append(Answer(moment, *one))
    return Answers(method, answers, spent, changes)


def bare_milliseconds(policy: Policy, moment: Moment) -> float:
    """Milliseconds of one bare inference, once compiled: the median of five."""
    obs, key = policy.prepare([moment.raw]), moment.key[None]
    jax.block_until_ready(policy.sample(obs, key).actions)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready(policy.sample(obs, key).actions)
        times.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times))


def explain_run(
    policy: Policy,
    run: Run,
    question: Question,
    methods: Sequence[str],
    out: Path,
    *,
    monitor: Monitor | None = None,
    seed: int | None = None,
    inference: int | str | None = None,
    memory: int | None = None,
) -> str:
    """Asks every method, writes the page, and returns what the terminal says.

    Args:
        policy: the one that was recorded.
        run: its run.
        question: what is explained.
        methods: keys of `ATTRIBUTIONS`.
        out: HTML file to write.
        monitor: its detector, for a readout of the failure score.
        seed, inference: see `moments`.
        memory: bytes, see `attribute`.

    Raises:
        ValueError: see `Question.check`, `moments` and `attribute`.
    """
    question.check(policy, methods, monitor is not None)
    asked = moments(policy, run, monitor, seed, inference)
    found = [ask(policy, asked, method, question, monitor, memory) for method in methods]
    if len(asked) == 1:
        sections = [side_by_side(policy, found, question)]
        title = f"Episode {asked[0].trace.seed}, step {asked[0].step}"
    else:
        one = len({moment.trace.seed for moment in asked}) == 1
        sections = [over_time(policy, answers) if one else by_episode(answers) for answers in found]
        sections += [maps(policy, answers) for answers in found]
        title = f"Episode {asked[0].trace.seed}" if one else f"{run.path}"
    write_report(sections, out, title, f"What the {_named(found, question)} relies on.")
    return "\n".join(_told(policy, answers, question) for answers in found)


def _named(found: Sequence[Answers], question: Question) -> str:
    if question.of == SCORE:
        return "failure score"
    if question.prompt is not None:
        return f"difference to “{question.prompt}”"
    return "log-probability of the tokens" if question.of == TOKENS else question.of


def _told(policy: Policy, answers: Answers, question: Question) -> str:
    """A sentence about one moment, or the mean shares of several."""
    if len(answers.each) == 1:
        words = _sentence(policy, answers.each[0], question)
        return f"{answers.method}: {words}"
    shares = np.stack([_shares(answer) for answer in answers.each]).mean(0)
    pairs = zip(_modalities(answers.each[0]), shares, strict=True)
    listed = ", ".join(f"{name} {share:.0%}" for name, share in pairs)
    return f"{answers.method}: mean shares of {len(answers.each)} moments: {listed}"


def _sentence(policy: Policy, answer: Answer, question: Question) -> str:
    what = _named([], question)
    cause, tokenizer = localise(answer.attribution), language(policy).tokenizer
    return describe(cause, answer.obs, tokenizer, what=what, state_names=_states(policy))[0]


def _states(policy: Policy) -> Sequence[str]:
    return STATE_NAMES.get(policy.preset.name, ())


def _shares(answer: Answer) -> np.ndarray:
    return np.asarray(localise(answer.attribution).shares[0])


def _modalities(answer: Answer) -> tuple[str, ...]:
    return (*answer.attribution.images, "text", "state")


def side_by_side(policy: Policy, found: Sequence[Answers], question: Question) -> Section:
    """All methods about one moment."""
    first = found[0].each[0]
    bare = bare_milliseconds(policy, first.moment)
    blocks: list[Block] = [
        Quote(_sentence(policy, first, question), f"By {found[0].method}."),
        Table(
            [_row(answers, bare) for answers in found],
            "Milliseconds per moment, compiled, on this machine; in brackets, in inferences "
            f"(one takes {bare:.1f} ms). Completeness error: how far the sum of the numbers is "
            "from the change of the readout between moment and baseline, as a share of it; – if a "
            "method's numbers do not add up to it. Shares are of what is positive. Last columns: "
            "how much the readout changes when the strongest tenth of all patches is blurred, and "
            "when as many random ones are (mean of 16 draws, least to most). A map that says what "
            "matters changes it by more than they do.",
            "Methods",
        ),
    ]
    for answers in found:
        title = answers.method.replace("_", " ")
        blocks.append(Text(f"`{title}`"))
        blocks += _maps(policy, answers.each[0])
    if first.moment.trace.score is not None:
        blocks.append(Plot(plots.score_curve(first.moment.trace), title="Failure score"))
    return Section("Side by side" if len(found) > 1 else "Where it comes from", blocks)


def _row(answers: Answers, bare: float) -> dict[str, str]:
    answer = answers.each[0]
    error = float(answer.attribution.completeness_error[0])
    assert answers.changes is not None  # one moment
    strongest, random = answers.changes
    cost = f"{answers.milliseconds:.1f} ({answers.milliseconds / bare:.1f} x)"
    shares = zip(_modalities(answer), _shares(answer), strict=True)
    return {
        "method": answers.method.replace("_", " "),
        "ms": cost,
        "completeness error": f"{error:.1%}" if np.isfinite(error) else "–",
        **{name: f"{share:.0%}" for name, share in shares},
        "strongest tenth": f"{strongest:.2g}",
        "random tenth": f"{np.mean(random):.2g} ({min(random):.2g} to {max(random):.2g})",
    }


def _maps(policy: Policy, answer: Answer) -> list[Block]:
    """Pictures, words and state, each with what its parts add."""
    trace, i, found = answer.moment.trace, answer.moment.inference, answer.attribution
    pictures: list[Block] = []
    for key in policy.spec.cameras.values():
        seen, name = trace.images[key][i], input_name(key).rpartition("/")[2].replace("_", " ")
        heat = np.asarray(found.images[input_name(key)][0])
        pictures.append(Picture(plots.heatmap(seen, np.nan_to_num(heat)), title=name))
    tokens = np.asarray(answer.obs.tokenized_prompt[0])
    mask = np.asarray(answer.obs.tokenized_prompt_mask[0])
    text = np.asarray(found.text[0])
    words = [
        (word.text, float(text[word.start : word.stop].sum()))
        for word in words_of(language(policy).tokenizer, tokens, mask)
    ]
    names, state = _states(policy), np.asarray(found.state[0])
    dims = [
        (names[j] if j < len(names) else f"state {j}", float(value))
        for j, value in enumerate(state)
    ]
    beside: list[Block] = [Row(pictures, least=210)] if pictures else []
    return [*beside, Words(words), Words([d for d in dims if d[1] or len(dims) <= 8])]


def over_time(policy: Policy, answers: Answers) -> Section:
    """The share of each input at every inference of an episode."""
    trace = answers.each[0].moment.trace
    shares = np.stack([_shares(answer) for answer in answers.each])
    steps = np.array([answer.moment.step for answer in answers.each])
    lines = dict(zip(_modalities(answers.each[0]), shares.T, strict=True))
    blocks: list[Block] = [Plot(plots.share_lines(steps, lines), title="Share of each input")]
    if trace.score is not None:
        blocks.append(Plot(plots.score_curve(trace), title="Failure score"))
    return Section(answers.method.replace("_", " "), [Row(blocks, least=420)])


def by_episode(answers: Answers) -> Section:
    """The share of each input in successes and failures, and in each episode."""
    names = _modalities(answers.each[0])
    rows = []
    for label, want in (("successes", True), ("failures", False)):
        group = [_shares(a) for a in answers.each if a.moment.trace.success is want]
        if group:
            rows.append(_means(f"{label} (n = {len(group)})", names, np.stack(group)))
    every = [
        {
            "episode": str(a.moment.trace.seed),
            "step": str(a.moment.step),
            "outcome": "success" if a.moment.trace.success else "failure",
            **{n: f"{s:.0%}" for n, s in zip(names, _shares(a), strict=True)},
        }
        for a in answers.each
    ]
    caption = "Mean share ± standard deviation over episodes, of what is positive."
    return Section(
        answers.method.replace("_", " "),
        [Table(rows, caption, "By outcome"), Table(every, title="Each episode")],
    )


def _means(label: str, names: Sequence[str], shares: np.ndarray) -> dict[str, str]:
    mean, spread = shares.mean(0), shares.std(0)
    cells = zip(names, mean, spread, strict=True)
    return {"episodes": label} | {n: f"{m:.0%} ± {s:.0%}" for n, m, s in cells}


def maps(policy: Policy, answers: Answers) -> Section:
    """Maps of up to six moments, evenly spread."""
    chosen = np.unique(np.linspace(0, len(answers.each) - 1, _SHOWN).round().astype(int))
    blocks: list[Block] = []
    for answer in (answers.each[i] for i in chosen):
        moment = answer.moment
        blocks.append(Text(f"Episode {moment.trace.seed}, step {moment.step}."))
        blocks += _maps(policy, answer)
    return Section(f"Maps: {answers.method.replace('_', ' ')}", blocks)

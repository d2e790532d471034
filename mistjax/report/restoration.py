"""What restores a corrupted moment: heat maps over layers, heads and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mistjax.attribute.questions import raw_observation
from mistjax.attribute.restoration import UNITS, Corruption, Restoration, corrupt, restore
from mistjax.attribute.text import words_of
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, WritingPolicy
from mistjax.policies.wrapper import language
from mistjax.report import plots
from mistjax.report.blocks import Block, Picture, Plot, Quote, Row, Table, Text, Words
from mistjax.report.html import Section, write_report
from mistjax.rollouts.run import Run

_LISTED = 8


def patch_run(
    policy: Policy,
    run: Run,
    seed: int,
    inference: int,
    what: str,
    out: Path,
    *,
    prompt: str | None = None,
    units: Sequence[str] = UNITS,
    chunk: int = 8,
) -> str:
    """Corrupts a recorded moment, restores it, writes the page, and returns what was found.

    Args:
        policy: the one that was recorded.
        run: its run.
        seed: an episode with pictures.
        inference: its number.
        what, prompt: see `corrupt`.
        out: HTML file to write.
        units: some of `UNITS`.
        chunk: see `restore`.

    Raises:
        ValueError: see `raw_observation`, `corrupt` and `restore`.
    """
    trace = run.trace(seed)
    raw = raw_observation(policy, trace, inference)
    key = jax.random.fold_in(jax.random.key(seed), inference)[None]
    clean = jax.tree.map(jnp.asarray, policy.prepare([raw]))
    changed = corrupt(policy, raw, key, what, prompt=prompt)
    found = restore(policy, clean, changed.obs, key, units=tuple(units), chunk=chunk)
    best = strongest(policy, clean, found)
    step = int(trace.inference_step[inference])
    listed = "; ".join(" ".join(row.values()) for row in best[:3])
    writes = isinstance(policy, WritingPolicy)
    moved = f"the chunk moves by {found.moved:.2f} model units"
    if writes:
        moved = f"the tokens of the action are {found.moved:.2f} nats less likely"
    told = f"Where {changed.said}, {moved}. Most of the way back: {listed}."
    way = (
        "from the corrupted run's log-probability of the clean run's tokens back to its own"
        if writes
        else "from the corrupted chunk back to the clean one"
    )
    section = Section(
        "What restores it",
        [
            Quote(told, f"Episode {seed}, step {step}: “{trace.prompt}”."),
            *_pictures(policy, clean, changed.obs),
            *_words(changed, writes),
            Text(
                f"R(u) is the share of the way {way} when the clean run's activations are put back "
                "at one unit: 0 is the corrupted run, 1 the clean one. R(u) does not add up over "
                "units: several can carry the same."
            ),
            Table(best[:_LISTED], "The strongest units.", "R(u)"),
            *_maps(policy, clean, found),
        ],
    )
    write_report([section], out, f"Episode {seed}, step {step}", changed.said.capitalize() + ".")
    return told


def strongest(policy: Policy, clean: Observation, found: Restoration) -> list[dict[str, str]]:
    """Units by how much they restore, the strongest first."""
    rows: list[tuple[float, str]] = [(value, f"all of {n}") for n, value in found.stacks.items()]
    for stack, layers in found.layers.items():
        rows += [(float(v), f"{stack} layer {i + 1}") for i, v in enumerate(layers)]
    for stack, heads in found.heads.items():
        for (layer, head), value in np.ndenumerate(heads):
            rows.append((float(value), f"{stack} layer {layer + 1} head {head + 1}"))
    names = token_names(policy, clean)
    for stack, tokens in found.tokens.items():
        for (layer, token), value in np.ndenumerate(tokens):
            rows.append((float(value), f"{stack} layer {layer + 1} {names[token]}"))
    rows.sort(key=lambda row: -row[0])
    return [{"unit": name, "R(u)": _shown(value)} for value, name in rows]


def _shown(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no minus before a zero


def token_names(policy: Policy, obs: Observation) -> list[str]:
    """What each token of the VLM is: a patch of a camera, a word, or padding."""
    layout = policy.spec.stacks["vlm"].layout
    names = ["token"] * layout.length
    for camera in obs.images:
        start, stop = layout.segments[camera]
        columns = obs.images[camera].shape[2] // policy.patch[1]
        for i in range(stop - start):
            names[start + i] = f"{camera} row {i // columns + 1} column {i % columns + 1}"
    start, stop = layout.segments["text"]
    tokens = np.asarray(obs.tokenized_prompt[0])
    for word in words_of(
        language(policy).tokenizer, tokens, np.asarray(obs.tokenized_prompt_mask[0])
    ):
        for i in range(word.start, word.stop):
            names[start + i] = f"“{word.text}”"
    return names


def _pictures(policy: Policy, clean: Observation, corrupted: Observation) -> list[Block]:
    """The cameras that the corruption changed, before and after."""
    shown: list[Block] = []
    for camera in policy.spec.cameras:
        before, after = (np.asarray(obs.images[camera][0]) for obs in (clean, corrupted))
        if not np.array_equal(before, after):
            for picture, title in ((before, camera), (after, f"{camera}, corrupted")):
                pixels = np.clip((picture + 1) * 127.5, 0, 255).astype(np.uint8)
                factor = max(1, 384 // pixels.shape[0])
                shown.append(Picture(pixels.repeat(factor, 0).repeat(factor, 1), title=title))
    return [Row(shown, least=210)] if shown else []


def _words(changed: Corruption, writes: bool) -> list[Block]:
    """What leaving out each word does, where one was chosen by that."""
    if not changed.without:
        return []
    what = (
        "by how many nats the tokens of the action are less likely"
        if writes
        else "how far the chunk moves, in model units"
    )
    said = f"Each word left out of the instruction by itself: {what}."
    return [Text(said), Words(changed.without)]


def _maps(policy: Policy, clean: Observation, found: Restoration) -> list[Block]:
    blocks: list[Block] = []
    if found.layers:
        width = max(map(len, found.layers.values()))
        rows = [
            {"stack": stack}
            | {f"layer {i + 1}": _shown(float(v)) for i, v in enumerate(layers)}
            | {f"layer {i + 1}": "–" for i in range(len(layers), width)}
            for stack, layers in found.layers.items()
        ]
        blocks.append(Table(rows, "All tokens of one layer's residual stream.", "Layers"))
    heads: list[Block] = [
        Plot(plots.grid(values, "head"), title=f"Heads of {stack}")
        for stack, values in found.heads.items()
    ]
    if heads:
        blocks.append(Row(heads, least=300))
    segments: Mapping[str, tuple[int, int]] = policy.spec.stacks["vlm"].layout.segments
    groups = {name: segments[name] for name in (*clean.images, "text")}
    blocks += [
        Plot(
            plots.grid(values, "token", groups=groups),
            "One token of one layer's residual stream, all its patches and words in order.",
            f"Tokens of {stack}",
        )
        for stack, values in found.tokens.items()
    ]
    return blocks

"""`mistjax words`: what a policy's neurons write, and what they do to its actions.

What a neuron writes is read off the weights; what it does is measured on recorded scenes, by
setting neurons to one activation and by adding to theirs, beside random neurons of the same layers
and similar norms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mistjax.attribute.questions import raw_observation
from mistjax.policies.protocol import Policy, RawObs
from mistjax.policies.value_vectors import ValueVectors
from mistjax.report import plots
from mistjax.report.blocks import Block, Plot, Quote, Row, Table, Text
from mistjax.report.html import Section, write_report
from mistjax.rollouts.run import Run
from mistjax.stats import holm
from mistjax.steer.concepts import Concept, find_concept
from mistjax.steer.effects import WAYS, NeuronEffect, activation_unit, neuron_effect
from mistjax.steer.value_vectors import TopNames, top_names, value_vectors
from mistjax.steer.words import action_share, clusters, layer_rows, shown, word_rows

_DRAWN = 3
_SURE = 0.05


@dataclasses.dataclass(frozen=True)
class WordsConfig:
    """What is browsed and measured.

    Attributes:
        stack: vlm or action.
        top: how many names of a neuron count when concepts are searched.
        clusters: of value vectors; 0 for none.
        concepts: name -> words, see `find_concept`.
        doses: activations; 1 is what only one neuron in a hundred reaches.
        controls: number of sets of random neurons.
        scenes: number of recorded observations.
        statistics: of the actions; by default speed and dz, or the first action dimension if there
            is no dz.
        seed: of clusters, controls and noise.
    """

    stack: str = "vlm"
    top: int = 1
    clusters: int = 8
    concepts: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    doses: tuple[float, ...] = (-1.0, -0.5, 0.5, 1.0)
    controls: int = 12
    scenes: int = 32
    statistics: tuple[str, ...] = ()
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Words:
    """What was found.

    Attributes:
        values: value vectors of the stack.
        top: their names.
        concepts: named ones first, then clusters.
        effects: of each concept, overwritten and added; () without scenes.
        statistics: those that were measured.
    """

    values: ValueVectors
    top: TopNames
    concepts: Sequence[Concept]
    effects: Sequence[NeuronEffect]
    statistics: tuple[str, ...]

    @property
    def p_values(self) -> dict[str, float]:
        """The p-value of each effect and statistic, with Holm's correction over all of them."""
        every = {
            _key(effect, statistic): effect.p_value(statistic)
            for effect in self.effects
            for statistic in self.statistics
        }
        return holm(every)

    def rows(self) -> list[dict[str, Any]]:
        """JSON values, one row per effect and statistic."""
        sure = self.p_values
        return [
            {
                "concept": effect.concept.name,
                "writes": list(effect.concept.names[:6]),
                "neurons": len(effect.concept),
                "way": effect.way,
                "statistic": statistic,
                "dose": [float(effect.response.strengths[i]) for i in (0, -1)],
                "change": [float(effect.response.effect(statistic)[i]) for i in (0, -1)],
                "interval at highest": effect.response.interval(statistic)[-1].tolist(),
                "plain": float(effect.response.baseline[statistic].mean()),
                "z": effect.z(statistic),
                "p (Holm)": sure[_key(effect, statistic)],
                "moved": float(effect.response.moved[-1].mean()),
                "random moved": float(np.mean([c.moved[-1].mean() for c in effect.controls])),
            }
            for effect in self.effects
            for statistic in self.statistics
        ]


def _key(effect: NeuronEffect, statistic: str) -> str:
    return f"{effect.concept.name}/{effect.way}/{statistic}"


def scenes(policy: Policy, run: Run, count: int) -> list[RawObs]:
    """Observations from a run's episodes with pictures, evenly spread over all of their inferences.

    Raises:
        ValueError: no episode has pictures, or see `raw_observation`.
    """
    recorded = [run.trace(seed) for seed in run.seeds if run.video(seed) is not None]
    places = [(trace, i) for trace in recorded for i in range(len(trace.inference_step))]
    if not places:
        raise ValueError(f"{run.path} has no episode with pictures: collect some with --videos.")
    chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    return [raw_observation(policy, *places[int(i)]) for i in chosen]


def find_words(policy: Policy, config: WordsConfig, seen: Sequence[RawObs] = ()) -> Words:
    """Browses a stack, and measures its concepts and clusters on the scenes, if there are any.

    A concept or cluster that is more than half of a layer has no controls, and is not measured.

    Raises:
        ValueError: see `value_vectors`, `top_names`, `find_concept`, `clusters`, `neuron_effect`;
            or a statistic that the actions do not have.
    """
    values = value_vectors(policy, config.stack)
    top = top_names(values, config.top)
    found = [find_concept(values, top, name, words) for name, words in config.concepts.items()]
    found += clusters(values, top, config.clusters, seed=config.seed) if config.clusters else []
    names = policy.spec.action_names
    known = (*names, *(("speed",) if {"dx", "dy", "dz"} <= {*names} else ()))
    usual = tuple(name for name in ("speed", "dz") if name in known) or names[:1]
    statistics = config.statistics or usual
    if unknown := [name for name in statistics if name not in known]:
        raise ValueError(f"actions have no {unknown}: choose among {', '.join(known)}.")
    effects: list[NeuronEffect] = []
    if len(seen):
        key = jax.random.key(config.seed)
        unit = activation_unit(policy, seen, config.stack, key)
        effects = [
            neuron_effect(
                policy,
                seen,
                values,
                concept,
                config.doses,
                key,
                way=way,
                unit=unit,
                controls=config.controls,
            )
            for concept in found
            if not _too_large(values, concept)
            for way in WAYS
        ]
    return Words(values, top, found, effects, statistics)


def _too_large(values: ValueVectors, concept: Concept) -> bool:
    """Whether some layer has fewer neurons left than the concept has there."""
    _, counts = np.unique(concept.layers, return_counts=True)
    return bool(2 * counts.max() > values.vectors.shape[1])


def words_run(policy: Policy, config: WordsConfig, out: Path, run: Run | None = None) -> str:
    """Browses, measures on a run's scenes, writes the page, and returns what the terminal says.

    Raises:
        ValueError: see `scenes` and `find_words`.
    """
    seen = scenes(policy, run, config.scenes) if run is not None else []
    found = find_words(policy, config, seen)
    sections = [browser(found)]
    if found.effects:
        sections.append(measured(found, len(seen)))
    write_report(
        sections,
        out,
        f"What the neurons of {policy.spec.name}'s {config.stack} stack write",
        "Value vectors, read through the output of their stream.",
    )
    return told(found, len(seen))


def told(found: Words, scenes: int) -> str:
    """What was found, in a few lines."""
    depth, neurons, _ = found.values.vectors.shape
    share = action_share(found.values, found.top.ids[..., 0])
    lines = [
        f"{depth} layers of {neurons} neurons; {share:.0%} write an action most strongly. "
        f"{len(found.concepts)} concepts and clusters."
    ]
    if not found.effects:
        return "\n".join([*lines, "Nothing was measured: no run was given."])
    best = sorted(found.rows(), key=lambda row: row["p (Holm)"])
    sure = [row for row in best if row["p (Holm)"] < _SURE]
    lines.append(
        f"On {scenes} scenes {len(sure)} of {len(best)} effects are beyond random neurons "
        f"(p < {_SURE} after Holm's correction)."
    )
    lines += [
        f"{row['concept']} ({_names(row['writes'])}), {row['way']}: {row['statistic']} "
        f"{row['change'][0]:+.3f} to {row['change'][1]:+.3f}, z {row['z']:.1f}, "
        f"p {row['p (Holm)']:.2g}"
        for row in best[:3]
    ]
    return "\n".join(lines)


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:4]))


def browser(found: Words) -> Section:
    """Layers, words, clusters."""
    values, top = found.values, found.top
    best = [
        {
            "concept": concept.name,
            "neurons": str(len(concept)),
            "writes": _names(concept.names),
            "write an action": f"{action_share(values, _first(top, concept)):.0%}",
            "nearest neurons": "; ".join(
                f"layer {layer} neuron {neuron}"
                for layer, neuron in zip(concept.layers[:3], concept.neurons[:3], strict=True)
            ),
        }
        for concept in found.concepts
    ]
    return Section(
        "What they write",
        [
            Text(
                "A neuron writes its value vector, times its activation, into the stream that the "
                "policy acts from. Read through the output of that stream, the vector says which "
                "words (or which directions of motion) it makes more likely. z is how far the "
                "strongest name stands out from all names."
            ),
            Table(layer_rows(values, top), title="Layers"),
            Table(word_rows(values, top), "By how many neurons write it most strongly.", "Names"),
            Table(
                best,
                "Named concepts: neurons that write their words. Clusters: value vectors that "
                "point the same way.",
                "Concepts and clusters",
            ),
        ],
    )


def _first(top: TopNames, concept: Concept) -> np.ndarray:
    return top.ids[concept.layers, concept.neurons, 0]


def measured(found: Words, scenes: int) -> Section:
    """Effects on the actions, with controls; the strongest ones drawn."""
    rows, sure = found.rows(), found.p_values
    lowest, highest = rows[0]["dose"]
    count = len(found.effects[0].controls)
    table = [
        {
            "concept": row["concept"],
            "neurons": str(row["neurons"]),
            "way": row["way"],
            "statistic": row["statistic"],
            f"change at {lowest:g}": f"{row['change'][0]:+.3f}",
            f"change at {highest:g}": f"{row['change'][1]:+.3f} "
            f"[{row['interval at highest'][0]:+.3f}, {row['interval at highest'][1]:+.3f}]",
            "z": f"{row['z']:.1f}",
            "p": f"{row['p (Holm)']:.2g}",
            "moved (random)": f"{row['moved']:.3f} ({row['random moved']:.3f})",
        }
        for row in rows
    ]
    beyond = sum(p < _SURE for p in sure.values())
    strongest = sorted(
        found.effects, key=lambda effect: min(sure[_key(effect, s)] for s in found.statistics)
    )
    chosen = list(dict.fromkeys(effect.concept.name for effect in strongest))[:_DRAWN]
    blocks: list[Block] = [
        Quote(
            f"{beyond} of {len(sure)} effects are beyond those of random neurons.",
            f"p < {_SURE} after Holm's correction; {scenes} scenes, {count} sets of random "
            f"neurons.",
        ),
        Text(
            "Every concept's neurons are set to one activation (overwrite), and raised by it "
            "(add); dose 1 is what only one neuron in a hundred reaches. Changes are those of the "
            "mean over the steps of a chunk that are executed, in the env's units, paired by "
            "scene and noise. z is the change from the lowest dose to the highest in units of "
            "what random neurons do, as many in each layer and of nearly the same norm."
        ),
        Table(
            table,
            "Brackets are 95% bootstrap intervals over scenes. Moved: mean change of all executed "
            "actions, at the highest dose.",
            "Effects",
        ),
    ]
    for name in chosen:
        effects = [effect for effect in found.effects if effect.concept.name == name]
        blocks.append(Text(f"`{name}`: {_names(effects[0].concept.names)}."))
        blocks.append(
            Row([_drawn(effect, s) for s in found.statistics for effect in effects], least=380)
        )
    return Section("What they do", blocks)


def _drawn(effect: NeuronEffect, statistic: str) -> Plot:
    response = effect.response
    figure = plots.effect_lines(
        response.strengths,
        {effect.concept.name: (response.effect(statistic), response.interval(statistic))},
        [control.effect(statistic) for control in effect.controls],
        f"change of {statistic}",
    )
    return Plot(figure, title=f"{statistic}, {effect.way}")

"""What every attribution costs beside a bare inference, in one run: batch 1, the board's policies.

    python -m experiments.bench.bench_attribute --results experiments/results/bench_attribute.json

Arms take turns (`turns`); the ratio is that of one *run* to a bare inference: a step of integrated
gradients, a sample of ISS, a region of occlusion. What a method computes besides them (both ends of
the line, the untouched observation) counts as theirs. Two clocks: the wall's, and the time that the
process computed on any core, which other load disturbs less.

Peers: the same runs one after the other from Python, each compiled once (`loop`), and on OpenVLA,
which runs in PyTorch, Captum's integrated gradients (arXiv 2009.07896), where `pip install captum`
has been done; it goes through the same forward pass with the decoded tokens held fixed.

Readouts: the mean executed dz; of pi0-FAST, whose decoded chunk has no gradient, the
log-probability of its tokens, which it is made to write in every run.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array

from experiments.bench.turns import ratio, take_turns
from experiments.record import write_results
from mistjax.attribute.attribution import evaluate
from mistjax.attribute.batching import compiled
from mistjax.attribute.inputs import Baseline, Inputs, each_region, replaced
from mistjax.attribute.questions import TOKENS, Question
from mistjax.attribute.readouts import Readout
from mistjax.attribute.registry import ATTRIBUTIONS, attribute
from mistjax.compilation import enable_cache
from mistjax.models.observation import Observation
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy, WritingPolicy
from mistjax.rollouts.collect import make_env
from mistjax.rollouts.plan import BOARD_ENV

TARGETS = {"saliency": 3.5, "integrated_gradients": 3.5, "iss": 0.5, "iss_regression": 0.5}
ISS, _SEED = ("iss", "iss_regression"), 6_900_000


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
        policies: names of shipped board policies.
        turns: timed calls of each arm, after one that is not timed.
        steps: of integrated gradients.
        samples: of ISS.
        repeats: calls in one of what is a single inference or gradient.
        seed: of the order of the arms, and of the bootstrap.
        results: JSON file to write; what it holds of other policies is kept.
    """

    policies: tuple[str, ...] = ("board_pi0", "board_fast", "board_openvla")
    turns: int = 7
    steps: int = 32
    samples: int = 100
    repeats: int = 16
    seed: int = 0
    results: Path | None = None


@dataclasses.dataclass(frozen=True)
class Arm:
    """Something to time, and how many runs it is."""

    call: Callable[[], Any]
    runs: int


@compiled
def _gradient(policy, obs, key, readout, start, alpha):
    end = Inputs.of(policy, obs)
    at = jax.tree.map(lambda b, x: b + alpha * (x - b), start, end)
    return jax.grad(lambda x: evaluate(policy, obs, key, readout, x).sum())(at)


@compiled
def _intervention(policy, obs, key, readout, start, region):
    inputs = replaced(Inputs.of(policy, obs), start, region, policy.patch)
    return evaluate(policy, obs, key, readout, inputs)


def arms(
    config: Config, policy: Policy, obs: Observation, key: Array, readout: Readout
) -> dict[str, Arm]:
    """Every method that the policy does not refuse, and the peers."""
    start = Baseline().inputs(policy, obs, Inputs.of(policy, obs))
    unravel, regions = each_region(policy, obs, policy.patch)
    runs = {
        "integrated_gradients": config.steps,
        **dict.fromkeys(ISS, config.samples),
        "occlusion": regions,
        "cache_ablation": regions,
    }
    options: dict[str, dict[str, Any]] = {
        "integrated_gradients": {"steps": config.steps},
        **{name: {"samples": config.samples} for name in ISS},
    }

    def explain(name: str) -> Any:
        return attribute(name, policy, obs, key, readout, **options.get(name, {}))

    def repeated(call: Callable[[], Any]) -> Arm:
        return Arm(
            lambda: [jax.block_until_ready(call()) for _ in range(config.repeats)], config.repeats
        )

    def loop_of_gradients() -> Any:
        alphas = (np.arange(config.steps, dtype=np.float32) + 0.5) / config.steps
        each = [_gradient(policy, obs, key, readout, start, alpha[None][0]) for alpha in alphas]
        return jax.tree.map(lambda *g: sum(g) / len(g), *each)

    masks = np.random.default_rng(0).random((config.samples, regions)) < 0.3
    each_mask = [unravel(jnp.asarray(mask, jnp.float32)) for mask in masks]

    def loop_of_interventions() -> Any:
        return [_intervention(policy, obs, key, readout, start, region) for region in each_mask]

    found = {"bare": repeated(lambda: policy.sample(obs, key))}
    for name in ATTRIBUTIONS:
        try:
            explain(name)
        except ValueError:
            continue  # a policy that has none of what the method looks at
        call = functools.partial(explain, name)
        found[name] = Arm(call, runs[name]) if name in runs else repeated(call)
    found["integrated_gradients, loop"] = Arm(loop_of_gradients, config.steps)
    found["iss, loop"] = Arm(loop_of_interventions, config.samples)
    if hasattr(policy, "decoder") and importlib.util.find_spec("captum"):
        found["integrated_gradients, Captum"] = Arm(
            captum_arm(policy, obs, key, readout, start, config.steps), config.steps
        )
    return found


def captum_arm(
    policy: Any, obs: Observation, key: Array, readout: Readout, start: Inputs, steps: int
) -> Callable[[], Any]:
    """Captum's integrated gradients of an OpenVLA's pictures and words, 8 steps at a time."""
    import torch
    from captum.attr import IntegratedGradients  # pyright: ignore[reportMissingImports]

    from interop.arrays import to_torch
    from interop.traced import leaves

    tokens = {k: to_torch(v) for k, v in policy.sample(obs, key).aux.items()}
    seen = jax.tree.map(to_torch, leaves(obs))
    cameras = tuple(obs.images)
    weights = to_torch(readout.weights)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(*inputs):
        rows = len(inputs[0])
        wide = jax.tree.map(lambda x: x.expand(rows, *x.shape[1:]), (seen, tokens))
        now = {
            **wide[0],
            "images": dict(zip(cameras, inputs[:-1], strict=True)),
            "prompt_embedding": inputs[-1],
        }
        with policy._hooks((), (), ()) as hooks:
            given = policy.reader.inputs(policy.model, now)
            actions, _ = policy.decoder.replay(given, wide[1], hooks)
        return torch.einsum("bha,ha->b", actions.float(), weights)

    ends = [
        tuple(to_torch(x) for x in (*at.images.values(), at.text))
        for at in (Inputs.of(policy, obs), start)
    ]
    method = IntegratedGradients(forward)

    def call() -> Any:
        found = method.attribute(ends[0], ends[1], n_steps=steps, internal_batch_size=8)
        return [x.detach().numpy() for x in found]

    return call


def moment(policy: Policy) -> Observation:
    """What a policy sees at the start of an episode."""
    env: Any = make_env(BOARD_ENV, **(policy.preset.env_options or {}))
    raw, _ = env.reset(seed=_SEED)
    raw = {**raw, "prompt": policy.preset.prompt(raw)}
    return jax.tree.map(jnp.asarray, policy.prepare([raw]))


def time_policy(config: Config, name: str) -> list[dict[str, Any]]:
    """A row an arm."""
    policy, key = load_policy(f"checkpoints/{name}"), jax.random.key(0)
    obs, rng = moment(policy), np.random.default_rng(config.seed)
    question = Question(TOKENS if isinstance(policy, WritingPolicy) else "dz")
    readout = question.readout(policy, [], obs, key, None)
    each = arms(config, question.asked(policy, obs, key), obs, key, readout)
    calls = {arm: timed.call for arm, timed in each.items()}
    taken = take_turns(calls, turns=config.turns, burst=1, warm=1, rng=rng)
    per_run = {arm: seconds / each[arm].runs for arm, seconds in taken.items()}
    rows = []
    for arm, seconds in per_run.items():
        wall, cpu = (ratio(seconds[:, i], per_run["bare"][:, i], rng) for i in (0, 1))
        row = {"policy": name, "arm": arm, "runs": each[arm].runs}
        row |= {"milliseconds": 1e3 * float(np.median(taken[arm][:, 0]))}
        row |= {"wall": list(wall), "cpu": list(cpu), "target": TARGETS.get(arm)}
        row |= {"load": os.getloadavg()[0]}
        rows.append(row)
        print(
            f"{name:14} {arm:30} {row['runs']:4d} runs {row['milliseconds']:9.1f} ms   a run: "
            "wall x {:.2f} [{:.2f}, {:.2f}]".format(*wall),
            "  cpu x {:.2f} [{:.2f}, {:.2f}]".format(*cpu),
            flush=True,
        )
    return rows


def main(config: Config) -> Mapping[str, Any]:
    """Times every policy and prints a row an arm."""
    kept = []
    if config.results is not None and config.results.exists():
        kept = json.loads(config.results.read_text())["rows"]
    kept = [row for row in kept if row["policy"] not in config.policies]
    record = {
        "command": "python -m experiments.bench.bench_attribute",
        "device": str(jax.devices()[0].device_kind),
        "cores": os.cpu_count(),
        "rows": kept + [row for name in config.policies for row in time_policy(config, name)],
    }
    write_results(config.results, record)
    return record


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

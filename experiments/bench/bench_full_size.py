"""What watching and steering cost at the published size: one inference of pi0, pi0.5, pi0-FAST.

    python -m experiments.bench.bench_full_size --results experiments/results/bench_full_size.json
    OPENPI_SRC=openpi python -m experiments.bench.bench_full_size ...   # beside openpi's own
    python -m experiments.bench.bench_full_size --size tiny                 # does it run here?

Random weights of the full shapes in bfloat16, made on the device: an inference of pi0 takes as long
with them; pi0-FAST with them seldom ends its sentence, so it writes all of `tokens`. Arms take
turns (`turns`), ratios are to `bare`.

- `one tap`, `one edit`: a mean of a layer's residual stream; a vector added in the action expert
- `monitored`: `MistPolicy` with SAFE-MLP on the default features, no alarm
- `attributed`: gradient x input of the failure score, alone
- `alarm`: `MistPolicy` in the inference that alarms: attribution, second flow with an edit, fusion
- `repair on`: `MistPolicy` in the inferences after it
- of pi0-FAST, `monitored` reads the prefix alone, and `attributed, prefix` is gradient x input of
  that score: decoded tokens have no gradient
- `openpi`: its own `sample_actions`, jitted as its policy server does, on the same weights;
  `openpi wrapped`: its modules under our hooks, bare and with one edit
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench import openpi_sizes
from experiments.bench.turns import Ratio, ratio, take_turns
from experiments.record import command, write_results
from mistjax.attribute.readouts import FailureScore
from mistjax.attribute.registry import attribute
from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.inputs import DEFAULT_INPUT, Input
from mistjax.detect.methods.safe.heads import SafeMLP
from mistjax.detect.monitor import Monitor
from mistjax.hooks import Add, Hooks, Tap
from mistjax.models.config import PI0, PI05, TINY, TINY_FAST, FastConfig, Pi0Config
from mistjax.models.fast import Pi0Fast
from mistjax.models.normalize import NormStats
from mistjax.models.observation import Observation
from mistjax.models.pi0 import example_observation
from mistjax.models.sampling import prefill
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies.memory import infer, variable_shapes
from mistjax.policies.pi import PiPolicy
from mistjax.policies.presets import PRESETS
from mistjax.policies.protocol import Sample
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.mist import MistPolicy, Remedy
from mistjax.steer.schedules import constant
from mistjax.steer.table import CauseTable

MODELS = {
    "full": {"pi0": PI0, "pi05": PI05, "pi0_fast": FastConfig()},
    "tiny": {"pi0": TINY, "pi05": dataclasses.replace(TINY, pi05=True), "pi0_fast": TINY_FAST},
}
Model = Literal["pi0", "pi05", "pi0_fast"]
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
        models: one part each; with `results`, a part that the file holds is not timed again.
        size: published sizes, or the tests'.
        turns: timed bursts of each arm.
        burst: calls of each.
        arms: only these, and bare; () is all.
        tokens: that pi0-FAST writes.
        seed: of weights, of the order of the arms, and of the bootstrap.
        results: JSON file, written after every part.
    """

    models: tuple[Model, ...] = ("pi0", "pi05", "pi0_fast")
    size: Literal["full", "tiny"] = "full"
    turns: int = 20
    burst: int = 2
    arms: tuple[str, ...] = ()
    tokens: int = 64
    seed: int = 0
    results: Path | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm: median milliseconds of an inference, and the ratio to bare."""

    model: str
    arm: str
    milliseconds: float
    ratio: Ratio


def random_variables(config: Pi0Config | FastConfig, seed: int) -> Any:
    """Normal weights of the model's shapes, made on the device."""
    leaves, tree = jax.tree.flatten(variable_shapes(config))
    keys = jax.random.split(jax.random.key(seed), len(leaves))

    def draw(key, shape, dtype):
        return (0.02 * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    jitted = jax.jit(draw, static_argnames=("shape", "dtype"))
    return tree.unflatten(
        [jitted(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )


def random_observation(config: Pi0Config | FastConfig, seed: int) -> Observation:
    """One observation: noise for pictures and state, random words in a prompt without padding."""
    blank, rng = example_observation(config), np.random.default_rng(seed)
    words = rng.integers(3, config.vocab_size, blank.tokenized_prompt.shape)  # type: ignore[union-attr]
    return dataclasses.replace(
        blank,
        images={
            name: jnp.asarray(rng.uniform(-1, 1, x.shape), x.dtype)
            for name, x in blank.images.items()
        },
        state=jnp.asarray(rng.normal(size=blank.state.shape), blank.state.dtype),
        tokenized_prompt=jnp.asarray(words, jnp.int32),
    )


def make_policy(config: Pi0Config, variables: Any) -> PiPolicy:
    """A pi0 or pi0.5 of LIBERO's robot with unit statistics."""
    preset = PRESETS["pi0_libero"]
    cameras = dict.fromkeys(config.image_keys, "observation/image")
    preset = dataclasses.replace(preset, cameras=cameras, model=None)
    if config.action_dim < preset.action_dim:  # the tests' size
        cut = preset.action_names[: config.action_dim]
        preset = dataclasses.replace(
            preset,
            action_names=cut,
            action_low=(-1.0,) * len(cut),
            action_high=(1.0,) * len(cut),
            gripper_index=len(cut) - 1,
            delta=(),
            fallback=None,
        )
    widths = {"state": preset.state_dim, "actions": preset.action_dim}
    ones = {name: np.ones(width, np.float32) for name, width in widths.items()}
    stats = {name: NormStats(mean=0 * v, std=v, q01=-v, q99=v) for name, v in ones.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "words.model"
        train_word_tokenizer(["pick up the bowl"], [], path)
        tokenizer = PromptTokenizer.from_file(path, config.max_token_len)
    return PiPolicy(config, variables, tokenizer, stats, preset, name="random")


def make_monitor(policy: PiPolicy, *, alarms: bool) -> Monitor:
    """SAFE-MLP on the default features, whose threshold nothing or everything exceeds."""
    stacks, features = policy.spec.stacks, DEFAULT_INPUT
    width = sum(
        stacks[tap.stack].width * (stacks[tap.stack].depth if tap.layers is None else 1)
        for tap in features.taps
    )
    head = SafeMLP.create(KEY, width)
    limit = jnp.full(1, -jnp.inf if alarms else jnp.inf)
    return Monitor(head, Threshold(limit, 0.1, 100, 91), features)


def make_remedy(policy: PiPolicy) -> Remedy:
    """One direction in the action expert for every cause."""
    stack = policy.spec.stacks["action"]
    causes = (*policy.config.image_keys, "text", "state")
    table = CauseTable(
        causes=causes,
        names=("any",),
        kind=Add,
        site="action.mlp_out",
        tokens="all",
        arrays={"vector": jnp.ones((1, stack.depth, stack.width))},
        rows=jnp.zeros(len(causes), int),
        strengths=jnp.ones(len(causes)),
    )
    limits = FusionLimits.of(policy.spec, 0.5, policy.chunk_width)
    return Remedy(table, constant(1.0), limits, patch=policy.patch)


def flow_arms(config: Pi0Config, variables: Any, obs: Observation) -> dict[str, Callable[[], Any]]:
    """Arms of pi0 and pi0.5."""
    policy = make_policy(config, variables)
    quiet, loud = (make_monitor(policy, alarms=alarms) for alarms in (False, True))
    watched, mist = MistPolicy(policy, quiet), MistPolicy(policy, loud, make_remedy(policy))
    start = watched.initial_state(1)
    alarmed = mist.sample(obs, KEY, state=start)
    if not bool(jnp.all(alarmed.aux["edited"])):
        raise ValueError("the attribution named no input, so nothing was steered: another seed.")
    readout = FailureScore(quiet.detector, quiet.detector.init_state(1), quiet.reads)
    explain = jax.jit(
        lambda policy, obs, readout: attribute(
            "gradient_x_input", policy, obs, KEY, readout, patch=policy.patch
        )
    )
    tap = Tap("vlm.resid", (config.vlm.depth // 2,), "text", "mean")
    edit = one_edit(config)
    arms = {
        "bare": lambda: policy.sample(obs, KEY).actions,
        "one tap": lambda: policy.sample(obs, KEY, taps=(tap,)),
        "one edit": lambda: policy.sample(obs, KEY, edits=(edit,)).actions,
        "monitored": lambda: watched.sample(obs, KEY, state=start),
        "attributed": lambda: explain(policy, obs, readout),
        "alarm": lambda: mist.sample(obs, KEY, state=start),
        "repair on": lambda: mist.sample(obs, KEY, state=alarmed.state),
    }
    if os.environ.get("OPENPI_SRC") and config in (PI0, PI05):
        arms |= openpi_arms(policy, obs, edit)
    return arms


def one_edit(config: Pi0Config | FastConfig) -> Add:
    """A vector added to every layer's FFN output of what writes the actions."""
    expert = config.experts[-1]
    return Add(site="action.mlp_out", vector=jnp.ones((expert.depth, expert.width)), strength=0.1)


def openpi_arms(policy: PiPolicy, obs: Observation, edit: Add) -> dict[str, Callable[[], Any]]:
    """openpi's own model on the policy's weights, by itself and under our hooks."""
    openpi_sizes.put_on_path()
    from openpi.models.pi0_config import Pi0Config as StockConfig
    from openpi.shared import nnx_utils

    from interop.openpi import wrap

    config = policy.config
    stock = StockConfig(pi05=config.pi05, max_token_len=config.max_token_len).load(
        policy.variables["params"], remove_extra_params=False
    )
    theirs = openpi_sizes.observation_of(obs)
    sample = nnx_utils.module_jit(stock.sample_actions)
    wrapped = wrap(stock, policy.preset, policy.tokenizer, policy.norm_stats)
    return {
        "openpi": lambda: sample(KEY, theirs, num_steps=config.num_steps),
        "openpi wrapped": lambda: wrapped.sample(obs, KEY).actions,
        "openpi wrapped, one edit": lambda: wrapped.sample(obs, KEY, edits=(edit,)).actions,
    }


def token_arms(
    config: FastConfig, variables: Any, obs: Observation
) -> dict[str, Callable[[], Any]]:
    """Arms of pi0-FAST."""
    keys, edit = jax.random.split(KEY, 1), one_edit(config)
    tap = Tap("vlm.resid", (config.vlm.depth // 2,), "text", "mean")
    action_tap = Tap("action.resid", (-1,), "action", "mean")

    sample = jax.jit(functools.partial(infer, config))
    hooked = {
        "bare": Hooks(),
        "one tap": Hooks((), (tap,)),
        "one action tap": Hooks((), (action_tap,)),
        "one edit": Hooks((edit,)),
    }
    seen = Input.of_taps(Tap("vlm.resid", None, "image", "mean"))
    head = SafeMLP.create(KEY, config.vlm.width * config.vlm.depth)
    monitor = Monitor(head, Threshold(jnp.full(1, jnp.inf), 0.1, 100, 91), seen)
    memory = monitor.initial_state(1)

    @jax.jit
    def watch(variables, obs, keys, monitor, memory):
        tokens, taps = infer(config, variables, obs, keys, Hooks((), monitor.reads.taps))
        return monitor.step(memory, Sample(tokens[..., None], taps, {}))

    @jax.jit
    def explain(variables, obs, monitor, memory):
        def score(images):
            hooks = Hooks((), monitor.reads.taps)
            given = dataclasses.replace(obs, images=images)
            taps = prefill(Pi0Fast(config), variables, given, hooks).taps
            return monitor.logit(memory, Sample(jnp.zeros((1, 1, 1)), taps, {})).sum()

        gradient = jax.grad(score)(obs.images)
        return jax.tree.map(lambda g, x: (g * x).sum(-1), gradient, obs.images)

    arms = {
        arm: functools.partial(sample, variables, obs, keys, hooks) for arm, hooks in hooked.items()
    }
    return arms | {
        "monitored": functools.partial(watch, variables, obs, keys, monitor, memory),
        "attributed, prefix": functools.partial(explain, variables, obs, monitor, memory),
    }


def make_arms(config: Config, name: Model) -> dict[str, Callable[[], Any]]:
    """Every arm of one model, on weights of its own."""
    sizes = MODELS[config.size][name]
    variables, obs = random_variables(sizes, config.seed), random_observation(sizes, config.seed)
    if isinstance(sizes, FastConfig):
        if config.size == "full":
            sizes = dataclasses.replace(sizes, max_decoding_steps=config.tokens)
        calls = token_arms(sizes, variables, obs)
    else:
        calls = flow_arms(sizes, variables, obs)
    if config.arms:
        calls = {arm: call for arm, call in calls.items() if arm in ("bare", *config.arms)}
    return calls


def compile_arms(calls: Mapping[str, Callable[[], Any]]) -> None:
    """Calls every arm once, side by side: a program is compiled on one core."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda call: jax.block_until_ready(call()), calls.values()))


def time_arms(config: Config, name: Model, calls: Mapping[str, Callable[[], Any]]) -> list[Row]:
    """Times the compiled arms of one model."""
    rng = np.random.default_rng(config.seed)
    taken = take_turns(calls, turns=config.turns, burst=config.burst, warm=1, rng=rng)
    bare = taken["bare"][:, 0]
    return [
        Row(name, arm, 1e3 * float(np.median(s[:, 0])), ratio(s[:, 0], bare, rng))
        for arm, s in taken.items()
    ]


def main(config: Config) -> dict[str, Any]:
    """Times every part that the results file lacks; prints and writes after each."""
    device = jax.devices()[0]
    record: dict[str, Any] = {
        "command": command("experiments.bench.bench_full_size"),
        "machine": f"{device.device_kind} ({device.platform}), jax {jax.__version__}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items()},
        "rows": [],
    }
    if config.results is not None and config.results.exists():
        earlier = json.loads(config.results.read_text())
        if earlier["machine"] != record["machine"]:
            raise ValueError(
                f"{config.results} was measured on {earlier['machine']}, this is "
                f"{record['machine']}: name another file."
            )
        record["rows"] = earlier["rows"]
    print(record["machine"], flush=True)
    for name in config.models:
        if any(row["model"] == name for row in record["rows"]):
            continue
        calls = make_arms(config, name)
        print(f"{name}: compiling {len(calls)} arms", flush=True)
        compile_arms(calls)
        rows = time_arms(config, name, calls)
        record["rows"] += [dataclasses.asdict(row) for row in rows]
        for row in rows:
            print(
                f"{row.model:9} {row.arm:26} {row.milliseconds:9.2f} ms   "
                "x {:.3f} [{:.3f}, {:.3f}]".format(*row.ratio),
                flush=True,
            )
        write_results(config.results, record)
    return record


if __name__ == "__main__":
    main(tyro.cli(Config))

"""The training loop of the board's JAX policies: resumable, averaged, evaluated on the way.

A policy brings a loss over `{"model": ..., "layout_head": ...}` and its batches; everything else is
the same for all. The training state is kept in `<out>.training`. Each batch is split over the
devices; one training step keeps about one CPU core busy, so two cores are two devices:
`XLA_FLAGS=--xla_force_host_platform_device_count=2`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from experiments.train.schedule import Schedule
from mistjax.policies.protocol import Policy

Loss = Callable[..., tuple[Any, dict[str, Any]]]
"""(params, batch, key) -> (total, its parts)."""
AHEAD = 8
"""Batches that are drawn before they are needed: a GPU waits for pictures otherwise."""


@dataclasses.dataclass(frozen=True)
class Training(Schedule):
    """Of a policy in JAX.

    Attributes:
        slices: equal parts of a batch that are done one after another: what fits into a CPU's cache
            is done faster, 1.5 times at eight examples a slice.
        layout_weight: weight of the regression of stone and target positions.
        keep_every: steps between policies that are kept, as `<out>_<step>`; 0 keeps none.
        eval_every: steps between evaluations in the simulator.
        eval_episodes: episodes of each of those; 0 evaluates nothing.
    """

    steps: int = 4600
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 200
    ema: float = 0.995
    checkpoint_every: int = 200
    slices: int = 1
    layout_weight: float = 1.0
    keep_every: int = 0
    eval_every: int = 1500
    eval_episodes: int = 40

    def __post_init__(self) -> None:
        if self.slices < 1 or self.batch_size % self.slices:
            raise ValueError(
                f"slices is {self.slices}: expected a divisor of batch_size, {self.batch_size}."
            )

    def kept(self, step: int) -> Path:
        """Where the policy of a step is kept."""
        return self.out.with_name(f"{self.out.name}_{step:05d}")


def optimizer(config: Training) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        config.warmup,
        config.steps,
        end_value=0.03 * config.learning_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay),
    )


def initial_state(config: Training, params: dict[str, Any]) -> dict[str, Any]:
    return {
        "params": params,
        "average": jax.tree.map(jnp.copy, params["model"]),
        "optimizer": optimizer(config).init(params),
        "step": jnp.zeros((), jnp.int32),
    }


def make_step(config: Training, loss: Loss) -> Callable[..., Any]:
    """The jitted update: (state, batch) -> (state, parts of the loss).

    The batch is cut into slices: its leaves are [slices, batch_size / slices, ...].
    """
    transform = optimizer(config)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: dict, batch: Any):
        key = jax.random.fold_in(jax.random.key(config.seed + 1), state["step"])

        def add(total: Any, slice_: tuple[Any, Any]) -> tuple[Any, Any]:
            grads, parts = jax.grad(loss, has_aux=True)(state["params"], *slice_)
            return jax.tree.map(jnp.add, total, grads), parts

        zeros = jax.tree.map(jnp.zeros_like, state["params"])
        keys = jax.random.split(key, config.slices)
        total, parts = jax.lax.scan(add, zeros, (batch, keys))
        grads = jax.tree.map(lambda leaf: leaf / config.slices, total)
        parts = jax.tree.map(jnp.mean, parts)
        updates, opt_state = transform.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        done = state["step"].astype(jnp.float32)
        decay = jnp.minimum(config.ema, (1.0 + done) / (10.0 + done))
        average = optax.incremental_update(params["model"], state["average"], 1 - decay)  # pyright: ignore[reportIndexIssue]
        state = {
            "params": params,
            "average": average,
            "optimizer": opt_state,
            "step": state["step"] + 1,
        }
        return state, parts

    return step


def evaluate(policy: Policy, episodes: int, first_seed: int = 900_000) -> float:
    """Success rate over unseen seeds."""
    import gymnasium as gym

    import mistjax.envs  # noqa: F401 (registers the environments)
    from mistjax.rollouts.runner import run_episodes
    from mistjax.rollouts.summary import summarize

    seeds = range(first_seed, first_seed + episodes)
    run = run_episodes(policy, lambda: gym.make("mistjax/Board-v0"), seeds, progress=False)
    return summarize(run).success.value


def draw_ahead(
    config: Training, batch: Callable[[np.random.Generator, int], Any], first: int
) -> Iterator[tuple[int, Any]]:
    """Each step from `first` on with its batch, in slices; threads draw a few ahead."""

    def draw(step: int) -> Any:
        drawn = batch(np.random.default_rng((config.seed, step)), config.batch_size)
        return jax.tree.map(lambda x: x.reshape(config.slices, -1, *x.shape[1:]), drawn)

    steps = range(first, config.steps)
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting = collections.deque(pool.submit(draw, step) for step in steps[:AHEAD])
        for step in steps:
            drawn = waiting.popleft().result()
            if step + AHEAD in steps:
                waiting.append(pool.submit(draw, step + AHEAD))
            yield step, drawn


def train(
    config: Training,
    params: dict[str, Any],
    loss: Loss,
    batch: Callable[[np.random.Generator, int], Any],
    policy: Callable[[Any], Any],
    held: Any = None,
) -> Any:
    """Trains, evaluates and saves; goes on from the last checkpoint of an interrupted training.

    Args:
        config: how.
        params: where to start: `model`, and whatever else the loss trains.
        loss: of a batch.
        batch: draws some number of examples.
        policy: model parameters -> what is evaluated and saved.
        held: a batch that is never trained on; the log says its loss, by the averaged weights,
            at every checkpoint.

    Returns:
        The policy with averaged weights.
    """
    folder = config.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    step = make_step(config, loss)
    judge = jax.jit(lambda params: loss(params, held, jax.random.key(config.seed))[1])
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "batch"))
    state = jax.device_put(initial_state(config, params), whole)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    with ocp.CheckpointManager(folder, options=options) as manager, config.logging() as log:
        if (latest := manager.latest_step()) is not None:
            state = manager.restore(latest, args=ocp.args.StandardRestore(state))
        bar = tqdm(total=config.steps, initial=int(state["step"]), unit="step", smoothing=0.05)
        window: list[dict] = []
        for i, drawn in draw_ahead(config, batch, int(state["step"])):
            state, parts = step(state, jax.device_put(drawn, split))
            window.append(parts)
            bar.update()
            if len(window) == 50:
                mean = {k: float(np.mean([p[k] for p in window])) for k in parts}
                bar.set_postfix({k: f"{v:.3f}" for k, v in mean.items()})
                log({"step": i + 1, **mean})
                window.clear()
            if (i + 1) % config.checkpoint_every == 0 or i + 1 == config.steps:
                manager.save(i + 1, args=ocp.args.StandardSave(state))
                manager.wait_until_finished()
                if held is not None:
                    parts = judge({**state["params"], "model": state["average"]})
                    log({"step": i + 1, **{f"held_{k}": float(v) for k, v in parts.items()}})
            if config.keep_every and (i + 1) % config.keep_every == 0:
                keep(policy(jax.device_get(state["average"])), config.kept(i + 1))
            if config.eval_episodes and ((i + 1) % config.eval_every == 0 or i + 1 == config.steps):
                success = evaluate(policy(jax.device_get(state["average"])), config.eval_episodes)
                log({"step": i + 1, "success": success, "n": config.eval_episodes})
                bar.write(f"step {i + 1}: success {success:.0%} of {config.eval_episodes}")
    trained = policy(jax.device_get(state["average"]))
    keep(trained, config.out)
    return trained


def keep(policy: Any, folder: Path) -> None:
    """Saves a policy in place of what an earlier or interrupted call left there."""
    if (folder / "params").exists():
        shutil.rmtree(folder / "params")
    policy.save(folder)

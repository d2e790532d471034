"""Trains the shipped board policy: a tiny pi0 that learns to place Go stones from demonstrations.

1. `python -m mistjax.envs.demos --episodes 2400 --out data/board_demos`
2. `python -m experiments.train_board_policy --out runs/board_cloned`
3. `python -m experiments.board_dagger --policy runs/board_cloned --out data/board_dagger`
4. `python -m experiments.train_board_policy --demos data/board_demos data/board_dagger --start
   runs/board_cloned --out checkpoints/board_pi0`

Cloning alone (2) leaves a policy that small errors bring where no demonstration has been; expert
labels in its own states (3) and a second training (4) repair that. Interrupt it at will: the same
command goes on from the last checkpoint. About 20 minutes a training on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro
from tqdm import tqdm

from experiments.board_data import BoardData, board_tokenizer
from experiments.board_model import Batch, board_config, board_loss, init_layout_head
from mistjax.compilation import enable_cache
from mistjax.models import pi0
from mistjax.policies import BOARD, PiPolicy


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, on what, and where it goes.

    Attributes:
        demos: folders of demonstrations.
        start: checkpoint to start from; its statistics are kept. None starts at random.
        out: checkpoint folder to write; its training state is kept in `<out>.training`.
        steps: optimiser steps.
        batch_size: examples a step.
        flow_samples: noise draws of each example, sharing one prefix.
        learning_rate: peak; linear warm-up, then cosine down to 3%.
        warmup: warm-up steps.
        ema: decay of the averaged weights, which are the ones that ship.
        weight_decay: of AdamW.
        layout_weight: weight of the regression of stone and target positions.
        caption_weight: weight of the next-token loss on motion captions.
        checkpoint_every: steps between checkpoints of the training state.
        eval_every: steps between evaluations in the simulator.
        eval_episodes: episodes of each of those.
        seed: of initialisation, data order and noise.
    """

    demos: tuple[Path, ...] = (Path("data/board_demos"),)
    start: Path | None = None
    out: Path = Path("checkpoints/board_pi0")
    steps: int = 4600
    batch_size: int = 64
    flow_samples: int = 4
    learning_rate: float = 1.5e-3
    warmup: int = 200
    ema: float = 0.995
    weight_decay: float = 1e-4
    layout_weight: float = 1.0
    caption_weight: float = 0.1
    checkpoint_every: int = 200
    eval_every: int = 1500
    eval_episodes: int = 40
    seed: int = 0


def optimizer(config: Config) -> optax.GradientTransformation:
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


def initial_state(config: Config, model, start: PiPolicy | None = None) -> dict:
    variables = pi0.init(model, jax.random.key(config.seed)) if start is None else start.variables
    params = {"model": variables["params"], "layout_head": init_layout_head(model)}
    return {
        "params": params,
        "average": jax.tree.map(jnp.copy, params["model"]),
        "optimizer": optimizer(config).init(params),
        "step": jnp.zeros((), jnp.int32),
    }


def make_step(config: Config, model):
    """The jitted update: (state, batch) -> (state, parts of the loss)."""
    transform = optimizer(config)
    loss = functools.partial(
        board_loss,
        config=model,
        flow_samples=config.flow_samples,
        layout_weight=config.layout_weight,
        caption_weight=config.caption_weight,
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: dict, batch: Batch):
        key = jax.random.fold_in(jax.random.key(config.seed + 1), state["step"])
        grads, parts = jax.grad(loss, has_aux=True)(state["params"], batch, key)
        updates, opt_state = transform.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        decay = jnp.minimum(config.ema, (1.0 + state["step"]) / (10.0 + state["step"]))
        average = optax.incremental_update(params["model"], state["average"], 1 - decay)  # pyright: ignore[reportIndexIssue]
        state = {
            "params": params,
            "average": average,
            "optimizer": opt_state,
            "step": state["step"] + 1,
        }
        return state, parts

    return step


def evaluate(policy: Any, episodes: int, first_seed: int = 900_000) -> float:
    """Success rate over unseen seeds."""
    import gymnasium as gym

    import mistjax.envs  # noqa: F401 (registers the environments)
    from mistjax.rollouts.runner import run_episodes
    from mistjax.rollouts.summary import summarize

    seeds = range(first_seed, first_seed + episodes)
    run = run_episodes(policy, lambda: gym.make("mistjax/Board-v0"), seeds, progress=False)
    return summarize(run).success.value


def main(config: Config) -> PiPolicy:
    """Trains, evaluates and saves; returns the policy with averaged weights."""
    tokenizer = board_tokenizer()
    model = board_config(tokenizer.vocab_size)
    start = None if config.start is None else PiPolicy.load(config.start, BOARD)
    data = BoardData.load(config.demos, tokenizer, model, start and start.norm_stats)
    folder = config.out.with_name(config.out.name + ".training").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    step = make_step(config, model)
    with ocp.CheckpointManager(
        folder, options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    ) as manager:
        state = initial_state(config, model, start)
        if (latest := manager.latest_step()) is not None:
            state = manager.restore(latest, args=ocp.args.StandardRestore(state))
        bar = tqdm(total=config.steps, initial=int(state["step"]), unit="step", smoothing=0.05)

        def policy() -> PiPolicy:
            variables = {"params": jax.device_get(state["average"])}
            return PiPolicy(model, variables, tokenizer, data.norm_stats, BOARD, config.out.name)

        window: list[dict] = []
        for i in range(int(state["step"]), config.steps):
            rng = np.random.default_rng((config.seed, i))
            state, parts = step(state, data.batch(rng, config.batch_size))
            window.append(parts)
            bar.update()
            if len(window) == 50:
                mean = {k: float(np.mean([p[k] for p in window])) for k in parts}
                bar.set_postfix({k: f"{v:.3f}" for k, v in mean.items()})
                _log(folder, {"step": i + 1, **mean})
                window.clear()
            if (i + 1) % config.checkpoint_every == 0 or i + 1 == config.steps:
                manager.save(i + 1, args=ocp.args.StandardSave(state))
                manager.wait_until_finished()
            if (i + 1) % config.eval_every == 0 or i + 1 == config.steps:
                success = evaluate(policy(), config.eval_episodes)
                _log(folder, {"step": i + 1, "success": success, "n": config.eval_episodes})
                bar.write(f"step {i + 1}: success {success:.0%} of {config.eval_episodes}")
    trained = policy()
    if (config.out / "params").exists():
        shutil.rmtree(config.out / "params")
    trained.save(config.out)
    return trained


def _log(folder: Path, record: dict) -> None:
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

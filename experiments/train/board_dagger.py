"""Expert labels for the states that a policy brings itself into (DAgger).

    python -m experiments.train.board_dagger --policy runs/board_cloned --out data/board_dagger

The policy drives; at each of its inferences the Markov expert acts for one chunk from that very
state, the chunk is kept as the label, and the state is restored. Writes the same shards as
`mistjax.envs.board.demos`, so that training reads both. Source: Ross et al., arXiv 1011.0686.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import tyro
from safetensors.numpy import save_file
from tqdm import tqdm

from mistjax.compilation import enable_cache
from mistjax.envs.board.captions import caption
from mistjax.envs.board.demos import HORIZON
from mistjax.envs.board.env import IMAGE_KEYS, BoardEnv
from mistjax.envs.board.expert import recovery_action
from mistjax.policies.load import load_policy


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    policy: who drives.
    out: folder of shards; those that are there are kept.
    shards: how many, of `episodes` each.
    episodes: run in lock-step.
    first_seed: of the first episode.
    max_steps: per episode.
    """

    policy: Path = Path("runs/board_cloned")
    out: Path = Path("data/board_dagger")
    shards: int = 24
    episodes: int = 25
    first_seed: int = 300_000
    max_steps: int = 100


def expert_chunk(env: BoardEnv) -> np.ndarray:
    """The next `HORIZON` expert actions from here, [8,4]; the environment is left as it was."""
    saved, actions = env.physics.save(), []
    for _ in range(HORIZON):
        actions.append(recovery_action(env))
        env.physics.step(actions[-1])
        env.world = env.physics.world()
    env.physics.load(saved)
    env.world = env.physics.world()
    return np.stack(actions).astype(np.float32)


def label(policy, envs: list[BoardEnv], seeds: range) -> dict[str, list]:
    """One episode of every environment under the policy: columns as `envs.demos.demonstrate`."""
    raw = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    done = [False] * len(envs)
    rows: dict[str, list] = {}
    for inference in range(envs[0].max_steps // policy.spec.execute_steps):
        keys = jax.vmap(lambda s, i=inference: jax.random.fold_in(jax.random.key(s), i))(
            np.array(seeds)
        )
        chunks = policy.finish(policy.sample(policy.prepare(raw), keys), raw)
        for i, env in enumerate(envs):
            if done[i]:
                continue
            actions = expert_chunk(env)
            goal, aux = env.goal, env.world.stones
            row = {
                "image": raw[i][IMAGE_KEYS[0]],
                "wrist_image": raw[i][IMAGE_KEYS[1]],
                "state": raw[i]["observation/state"],
                "actions": actions,
                "aux": np.concatenate([aux[goal, :2], env.target, aux[1 - goal, :2]]).astype(
                    np.float32
                ),
                "episode": np.int64(seeds[i]),
                "prompt": raw[i]["prompt"],
                "caption": caption(actions, float(raw[i]["observation/state"][2])),
            }
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
            for action in chunks[i][: policy.spec.execute_steps]:
                raw[i], _, success, over, _ = env.step(action)
                done[i] = success or over
                if done[i]:
                    break
        if all(done):
            break
    return rows


def main(config: Config) -> None:
    policy = load_policy(config.policy)
    envs = [BoardEnv(max_steps=config.max_steps) for _ in range(config.episodes)]
    config.out.mkdir(parents=True, exist_ok=True)
    for shard in tqdm(range(config.shards), unit="shard"):
        name = config.out / f"shard_{config.first_seed + shard * config.episodes:07d}"
        if name.with_suffix(".safetensors").exists():
            continue
        first = config.first_seed + shard * config.episodes
        rows = label(policy, envs, range(first, first + config.episodes))
        text = {key: rows.pop(key) for key in ("prompt", "caption")}
        name.with_suffix(".json").write_text(json.dumps(text))
        partial = name.with_suffix(".partial")
        save_file({key: np.stack(column) for key, column in rows.items()}, partial)
        partial.rename(name.with_suffix(".safetensors"))


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

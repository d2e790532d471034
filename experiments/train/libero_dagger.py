"""The expert's corrections of a LIBERO policy (DAgger).

    python -m experiments.train.libero_dagger --policy runs/libero_cloned --suite libero_spatial
    --episodes 20 --out data/libero_dagger

The policy and the expert take turns at driving, and the expert's are kept: how to go on from where
the policy came to. Writes the same shards as `mistjax.envs.libero.demos`, so that training reads
both. Source: Ross et al., arXiv 1011.0686; the turns are Kelly et al.'s, arXiv 1810.02890.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tyro

from mistjax.compilation import enable_cache
from mistjax.envs.libero import demos
from mistjax.envs.libero.env import LiberoEnv
from mistjax.policies.load import load_policy


@dataclasses.dataclass(frozen=True)
class Config(demos.Config):
    """What is corrected.

    Attributes:
        policy: who drives in turn with the expert.
    """

    out: Path = Path("data/libero_dagger")
    policy: Path = Path("runs/libero_cloned")
    seed: int = 2_000_000


def main(config: Config) -> None:
    policy = load_policy(config.policy)
    looks = itertools.count()

    def drive(env: LiberoEnv) -> Sequence[np.ndarray]:
        raw = [env.observe()]
        key = jax.random.fold_in(jax.random.key(config.seed), next(looks))
        chunk = policy.finish(policy.sample(policy.prepare(raw), key), raw)[0]
        return chunk[: policy.spec.execute_steps]

    demos.generate(config, drive)


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

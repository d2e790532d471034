"""Do maps of what a policy relies on say how far its action moves when that is changed?

    python -m experiments.studies.fidelity

At moments of live episodes, the simulator's segmentation cuts both pictures into what the action
needs (the gripper, and what it is to move), what supports it (where that goes) and nuisance (all
else). Each part is changed in three ways: its content shifted (geometry), covered by a square in it
(patch), or overlaid with a coloured checker (texture). The number of a method is Pearson's r, over
all changes of all moments, between the share of its map on the changed pixels and the distance that
the chunk moves on the same noise; the interval is over moments. Two maps know nothing: the same
number for every patch, which knows only how large a change is, and a random tenth of the patches.

Methods that intervene explain what keeps the chunk as it is; that has no gradient, so gradients
explain its difference to the chunk that blurred pictures bring about, or, where the policy writes
tokens, how likely those are. A moment of which a method's map is 0 is left out for that method.

Source: Zhang et al., arXiv 2605.00321, who measure 0.78, 0.64 and 0.72 for ISS.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.record import write_results
from mistjax.attribute.inputs import Baseline, Inputs, patch_sums
from mistjax.attribute.readouts import ActionContrast, ActionKept, Readout, TokenLogProbability
from mistjax.attribute.registry import attribute
from mistjax.compilation import enable_cache
from mistjax.envs.board.drawing import nuisance_ids, solid_ids
from mistjax.envs.board.env import IMAGE_KEYS
from mistjax.models.observation import Observation
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy, RawObs, WritingPolicy
from mistjax.rollouts.collect import make_env
from mistjax.rollouts.plan import BOARD_ENV, LIBERO_ENV
from mistjax.stats import bootstrap, pearson

KINDS, REGIONS = ("geometry", "patch", "texture"), ("critical", "support", "nuisance")
PUBLISHED = {"geometry": 0.78, "patch": 0.64, "texture": 0.72}
INTERVENTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "iss": ("iss", {}),
    "iss_regression": ("iss_regression", {}),
    "occlusion": ("occlusion", {}),
    "cache_ablation": ("cache_ablation", {}),
    "attention_mass": ("attention_mass", {}),
    "token_norm": ("token_norm", {}),
}
GRADIENTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    name: (name, {}) for name in ("integrated_gradients", "gradient_x_input", "saliency")
}
METHODS = INTERVENTIONS | GRADIENTS
_BATCH, _FIRST_SEED = 8, 6_800_000


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is asked.

    Attributes:
        policies: names of shipped policies; what an earlier call found of others is kept.
        moments: of each.
        each: moments of an episode.
        draws: changes of each kind in each part.
        results: file for the numbers.
    """

    policies: tuple[str, ...] = ("board_pi0", "board_fast", "board_openvla", "libero_pi0")
    moments: int = 48
    each: int = 3
    draws: int = 3
    results: Path = Path("experiments/results/fidelity.json")


@dataclasses.dataclass(frozen=True)
class Seen:
    """A moment: what the policy saw, and the part that each pixel belongs to, by camera key."""

    raw: RawObs
    parts: Mapping[str, np.ndarray]


def main(config: Config) -> dict[str, Any]:
    """Asks every policy; writes the file after each."""
    result: dict[str, Any] = {"command": "python -m experiments.studies.fidelity", "policies": {}}
    if config.results.exists():
        result["policies"] = json.loads(config.results.read_text())["policies"]
    result["published"] = PUBLISHED
    for name in config.policies:
        policy = load_policy(f"checkpoints/{name}")
        walk = libero_moments if name.startswith("libero") else board_moments
        moments = list(walk(policy, config.moments, config.each))
        found = {
            "fingerprint": policy.spec.fingerprint,
            "moments": len(moments),
            "changes": len(moments) * len(KINDS) * len(REGIONS) * config.draws,
            "rows": measured(policy, moments, config.draws),
        }
        result["policies"][name] = found
        write_results(config.results, result)
        print(name, json.dumps(found, indent=1), flush=True)
    return result


def episode(policy: Policy, env: Any, seed: int, options: Any, each: int) -> Iterator[RawObs]:
    """The raw observation before some inferences, evenly spread over the first twelve."""
    raw, _ = env.reset(seed=seed, options=options)
    chosen = np.linspace(0, 12, each + 1)[:-1].round().astype(int)
    for inference in range(chosen[-1] + 1):
        raw = {**raw, "prompt": policy.preset.prompt(raw)}
        if inference in chosen:
            yield raw
        key = jax.random.fold_in(jax.random.key(seed), inference)
        sample = policy.sample(policy.prepare([raw]), key[None])
        for action in policy.finish(sample, [raw])[0][: policy.spec.execute_steps]:
            raw, _, done, cut, _ = env.step(action)
            if done or cut:
                return


def board_moments(
    policy: Policy, count: int, each: int, perturbation: Mapping[str, float] | None = None
) -> Iterator[Seen]:
    """Of the board."""
    options = {"perturbation": dict(perturbation)} if perturbation else None
    env: Any = make_env(BOARD_ENV, **(policy.preset.env_options or {}))
    ids, left = solid_ids(), count
    for seed in range(_FIRST_SEED, _FIRST_SEED + count):
        for raw in episode(policy, env, seed, options, each):
            board = env.unwrapped
            pictures = board.segmentation()
            parts = np.zeros(pictures.shape, int)  # critical
            parts[pictures == ids["board"]] = 1
            parts[np.isin(pictures, nuisance_ids(board.goal))] = 2
            yield Seen(raw, dict(zip(IMAGE_KEYS, parts, strict=True)))
            left -= 1
            if not left:
                return


def libero_moments(policy: Policy, count: int, each: int) -> Iterator[Seen]:
    """Of the tasks of libero_object: robot and asked object, the basket, all else."""
    from mistjax.envs.libero import env as libero

    options = dict(policy.preset.env_options or {})
    env: Any = make_env(LIBERO_ENV, suite="libero_object", **options)
    left = count
    for seed in range(_FIRST_SEED, _FIRST_SEED + count):
        task = {"task_id": seed % 10, "init_state": seed % 7}
        for raw in episode(policy, env, seed, task, each):
            scene = env.unwrapped
            ids, problem = scene.solid_ids(), scene.episode.change.problem
            asked = {fact[1] for fact in problem.goal}
            support = set(problem.interest) - asked
            pictures = scene.segmentation()
            parts = np.full(pictures.shape, 2)
            parts[np.isin(pictures, [ids[name] for name in ids if name in support])] = 1
            critical = [i for name, i in ids.items() if i == 1 or name in asked]
            parts[np.isin(pictures, critical)] = 0
            yield Seen(raw, dict(zip(libero.IMAGE_KEYS, parts, strict=True)))
            left -= 1
            if not left:
                env.close()
                return


def changed(
    seen: Seen, kind: str, part: int, rng: np.random.Generator
) -> tuple[RawObs, dict[str, np.ndarray]]:
    """The observation with a part of both pictures changed; and which pixels are."""
    raw, where = dict(seen.raw), {}
    for key, parts in seen.parts.items():
        picture = np.asarray(seen.raw[key]).astype(np.float32)
        new, mask = CHANGES[kind](picture, parts == part, rng)
        new = np.clip(np.where(mask[..., None], new, picture), 0, 255).round().astype(np.uint8)
        raw[key] = new
        where[key] = (new != np.asarray(seen.raw[key])).any(-1)
    return raw, where


def _geometry(picture: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> tuple:
    """Shifted by up to an eighth of the height; what it leaves gets the picture's mean colour."""
    reach = picture.shape[0] // 8
    shift = rng.integers(1, reach + 1, 2) * rng.choice([-1, 1], 2)
    moved, there = (np.roll(x, shift, (0, 1)) for x in (picture, part))
    left = np.where(part[..., None], picture.mean((0, 1)), picture)
    return np.where(there[..., None], moved, left), part | there


def _patch(picture: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> tuple:
    """A square of a quarter of the height and a random colour, around a random pixel of it."""
    if not part.any():
        return picture, part
    row, column = rng.permutation(np.argwhere(part))[0]
    half = picture.shape[0] // 8
    square = np.zeros_like(part)
    square[max(0, row - half) : row + half, max(0, column - half) : column + half] = True
    return np.broadcast_to(rng.uniform(0, 255, 3), picture.shape), square & part


def _texture(picture: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> tuple:
    """A checker of two random colours, blended half and half."""
    tile = picture.shape[0] // 16
    rows, columns = (np.arange(n) // tile for n in part.shape)
    checker = ((rows[:, None] + columns[None]) % 2)[..., None]
    colours = rng.uniform(0, 255, (2, 3))
    return (picture + np.where(checker, *colours)) / 2, part


CHANGES = {"geometry": _geometry, "patch": _patch, "texture": _texture}


def measured(policy: Policy, moments: Sequence[Seen], draws: int) -> list[dict[str, Any]]:
    """A row for each method and control."""
    rng = np.random.default_rng(0)
    moved, shares = [], []
    for seen in moments:
        drawn = [
            changed(seen, kind, part, rng)
            for kind in KINDS
            for part in range(len(REGIONS))
            for _ in range(draws)
        ]
        moved.append(distances(policy, seen.raw, [raw for raw, _ in drawn]))
        shares.append([touched(policy, seen, where) for _, where in drawn])
    distance = np.stack(moved).reshape(len(moments), len(KINDS), -1)
    touching = np.array(shares)  # [moments, changes, patches of all cameras]
    patches = touching.shape[-1]
    rows = []
    for name in METHODS:
        try:
            maps = explained(policy, moments, name)
        except (ValueError, NotImplementedError) as error:
            rows.append({"by": name, "refused": str(error)})
            continue
        rows.append(correlations(name, maps, touching, distance))
    rows.append(correlations("area", np.ones((len(moments), patches)), touching, distance))
    tenth = np.argsort(rng.random((len(moments), patches)), 1) < round(patches / 10)
    rows.append(correlations("random tenth", tenth.astype(float), touching, distance))
    return rows


def distances(policy: Policy, raw: RawObs, others: Sequence[RawObs]) -> np.ndarray:
    """Root mean square distance of the executed chunk to that of the untouched observation."""
    key = jnp.stack([jax.random.key(0)] * (len(others) + 1))
    actions = np.asarray(policy.sample(policy.prepare([raw, *others]), key).actions)
    executed = actions[:, : policy.spec.execute_steps]
    return np.sqrt(np.square(executed[1:] - executed[0]).mean((1, 2)))


def touched(policy: Policy, seen: Seen, where: Mapping[str, np.ndarray]) -> np.ndarray:
    """The share of every patch's pixels that a change touches, all cameras in one row."""
    pictures = {key: np.repeat(m[..., None] * np.uint8(255), 3, -1) for key, m in where.items()}
    obs = policy.prepare([{**seen.raw, **pictures}])
    area = 3 * np.prod(policy.patch)
    grids = [
        np.asarray(patch_sums((jnp.asarray(image) + 1) / 2, policy.patch)) / area
        for image in obs.images.values()
    ]
    return np.concatenate([grid.reshape(-1) for grid in grids])


def explained(policy: Policy, moments: Sequence[Seen], name: str) -> np.ndarray:
    """A method's absolute map of every moment, all cameras in one row."""
    method, options = METHODS[name]
    rows = []
    for first in range(0, len(moments), _BATCH):
        some = list(moments[first : first + _BATCH])
        filled = some + some[-1:] * (_BATCH - len(some))
        obs = policy.prepare([seen.raw for seen in filled])
        key = jnp.stack([jax.random.key(0)] * _BATCH)
        source, readout = _question(policy, obs, key, name)
        found = attribute(method, source, obs, key, readout, **options)
        flat = [np.abs(np.asarray(found.images[c])).reshape(_BATCH, -1) for c in obs.images]
        rows.append(np.concatenate(flat, 1)[: len(some)])
    return np.concatenate(rows)


def _question(policy: Policy, obs: Observation, key: Any, name: str) -> tuple[Policy, Readout]:
    """Whose samples are read, and how."""
    own = policy.sample(obs, key).actions
    if name not in GRADIENTS:
        return policy, ActionKept(own)
    if isinstance(policy, WritingPolicy):
        return policy.saying(obs, key), TokenLogProbability()
    inputs = Inputs.of(policy, obs)
    blurred = Baseline().inputs(policy, obs, inputs).images
    away = policy.sample(dataclasses.replace(obs, images=blurred), key).actions
    return policy, ActionContrast(away, own - away)


def correlations(
    name: str, maps: np.ndarray, touching: np.ndarray, distance: np.ndarray
) -> dict[str, Any]:
    """Pearson's r for each kind of change, with its interval over the moments that have a map."""
    some = maps.sum(1) > 0
    if 2 * some.sum() < len(maps):
        return {"by": name, "refused": "most of its maps are 0 everywhere"}
    maps, touching, distance = maps[some], touching[some], distance[some]
    mass = (touching * maps[:, None]).sum(-1) / maps.sum(1)[:, None]
    mass = mass.reshape(distance.shape)
    row: dict[str, Any] = {"by": name, "moments": int(some.sum())}
    for k, kind in enumerate(KINDS):

        def r(index: np.ndarray, k: int = k) -> float:
            return pearson(mass[index, k].ravel(), distance[index, k].ravel())

        row[kind] = [r(np.arange(len(mass))), *bootstrap(r, len(mass))]
    return row


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))

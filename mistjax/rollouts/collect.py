"""A policy and an environment by name in, recorded episodes out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from mistjax.envs.faults.make import make_faulty
from mistjax.hooks.sites import Tap, layers_at, resolve_layers
from mistjax.policies.protocol import Policy, PolicySpec
from mistjax.rollouts.plan import BOARD_ENV, LIBERO_ENV, EpisodePlan
from mistjax.rollouts.run import Run
from mistjax.rollouts.runner import run_episodes


def collect(
    policy: Policy,
    out: Path | str,
    plan: EpisodePlan = EpisodePlan(),
    *,
    env_options: Mapping[str, Any] | None = None,
    taps: Sequence[Tap] = (),
    aux: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    **options: Any,
) -> Run:
    """Runs and records the episodes of a plan; resumes where it stopped.

    Args:
        policy: what acts.
        out: run folder.
        plan: which episodes, where, and how.
        env_options: further options of the environment, such as a preset's.
        taps: activations to record.
        aux: outputs of the policy to record, besides what it always `reports`.
        seeds: in place of the plan's.
        **options: fields of the plan that are given here, e.g. `episodes=20`.

    Raises:
        ValueError, RuntimeError, ImportError: see `EpisodePlan`, `suite_seeds` and `run_episodes`.
    """
    plan, out = dataclasses.replace(plan, **options), Path(out)
    for tap in taps:
        check_tap(tap, policy.spec)
    aux = tuple(dict.fromkeys((*policy.reports, *aux)))
    env, settings = plan.env, dict(env_options or {})
    if plan.suite is not None:
        check_libero(policy.spec, plan.batch_size)
    chosen = plan.seeds() if seeds is None else seeds
    if plan.compiled:
        return _compiled(policy, out, plan, chosen, settings, taps, aux)
    drawn: dict[str, Any] = {}
    if plan.suite is not None:
        env, settings = LIBERO_ENV, {"suite": plan.suite, **settings}
        if plan.prompts is not None:
            settings["prompts"] = plan.prompts
    if env is None:
        raise ValueError("the plan names no environment: give its gymnasium id as env.")
    if env in (BOARD_ENV, LIBERO_ENV) and not plan.videos:  # only what an inference looks at
        drawn["picture_every"] = policy.spec.execute_steps
    make: Callable[[], gym.Env] = functools.partial(make_env, env, **settings, **drawn)
    if (mixture := plan.mixture()) is not None:
        faults, looks = mixture.to_json(), policy.spec.execute_steps
        make = functools.partial(make_faulty, env, faults, looks, **settings, **drawn)
        settings["faults"] = faults
    return run_episodes(
        policy,
        make,
        chosen,
        plan,
        out=out,
        taps=taps,
        aux=aux,
        settings=settings,
    )


def _compiled(
    policy: Policy,
    out: Path,
    plan: EpisodePlan,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    taps: Sequence[Tap],
    aux: Sequence[str],
) -> Run:
    from mistjax.rollouts.compiled_run import run_compiled

    if settings:
        raise ValueError(
            f"environment options {sorted(settings)} are given, and a compiled board has none: "
            "leave compiled out."
        )
    mixture = plan.mixture()
    faults = {} if mixture is None else {"faults": mixture.to_json()}
    return run_compiled(policy, seeds, plan, out=out, taps=taps, aux=aux, settings=faults)


def check_libero(spec: PolicySpec, scenes: int) -> None:
    """ValueError for a policy of a robot other than LIBERO's, or for more scenes at a time than
    there is memory for.
    """
    from mistjax.envs.libero.simulator import ACTIONS, check_memory

    if spec.action_dim != len(ACTIONS):
        raise ValueError(
            f"{spec.name!r} moves {', '.join(spec.action_names)}, and LIBERO's robot takes "
            f"{', '.join(ACTIONS)}: expected a policy for it, or another preset."
        )
    check_memory(scenes)


def check_tap(tap: Tap, spec: PolicySpec) -> None:
    """ValueError for a stack, a layer or a token selector that a policy does not have."""
    if tap.stack not in spec.stacks:
        raise ValueError(
            f"tap '{tap}': {spec.name!r} has stacks {', '.join(spec.stacks)}; choose a tap of one, "
            f"such as {next(iter(spec.stacks))}.resid@-1/all/mean."
        )
    stack = spec.stacks[tap.stack]
    try:
        resolve_layers(tap.layers, layers_at(tap.site, stack.depth))
        stack.layout.select(tap.tokens)
    except ValueError as error:
        raise ValueError(f"tap '{tap}': {error}") from None


def make_env(env: str, **options: Any) -> gym.Env:
    """One environment by gymnasium id; a function that worker processes can import."""
    import mistjax.envs  # noqa: F401 (registers the environments)

    return gym.make(env, **options)

"""`EpisodePlan`: which episodes are run, where, and how; checked before anything is started.

`RunOptions` is the part of it that a study shares, which has its own episodes.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import numbers
import operator
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn

from mistjax.envs.faults.battery import Mixture, read_mixture
from mistjax.ranges import whole

BOARD_ENV = "mistjax/Board-v0"
LIBERO_ENV = "mistjax/Libero-v0"
SEEDS = 2**31

Executor = Literal["process", "ray"]
Physics = Literal["kinematic", "mjx"]


class CrashedError(RuntimeError):
    """The first episodes all crashed: the set-up cannot work. The traceback of the last one is a
    note on it.
    """

    def __init__(self, episodes: int, error: str):
        reason = error.strip().splitlines()[-1:] or ["an unknown error"]
        super().__init__(f"the first {episodes} episodes all crashed, the last one: {reason[0]}")
        self.add_note(error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how episodes are run; not which. Numbers may be NumPy's; they become Python's.

    Attributes:
        suite: in place of the board, a LIBERO suite, e.g. libero_spatial, one of LIBERO-PRO's, e.g.
            libero_object_swap, or a folder of .bddl files.
        prompts: whether instructions are those in the tasks' file name or in their text; by default
            the name for LIBERO's own suites and the text for others, as in published evaluations.
        tasks: which tasks of the suite; all by default.
        videos: how many of the first episodes to record as video.
        max_steps: steps after which an episode is cut off; by default the environment's limit.
        workers: processes that step the environments; 0 is this one. For compiled episodes on Ray:
            number of programs that run at a time, each in a process of its own.
        num_envs: environments in lock-step; 8 by default, 16 in a study, with LIBERO one per
            worker. Give it if runs with different numbers of workers are to agree bit for bit.
        executor: whether workers are processes of this machine or Ray actors.
        retry_errors: rerun seeds that crashed in an earlier call.
        compiled: the board as one compiled program, policy, pictures and physics in it; faster, but
            the physics are not MuJoCo's, see docs/compiled.md.
        physics: of compiled episodes: kinematic, or mjx, MuJoCo's own solver in JAX, which is
            closer to MuJoCo and thousands of times slower.
        devices: number of devices that compiled episodes are spread over; with Ray, per process.
        fsdp: number of neighbouring devices that share one copy of the policy, where one device is
            too small for it; a divisor of devices.

    Raises:
        ValueError: a number out of its range, an unknown suite, tasks without one, or options of
            compiled episodes for others; says which and what was expected.
    """

    suite: str | None = None
    prompts: Literal["name", "text"] | None = None
    tasks: tuple[int, ...] = ()
    videos: int = 0
    max_steps: int | None = None
    workers: int = 0
    num_envs: int | None = None
    executor: Executor = "process"
    retry_errors: bool = False
    compiled: bool = False
    physics: Physics = "kinematic"
    devices: int = 1
    fsdp: int = 1

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None or name not in ("max_steps", "num_envs"):
                object.__setattr__(self, name, whole(name, value, least))
        if self.suite is not None:
            _check_suite(self.suite)
        tasks = tuple(whole("a task", task, 0) for task in self.tasks)
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"tasks are {list(tasks)}: expected each at most once.")
        if self.prompts is not None and (
            self.suite is None or self.prompts not in ("name", "text")
        ):
            raise ValueError(
                f"prompts is {self.prompts!r}: expected name or text, together with a suite."
            )
        if tasks and self.suite is None:
            raise ValueError(f"tasks are {[*tasks]}, but no LIBERO suite is named.")
        if self.executor not in ("process", "ray"):
            raise ValueError(f"executor is {self.executor!r}: expected 'process' or 'ray'.")
        if self.physics not in typing.get_args(Physics):
            raise ValueError(f"physics is {self.physics!r}: expected 'kinematic' or 'mjx'.")
        if self.compiled:
            self._check_compiled()
        elif (self.devices, self.fsdp) != (1, 1):
            raise ValueError(
                f"devices is {self.devices} and fsdp is {self.fsdp}: only compiled episodes are "
                "spread over devices; ask for compiled, or leave them out."
            )
        elif self.physics != "kinematic":
            raise ValueError(
                f"physics is {self.physics!r}: only compiled episodes have other physics than "
                "MuJoCo's; ask for compiled, or leave it out."
            )
        object.__setattr__(self, "tasks", tasks)

    def _check_compiled(self) -> None:
        if self.suite is not None:
            _refuse_compiled(self.suite)
        for name in ("videos", "workers"):
            if getattr(self, name) and (name, self.executor) != ("workers", "ray"):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but compiled episodes have none: give 0, or "
                    "leave compiled out."
                )
        if self.executor == "ray" and not self.workers:
            raise ValueError(
                "workers is 0: compiled episodes that Ray plays need at least 1, the number of "
                "programs that run at a time."
            )
        if self.devices % self.fsdp:
            raise ValueError(
                f"fsdp is {self.fsdp}: expected a divisor of devices, {self.devices}, since that "
                "many devices share one copy of the policy."
            )


@dataclasses.dataclass(frozen=True)
class EpisodePlan(RunOptions):
    """Which episodes are run, where, and how.

    Attributes:
        episodes: how many, of consecutive seeds; with `suite`, of each task.
        first_seed: the first seed; with `suite`, the first fixed start of each task.
        perturbation: what is changed in the environment, e.g. `camera_angle 0.5`; LIBERO has kinds
            too, e.g. `position swap`.
        fault: a fault that begins in every episode, and its strength, e.g. `front_dimmed 0.8`; see
            `mistjax.envs.faults`.
        faults: a mixture in its place, one fault drawn for each seed: the name of a shipped one,
            e.g. board, or a JSON file.
        fault_onset: first and last step at which a fault begins; the mixture's own by default.
        sensor_noise: whether cameras and state have ordinary noise; by default as the mixture says.
        env: gymnasium id; None where the environment is made elsewhere (see `run_episodes`).

    Raises:
        ValueError: see `RunOptions`; an unknown environment or perturbation, or too many seeds.
    """

    episodes: int = 50
    first_seed: int = 0
    perturbation: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    fault: tuple[str, float] | None = None
    faults: str | None = None
    fault_onset: tuple[int, int] | None = None
    sensor_noise: bool | None = None
    env: str | None = BOARD_ENV

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("first_seed", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        super().__post_init__()
        if self.suite is None and self.first_seed + self.episodes > SEEDS:
            raise ValueError(
                f"{self.episodes} episodes from seed {self.first_seed} on: seeds end at 2**31 - 1."
            )
        if self.compiled and self.env != BOARD_ENV:
            _refuse_compiled(self.env)
        object.__setattr__(self, "perturbation", _plain(self.perturbation))
        self.mixture()
        env = LIBERO_ENV if self.suite is not None else self.env
        if env is not None and (self.perturbation or env not in (BOARD_ENV, LIBERO_ENV)):
            check_perturbation(_environment(env), self.perturbation)

    @property
    def batch_size(self) -> int:
        """Environments in lock-step, if there are as many episodes."""
        if self.num_envs is not None:
            return self.num_envs
        return max(self.workers, 1) if self.suite or self.env == LIBERO_ENV else 8

    def mixture(self) -> Mixture | None:
        """Which faults are drawn; None where neither faults nor sensor noise are asked for.

        Raises:
            ValueError: a fault and a mixture, an unknown fault, or a mixture that cannot be read.
        """
        if self.fault is not None and self.faults is not None:
            raise ValueError("a fault and a mixture of faults are given: expected one of them.")
        if self.fault_onset is not None and self.fault is None and self.faults is None:
            raise ValueError("fault_onset is given, but no fault that begins there.")
        options: dict[str, Any] = {}
        if self.fault_onset is not None:
            options["onset"] = tuple(whole("an onset", step, 0) for step in self.fault_onset)
        if self.sensor_noise is not None:
            options["sensor_noise"] = bool(self.sensor_noise)
        if self.faults is not None:
            try:
                return dataclasses.replace(read_mixture(self.faults), **options)
            except OSError as error:
                raise ValueError(str(error)) from None
        if self.fault is not None:
            name, strength = self.fault
            return Mixture.single(str(name), float(strength), **{"sensor_noise": False, **options})
        return Mixture(**options) if self.sensor_noise else None

    def seeds(self) -> tuple[int, ...]:
        """The seeds of the episodes; with a suite see `suite_seeds`, which can refuse."""
        if self.suite is not None:
            return suite_seeds(self.suite, self.episodes, self.first_seed, self.tasks)
        return tuple(range(self.first_seed, self.first_seed + self.episodes))


for plan in (RunOptions, EpisodePlan):
    typing.no_type_check(plan.__init__)  # it says itself, in words, what is wrong with a number

_LEAST = {
    "videos": 0,
    "max_steps": 1,
    "workers": 0,
    "num_envs": 1,
    "devices": 1,
    "fsdp": 1,
}


def _refuse_compiled(where: str | None) -> NoReturn:
    raise ValueError(
        f"compiled is asked for with {where}: only {BOARD_ENV} is a compiled program; leave "
        "compiled out."
    )


def _check_suite(suite: str) -> None:
    from mistjax.envs.libero.suites import check_suite

    check_suite(suite)


def check_seeds(seeds: Iterable[Any]) -> tuple[int, ...]:
    """Seeds as Python's numbers, in their order.

    Raises:
        ValueError: none, one twice, or one that is not a whole number from 0 to 2**31 - 1.
    """
    given = list(seeds)
    try:
        checked = tuple(operator.index(seed) for seed in given)
    except TypeError:
        checked = ()
    distinct = len(checked) == len(set(checked)) > 0
    if not distinct or not 0 <= min(checked) <= max(checked) < SEEDS:
        raise ValueError(f"seeds are {given}: expected distinct whole numbers from 0 to 2**31 - 1.")
    return checked


def suite_seeds(
    suite: str, episodes: int, first: int = 0, tasks: Sequence[int] = ()
) -> tuple[int, ...]:
    """Seeds of so many episodes of each task of a LIBERO suite, from the start `first` on; the
    tasks take turns. No tasks are all of them. A task without fixed starts has 50 drawn ones.

    Raises:
        ValueError: an unknown suite or task, or more start states than it has.
        ImportError: LIBERO is not installed.
    """
    from mistjax.envs.libero.episodes import STARTS, check_task
    from mistjax.envs.libero.suites import suite as tasks_of

    known = tasks_of(suite)
    chosen = [check_task(known, task) for task in tasks or range(len(known))]
    states = [known[task].init_states() for task in chosen]
    starts = min(STARTS if fixed is None else min(len(fixed), STARTS) for fixed in states)
    if first + episodes > starts:
        raise ValueError(
            f"episodes {first} to {first + episodes - 1} of each task are asked for; {suite} has "
            f"start states 0 to {starts - 1}."
        )
    return tuple(task * STARTS + first + i for i in range(episodes) for task in chosen)


def check_perturbation(env: Any, perturbation: Mapping[str, Any]) -> None:
    """Lets an environment, or its class, say whether it knows a perturbation: by a static method
    `check_perturbation(perturbation)` that raises ValueError. One without it takes any.
    """
    check = getattr(env, "check_perturbation", None)
    if check is not None and perturbation:
        check(perturbation)


def _environment(env: str) -> Any:
    """The class (or function) behind a gymnasium id, without making the environment."""
    import gymnasium as gym
    from gymnasium.envs.registration import load_env_creator

    import mistjax.envs  # noqa: F401 (registers the environments)

    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        point = gym.spec(name).entry_point
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"no environment is called {env!r}: {error}") from None
    return load_env_creator(point) if isinstance(point, str) else point


def _plain(perturbation: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy's numbers as Python's; ValueError names a strength that is not finite."""
    plain = {}
    for name, value in perturbation.items():
        if isinstance(value, numbers.Real):
            if not math.isfinite(value):
                raise ValueError(f"perturbation {name!r} is {value}: expected a finite strength.")
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        plain[str(name)] = value
    return plain

"""Worker processes change nothing but the time; one that dies takes no other episode with it."""

import collections
import functools
import importlib
import multiprocessing
import types
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from mistjax.rollouts import load_run, run_episodes
from mistjax.rollouts.workers import pool as workers_pool
from mistjax.rollouts.workers import ray as workers_ray
from mistjax.rollouts.workers import worker as workers
from mistjax.rollouts.workers.pool import EnvPool
from mistjax.rollouts.workers.worker import InlineWorker, WorkerLost


@pytest.fixture
def fragile(monkeypatch):
    """The module of a fragile environment, under a name that other processes can import."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("fragile")


def run(policy, make_env, seeds, num_envs=3, **kwargs):
    return run_episodes(policy, make_env, seeds, num_envs=num_envs, progress=False, **kwargs)


@pytest.fixture
def deaths(monkeypatch):
    """`deaths({seed: times})`: in-process workers that die of step 2 of those episodes."""

    def install(times):
        left = collections.Counter(times)

        class Dying(InlineWorker):
            def receive(self):
                method, arguments = self._requests[0]
                seed = self.seeds.get(arguments[0])
                if method == "reset":
                    self.seeds[arguments[0]] = arguments[1]
                if method == "act" and left[seed] > 0:
                    left[seed] -= 1
                    raise WorkerLost("a worker process died (killed by SIGSEGV)")
                return super().receive()

            seeds = property(lambda self: self.__dict__.setdefault("_seeds", {}))

        monkeypatch.setattr(workers_pool, "ProcessWorker", Dying)

    return install


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_episode_that_kills_its_worker_once_ends_as_if_nothing_had_happened(
    policy, make_env, same, deaths, count, capsys
):
    sound = run(policy, make_env, range(8))
    deaths({2: 1, 5: 1})
    shaken = run(policy, make_env, range(8), workers=count)
    for seed in range(8):
        same(sound.trace(seed), shaken.trace(seed))
    told = capsys.readouterr()
    assert "seed 2: a worker process died (killed by SIGSEGV)" in told.out + told.err


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_episode_that_kills_its_worker_twice_is_an_error_and_the_others_go_on(
    policy, make_env, same, deaths, count
):
    sound = run(policy, make_env, range(8))
    deaths({2: 9})
    shaken = run(policy, make_env, range(8), workers=count)
    assert [row["seed"] for row in shaken.rows if row["error"]] == [2]
    assert shaken.trace(2).success is None
    assert shaken.trace(2).error == "a worker process died (killed by SIGSEGV), twice"
    for seed in set(range(8)) - {2}:
        same(sound.trace(seed), shaken.trace(seed))


def test_neighbours_of_many_deaths_are_not_blamed(policy, make_env, deaths):
    deaths({seed: 9 for seed in range(0, 12, 2)})
    rows = run(policy, make_env, range(12), workers=1).rows
    assert [row["seed"] for row in rows if row["error"]] == list(range(0, 12, 2))


def test_a_setup_that_kills_every_worker_stops_the_run(policy, make_env, deaths):
    deaths(dict.fromkeys(range(20), 9))
    with pytest.raises(RuntimeError, match="first 8 episodes all crashed"):
        run(policy, make_env, range(20), workers=2)


def test_wrong_settings_are_refused(make_env):
    with pytest.raises(ValueError, match="workers is -1"):
        EnvPool(make_env, 2, workers=-1)
    with pytest.raises(ValueError, match="executor is 'threads'"):
        EnvPool(make_env, 2, workers=1, executor="threads")
    with pytest.raises(ValueError, match="cannot be sent to a worker process"):
        EnvPool(lambda: make_env(), 2, workers=1)


def test_pictures_between_inferences_stay_where_they_are(fragile):
    pool = EnvPool(fragile.make, 2)
    start = {row: ("reset", (row, row, {}, row == 1)) for row in range(2)}
    assert all("observation/image" in reply.moments[0].raw for _, reply in pool.exchange(start))
    act = {row: ("act", (row, [np.zeros(2)] * 3)) for row in range(2)}
    without, with_pictures = (reply.moments for _, reply in pool.exchange(act))
    assert ["observation/image" in moment.raw for moment in without] == [False, False, True]
    assert all("observation/image" in moment.raw for moment in with_pictures)
    pool.close()


@pytest.mark.parametrize(
    ("failures", "address", "tried"), [(2, None, 3), (9, None, 4), (9, "ray://head:10001", 1)]
)
def test_ray_is_started_again_where_it_gave_up(monkeypatch, failures, address, tried):
    calls = []

    def init(**options):
        calls.append(options)
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup.")

    fake = types.SimpleNamespace(init=init, shutdown=lambda: None)
    monkeypatch.setattr(workers_ray, "_ray", lambda: fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(Exception, match="timed out") if failures >= tried else nullcontext():
        workers_ray.start()
    assert len(calls) == tried
    assert ("include_dashboard" in calls[0]) is (address is None)


@pytest.mark.slow
def test_worker_processes_give_the_same_episodes(policy, fragile, same, tmp_path):
    here = run(policy, fragile.make, range(9), record_video=[1])
    for count in (1, 2):
        out = tmp_path / str(count)
        kwargs = {"workers": count, "record_video": [1], "out": out}
        run(policy, fragile.make, range(4), **kwargs)
        there = run(policy, fragile.make, range(9), **kwargs)
        for seed in range(9):
            same(here.trace(seed), there.trace(seed))
        assert load_run(out).video(1) is not None
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_processes_that_are_killed_are_replaced(policy, fragile, same, tmp_path):
    sound = run(policy, fragile.make, range(5))
    once = functools.partial(fragile.make, kill=(1,), crash=(2,), once=tmp_path)
    repaired = run(policy, once, range(5), workers=1)
    assert (tmp_path / "1").exists()
    assert "the simulator lost its display" in repaired.trace(2).error
    for seed in (0, 1, 3, 4):
        same(sound.trace(seed), repaired.trace(seed))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_process_that_hangs_is_killed(fragile, monkeypatch):
    pool = EnvPool(functools.partial(fragile.make, hang=(0,)), 1, workers=1)
    ((_, begun),) = pool.exchange({0: ("reset", (0, 0, {}, False))})
    assert begun.error is None
    monkeypatch.setattr(workers, "PATIENCE_S", 1.0)
    ((_, reply),) = pool.exchange({0: ("act", (0, [np.zeros(2)] * 5))})
    assert reply.lost and "said nothing for 1 s" in reply.error
    pool.close()
    assert not multiprocessing.active_children()


def test_a_refusal_is_rebuilt_by_its_class_or_told_with_its_traceback(fragile, tmp_path):
    for make, kind in ((fragile.refuse, ImportError), (refuse_a_file, FileNotFoundError)):
        refusal = refusal_of(make)
        assert type(refusal.exception()) is kind
        assert str(refusal.exception()) == refusal.message
    strange = refusal_of(functools.partial(fragile.refuse_strangely, tmp_path / "mark"))
    assert type(strange.exception()) is RuntimeError
    assert "in refuse_strangely" in str(strange.exception())


def refuse_a_file():
    raise FileNotFoundError("no assets in nowhere")


def refusal_of(make):
    try:
        make()
    except Exception as error:
        return workers.Refusal.of(error)


@pytest.mark.slow
def test_what_an_environment_refuses_comes_back_as_text(fragile, tmp_path):
    with pytest.raises(ImportError, match="make simulator"):
        EnvPool(fragile.refuse, 2, workers=1)
    mark = tmp_path / "mark"
    with pytest.raises(RuntimeError, match="Strange") as refused:
        EnvPool(functools.partial(fragile.refuse_strangely, mark), 1, workers=1)
    assert "in refuse_strangely" in str(refused.value)
    assert not mark.exists()
    assert not multiprocessing.active_children()

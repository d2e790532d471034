import dataclasses
import time

import numpy as np
import pytest

from mistjax.hooks.sites import Tap
from mistjax.rollouts import load_run, run_episodes


def run(policy, make_env, seeds, **kwargs):
    return run_episodes(policy, make_env, seeds, progress=False, **kwargs)


def test_an_episode_does_not_depend_on_which_episodes_share_its_batch(
    policy, make_env, same, tap, step_tap
):
    together = run(policy, make_env, range(9), num_envs=4, taps=(tap, step_tap))
    alone = run(policy, make_env, [7], num_envs=4, taps=(tap, step_tap))
    reversed_order = run(policy, make_env, range(8, -1, -1), num_envs=2, taps=(tap, step_tap))
    same(together.trace(7), alone.trace(7))
    for seed in range(9):
        same(together.trace(seed), reversed_order.trace(seed))


def test_nothing_recompiles_when_episodes_finish_and_start(policy, make_env):
    run(policy, make_env, range(10), num_envs=3)
    assert policy.calls > 10
    assert policy.compiles == 1


def test_the_memory_of_a_policy_starts_anew_with_each_episode(policy, make_env):
    for trace in run(policy, make_env, range(6), num_envs=2).traces():
        counts = np.arange(1, len(trace.chunks) + 1)
        np.testing.assert_allclose(trace.score, counts / 5, rtol=1e-6)
        np.testing.assert_array_equal(trace.alarm, counts > 3)
        np.testing.assert_array_equal(trace.edited, counts > 4)


def test_a_trace_says_what_was_done(policy, make_env, tap, step_tap):
    episode = run(policy, make_env, [3], taps=(tap, step_tap), aux=("noise",)).trace(3)
    steps, inferences = len(episode.actions), len(episode.chunks)
    assert (episode.prompt, episode.task, episode.policy) == ("go to the middle", "middle", "point")
    assert episode.env_id == "PointEnv"
    np.testing.assert_array_equal(episode.inference_step, np.arange(inferences) * 2)
    for i, start in enumerate(episode.inference_step):
        executed = episode.actions[start : start + 2]
        np.testing.assert_array_equal(executed, episode.chunks[i, : len(executed)])
    assert episode.features[str(tap)].shape == (inferences, 1, 2)
    assert episode.features[str(step_tap)].shape == (inferences, 3, 1, 2)
    np.testing.assert_array_equal(
        episode.features[str(tap)][:, 0], episode.state[episode.inference_step]
    )
    assert episode.aux["noise"].shape == (inferences, 4, 2)
    assert (episode.timings_ms > 0).all()
    assert episode.info["distance"] < 0.3 or not episode.success
    np.testing.assert_allclose(
        episode.state[1:], episode.state[:-1] + 0.5 * episode.actions[: steps - 1], rtol=1e-5
    )


def test_a_perturbation_reaches_the_environment_and_the_trace(policy, make_env):
    drifting = run(policy, make_env, range(4), perturbation={"drift": 1.0})
    assert all(not row["success"] for row in drifting.rows)
    assert {row["failure_cause"] for row in drifting.rows} == {"left the field"}
    assert drifting.trace(0).perturbation == {"drift": 1.0}


def test_episodes_are_cut_off_at_max_steps(policy, make_env):
    rows = run(policy, make_env, range(5), max_steps=3).rows
    assert {row["steps"] for row in rows} <= {1, 2, 3}
    assert max(row["steps"] for row in rows) == 3


def test_a_crash_of_the_environment_is_an_error_and_not_a_failure(policy, make_env, same):
    crashing = run(policy, lambda: make_env(crash_on=(1, 4)), range(6), num_envs=2, max_steps=9)
    assert [row["seed"] for row in crashing.rows if row["error"]] == [1, 4]
    assert crashing.trace(1).success is None
    assert crashing.trace(1).failure_cause is None
    assert "the simulator lost its display" in crashing.trace(1).error
    assert len(crashing.trace(1).actions) == 1
    sound = run(policy, make_env, range(6), num_envs=2, max_steps=9)
    for seed in (0, 2, 3, 5):
        same(crashing.trace(seed), sound.trace(seed))


def test_a_crash_at_reset_is_an_error_too(policy, make_env):
    class Unlucky(make_env):
        def reset(self, *, seed=None, options=None):
            if seed == 2:
                raise RuntimeError("no such scene")
            return super().reset(seed=seed, options=options)

    rows = run(policy, Unlucky, range(4), num_envs=2).rows
    assert [row["error"] is not None for row in rows] == [False, False, True, False]
    assert rows[2]["steps"] == 0


def test_a_crash_of_the_policy_is_an_error_of_the_episodes_in_the_batch(policy, make_env):
    sample = policy.sample

    def flaky(*args, **kwargs):
        if policy.calls == 4:
            policy.calls += 1
            raise FloatingPointError("out of range")
        return sample(*args, **kwargs)

    policy.sample = flaky
    rows = run(policy, make_env, range(6), num_envs=2, max_steps=20).rows
    crashed = [row for row in rows if row["error"]]
    assert 1 <= len(crashed) <= 2
    assert all("out of range" in row["error"] for row in crashed)
    assert all(row["success"] is not None for row in rows if row not in crashed)


class Faulty:
    """Makes environments of which the seeds in `bad` show something else from step 2 on."""

    def __init__(self, make_env, bad, change):
        self.make_env, self.bad, self.change = make_env, bad, change

    def __call__(self):
        env = self.make_env()
        step = env.step

        def faulty(action):
            raw, *rest = step(action)
            return (self.change(raw) if env.seed in self.bad and env.steps >= 2 else raw), *rest

        env.step = faulty
        return env


BAD = {
    "a missing state": lambda raw: {k: v for k, v in raw.items() if "state" not in k},
    "a longer state": lambda raw: raw | {"observation/state": np.zeros(3, np.float32)},
    "a state of words": lambda raw: raw | {"observation/state": np.array(["a", "b"])},
    "no observation": lambda raw: None,
    "NaN": lambda raw: raw | {"observation/state": np.full(2, np.nan, np.float32)},
    "another picture": lambda raw: raw | {"observation/image": np.zeros((4, 4, 3), np.uint8)},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
@pytest.mark.parametrize("bad", [(1,), (0, 3)], ids=["one", "two"])
def test_a_bad_observation_ends_its_own_episode_only(policy, make_env, same, tap, change, bad):
    """Half of the batch or less: with two of four neither shape is the usual one but by history."""
    prepare = policy.prepare

    def checked(raw):
        if not all(np.isfinite(r["observation/state"]).all() for r in raw):
            raise ValueError("the state is not finite")
        return prepare(raw)

    policy.prepare = checked
    options = {"num_envs": 4, "max_steps": 9, "taps": (tap,), "record_video": range(6)}
    sound = run(policy, make_env, range(6), **options)
    hurt = run(policy, Faulty(make_env, bad, change), range(6), **options)
    assert hurt.crashed == bad
    for seed in set(range(6)) - set(bad):
        same(hurt.trace(seed), sound.trace(seed))
    for seed in bad:
        crash = hurt.trace(seed)
        assert len(crash.chunks) > 0 and crash.success is None
        np.testing.assert_array_equal(crash.chunks, sound.trace(seed).chunks[: len(crash.chunks)])


@pytest.mark.parametrize("where", ["sample", "finish"])
def test_an_inference_that_fails_for_one_episode_ends_that_one(policy, make_env, same, where):
    original, hurt = getattr(policy, where), make_env()
    hurt.reset(seed=2)
    start = hurt.point.astype(np.float32)

    def picky(first, second, **kwargs):
        states = (
            first.state if where == "sample" else np.stack([r["observation/state"] for r in second])
        )
        if (np.asarray(states) == start).all(1).any():
            raise FloatingPointError("out of range")
        return original(first, second, **kwargs)

    sound = run(policy, make_env, range(5), num_envs=4, max_steps=9)
    setattr(policy, where, picky)
    failed = run(policy, make_env, range(5), num_envs=4, max_steps=9)
    assert failed.crashed == (2,) and "out of range" in failed.rows[2]["error"]
    for seed in (0, 1, 3, 4):
        same(failed.trace(seed), sound.trace(seed))


@pytest.mark.parametrize(
    "info",
    [
        {"success": np.array([True, False])},
        {"success": True, "task": object()},
        {"success": False, "error": "it broke"},
    ],
    ids=lambda value: str(value).partition(" object at ")[0],
)
def test_what_an_environment_says_wrongly_ends_its_own_episode_only(policy, make_env, info):
    class Odd(make_env):
        def reset(self, *, seed=None, options=None):
            raw, about = super().reset(seed=seed, options=options)
            return raw, (about | info if seed == 1 else about)

        def step(self, action):
            raw, reward, _, _, about = super().step(action)
            return raw, reward, self.steps == 3, False, about | (info if self.seed == 1 else {})

    assert run(policy, Odd, range(3), num_envs=3).crashed == (1,)


def test_an_environment_may_leave_the_prompt_to_the_robot_and_nest_its_observation(
    policy, make_env, same, monkeypatch
):
    class Nested(make_env):
        def _raw(self):
            raw = super()._raw()
            return {
                "observation": {
                    k.removeprefix("observation/"): v for k, v in raw.items() if k != "prompt"
                }
            }

    preset = dataclasses.replace(policy.preset, default_prompt="go to the middle")
    monkeypatch.setattr(type(policy), "preset", preset)
    trace = run(policy, Nested, [3], record_video=[3]).trace(3)
    assert trace.prompt == "go to the middle" and trace.error is None
    same(
        trace,
        dataclasses.replace(run(policy, make_env, [3], record_video=[3]).trace(3), env_id="Nested"),
    )


def test_a_setup_that_always_crashes_stops_the_run_with_the_cause(policy, make_env):
    for n, told in ((99, 8), (3, 3)):
        match = rf"first {told} episodes all crashed, .*lost its display"
        with pytest.raises(RuntimeError, match=match):
            run(policy, lambda: make_env(crash_on=range(99)), range(n), max_steps=9)


def test_an_environment_without_a_success_label_is_refused(policy, make_env):
    class Silent(make_env):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {"distance": info["distance"]}

    with pytest.raises(RuntimeError, match=r"without info\['success'\]"):
        run(policy, Silent, range(20))


def test_a_tap_that_the_policy_does_not_return_is_named(policy, make_env):
    absent = Tap("vision.resid")
    with pytest.raises(RuntimeError, match=r"returned no \['vision\.resid@all/all/tokens'\]"):
        run(policy, make_env, range(8), taps=(absent,))


def test_repeated_or_negative_seeds_are_refused(policy, make_env):
    for seeds in ([1, 1], [-1], []):
        with pytest.raises(ValueError, match="distinct whole numbers"):
            run(policy, make_env, seeds)


def test_each_episode_is_on_disk_before_the_next_inference(policy, make_env, tmp_path):
    ended, sample, env = set(), policy.sample, make_env()
    step = env.step

    def noted(action):
        raw, reward, terminated, truncated, info = step(action)
        ended.update({env.seed} if terminated or truncated else ())
        return raw, reward, terminated, truncated, info

    def checked(*args, **kwargs):
        stored = {int(file.stem) for file in tmp_path.glob("traces/*.safetensors")}
        assert stored == ended
        return sample(*args, **kwargs)

    env.step, policy.sample = noted, checked
    done = run(policy, lambda: env, range(5), num_envs=1, out=tmp_path)
    assert done.crashed == () and ended == set(range(5))


def test_no_episodes_timing_contains_the_compilation(policy, make_env):
    sample = policy.sample

    def slow_at_first(*args, **kwargs):
        if policy.calls == 0:
            time.sleep(0.5)
        return sample(*args, **kwargs)

    policy.sample = slow_at_first
    trace = run(policy, make_env, [3]).trace(3)
    assert policy.calls == len(trace.chunks) + 1, "one inference more than was recorded"
    assert trace.timings_ms[0] < 500


def test_resume_runs_only_the_missing_seeds(policy, make_env, tmp_path, same):
    run(policy, make_env, range(6), num_envs=2, out=tmp_path / "whole")
    env = make_env()
    sound, after = env.step, []

    def interrupted(action):
        after.append(action)
        if len(after) == 30:
            raise KeyboardInterrupt
        return sound(action)

    env.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(policy, lambda: env, range(6), num_envs=1, out=tmp_path / "run")
    kept = load_run(tmp_path / "run").seeds
    assert 0 < len(kept) < 6

    fresh = make_env()
    resumed = run(policy, lambda: fresh, range(6), num_envs=1, out=tmp_path / "run")
    assert resumed.seeds == tuple(range(6))
    assert not set(kept) & set(fresh.resets)
    whole = load_run(tmp_path / "whole")
    for seed in range(6):
        same(whole.trace(seed), resumed.trace(seed))

    calls = policy.calls
    run(policy, make_env, range(6), num_envs=1, out=tmp_path / "run")
    assert policy.calls == calls


def test_crashed_seeds_run_again_only_when_asked_to(policy, make_env, tmp_path):
    run(policy, lambda: make_env(crash_on=(2,)), range(4), out=tmp_path, max_steps=9)
    again = run(policy, make_env, range(4), out=tmp_path, max_steps=9)
    assert [row["seed"] for row in again.rows if row["error"]] == [2]
    again = run(policy, make_env, range(4), out=tmp_path, max_steps=9, retry_errors=True)
    assert not [row for row in again.rows if row["error"]]
    assert load_run(tmp_path).trace(2).error is None


def test_a_setup_that_always_crashes_claims_no_folder(policy, make_env, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="first 3 episodes all crashed") as crashed:
        run(policy, lambda: make_env(crash_on=range(99)), range(3), out=out, max_steps=9)
    assert "\n" not in str(crashed.value) and "Traceback" in crashed.value.__notes__[0]
    assert not out.exists()
    done = run(policy, make_env, range(3), out=out, max_steps=9, perturbation={"drift": 0.1})
    assert done.seeds == (0, 1, 2)


def test_a_retry_that_is_interrupted_keeps_the_crash_on_record(policy, make_env, tmp_path):
    run(policy, lambda: make_env(crash_on=(2,)), range(4), out=tmp_path, max_steps=9)

    def interrupted(action):
        raise KeyboardInterrupt

    env = make_env()
    env.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(policy, lambda: env, range(4), out=tmp_path, max_steps=9, retry_errors=True)
    assert load_run(tmp_path).crashed == (2,)

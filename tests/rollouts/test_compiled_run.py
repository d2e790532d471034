"""Compiled episodes of the trained board policy, in the run format."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from mistjax.cli import main
from mistjax.hooks.sites import Tap
from mistjax.policies.load import load_policy
from mistjax.rollouts.collect import collect
from mistjax.rollouts.compiled_run import run_compiled
from mistjax.rollouts.plan import BOARD_ENV, EpisodePlan
from mistjax.rollouts.run import load_run

SHIPPED = "checkpoints/board_pi0"
TAP = Tap.parse("action.resid@-1/action/mean")


@pytest.fixture(scope="module")
def policy():
    return load_policy(SHIPPED)


@pytest.fixture(scope="module")
def plan():
    return EpisodePlan(8, 22_500_000, faults="board", compiled=True, num_envs=4, max_steps=40)


@pytest.mark.slow
def test_a_run_holds_what_the_host_loop_records_and_goes_on(policy, plan, tmp_path):
    half = dataclasses.replace(plan, episodes=4)
    collect(policy, tmp_path / "run", half, taps=[TAP])
    stored = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "traces").iterdir()}
    run = collect(policy, tmp_path / "run", plan, taps=[TAP])
    assert all(path.stat().st_mtime_ns == time for path, time in stored.items())
    host = collect(policy, tmp_path / "host", dataclasses.replace(plan, compiled=False), taps=[TAP])
    assert [row["seed"] for row in run.rows] == [row["seed"] for row in host.rows]
    assert run.config["physics"] == "kinematic"
    for seed in plan.seeds():
        mine, other = load_run(tmp_path / "run").trace(seed), host.trace(seed)
        assert {*mine.tensors()} == {*other.tensors()}
        for name, value in mine.tensors().items():
            assert value.shape[1:] == other.tensors()[name].shape[1:], name
            assert value.dtype == other.tensors()[name].dtype, name
        assert len(mine.state) == len(mine.actions) == mine.info["step"]
        for name in ("task", "prompt", "policy_fingerprint"):
            assert getattr(mine, name) == getattr(other, name)
        for name in ("fault", "fault_onset", "fault_strength", "fault_input"):
            assert mine.info[name] == other.info[name]
        # the first look is the same in both worlds, and so is the first chunk
        np.testing.assert_allclose(mine.chunks[0], other.chunks[0], atol=2e-3)
        np.testing.assert_allclose(
            mine.features[str(TAP)][0], other.features[str(TAP)][0], atol=2e-3
        )


@pytest.mark.slow
def test_a_policy_that_reads_its_state_in_the_prompt_sees_what_the_host_shows(tmp_path):
    fast = load_policy("checkpoints/board_fast")
    plan = EpisodePlan(4, 22_500_000, compiled=True, num_envs=4, max_steps=8)
    run = collect(fast, tmp_path / "run", plan)
    host = collect(fast, tmp_path / "host", dataclasses.replace(plan, compiled=False))
    for seed in plan.seeds():
        mine, other = run.trace(seed), host.trace(seed)
        np.testing.assert_array_equal(mine.aux["tokens"][0], other.aux["tokens"][0])
        np.testing.assert_allclose(mine.chunks[0], other.chunks[0], atol=1e-4)


@pytest.mark.slow
def test_records_larger_than_the_memory_are_fetched_more_often(policy, plan):
    seeds = plan.seeds()[:4]
    usual = run_compiled(policy, seeds, plan, progress=False)
    often = run_compiled(policy, seeds, plan, memory=4000, progress=False)
    for seed in seeds:
        np.testing.assert_allclose(usual.trace(seed).actions, often.trace(seed).actions, atol=1e-5)
    with pytest.raises(ValueError, match="one inference of 4 environments records"):
        run_compiled(policy, seeds, plan, memory=10, progress=False)


@pytest.mark.slow
def test_eval_compiled_says_that_its_physics_are_not_mujocos(tmp_path, capsys):
    out = str(tmp_path / "eval")
    command = ["eval", SHIPPED, "--compiled", "--episodes", "4", "--num-envs", "4", "--out", out]
    assert main([*command, "--max-steps", "12"]) == 0
    assert "kinematic physics, not MuJoCo's" in capsys.readouterr().out
    assert "kinematic physics" in (tmp_path / "eval" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"videos": 1}, "videos is 1, but compiled episodes have none"),
        ({"workers": 2}, "workers is 2, but compiled episodes have none"),
        ({"env": "CartPole-v1"}, "compiled is asked for with CartPole-v1: only mistjax/Board-v0"),
        ({"suite": "libero_object"}, "compiled is asked for with libero_object"),
        ({"fsdp": 2}, "fsdp is 2: expected a divisor of devices, 1"),
        ({"devices": 0}, "devices is 0: expected"),
        ({"executor": "ray"}, "workers is 0: compiled episodes that Ray plays need at least 1"),
        ({"physics": "newton"}, "physics is 'newton': expected 'kinematic' or 'mjx'"),
    ],
)
def test_what_no_compiled_run_has_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EpisodePlan(compiled=True, **options)
    assert EpisodePlan(compiled=True).env == BOARD_ENV


def test_devices_are_of_compiled_episodes_and_there():
    with pytest.raises(ValueError, match="devices is 2 and fsdp is 1: only compiled episodes"):
        EpisodePlan(devices=2)
    with pytest.raises(ValueError, match="physics is 'mjx': only compiled episodes"):
        EpisodePlan(physics="mjx")
    plan = EpisodePlan(4, compiled=True, devices=999)
    with pytest.raises(ValueError, match="devices is 999, and JAX sees 2: ask for no more"):
        run_compiled(load_policy(SHIPPED), plan.seeds(), plan, progress=False)


@pytest.mark.slow
def test_the_environment_that_the_page_shows_runs(capsys):
    page = Path("docs/your_environment.md").read_text()
    (source,) = re.findall(r"^```python run\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader's
        exec(compile(source, "docs/your_environment.md", "exec"), {"__name__": "page"})
    reached, _, episodes = capsys.readouterr().out.split()[:3]
    assert 0 <= int(reached) <= int(episodes) == 12

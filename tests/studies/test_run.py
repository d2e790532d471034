"""Studies of the shipped policy: what is refused, what is written, what is not played twice."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mistjax.demo import MIST, POLICY, SHIPPED, shipped_demo
from mistjax.envs.faults.battery import Mixture
from mistjax.policies.load import load_policy
from mistjax.recover.decision import NEVER
from mistjax.rollouts.collect import collect
from mistjax.rollouts.run import load_run
from mistjax.studies.arms import ARMS, Subject, find_arm, make_arm, truth
from mistjax.studies.conditions import CHOSEN, condition
from mistjax.studies.run import TUNING, StudyPlan, run_study

FRONT = Mixture.single("front_frozen", onset=(10, 10))


@pytest.fixture(scope="module")
def subject():
    return Subject(load_policy(POLICY), MIST)


def plan(tmp_path, **options):
    return StudyPlan(
        **{
            "name": "full_mist",
            "out": tmp_path / "study",
            "policy": POLICY,
            "mist": MIST,
            **options,
        }
    )


@pytest.mark.parametrize(
    "options, said",
    [
        ({"name": "half_mist"}, "no study is called"),
        ({"arms": ("bare", "best")}, "no arm is called"),
        ({"arms": ("mist", "bare")}, "expected bare"),
        ({"conditions": ("rain",)}, "no condition is called"),
        ({"first_seed": TUNING - 10}, "overlap"),
        ({"episodes": 0}, "episodes"),
        ({"compiled": True, "videos": 1}, "compiled episodes have none"),
        ({"devices": 2}, "only compiled episodes are spread over devices"),
        ({"tasks": (0,)}, "no LIBERO suite is named"),
        ({"num_envs": 0}, "num_envs"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        plan(tmp_path, **options)


def test_an_arm_that_cannot_be_made_is_known_before_anything_is_played(tmp_path):
    with pytest.raises(ValueError, match="--robust"):
        run_study(plan(tmp_path, arms=("bare", "robust"), conditions=("nominal",)))
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_compiled_arm_is_told_of_each_episode_what_the_host_loop_tells_it(subject, tmp_path):
    faults = condition("mixture").faults
    seeds = [s for s in range(9_000_000, 9_000_060) if truth(s, subject, faults)[0]][:8]
    arm = make_arm("oracle", subject, faults)
    names, runs = arm.spec.inputs, {}
    for compiled in (True, False):
        settings = {
            "num_envs": 3,
            "max_steps": 60,
            "compiled": compiled,
            **condition("mixture").plan,
        }
        runs[compiled] = collect(arm, tmp_path / str(compiled), seeds=seeds, **settings)
    places = set()
    for seed in seeds:
        where, onset = truth(seed, subject, faults)
        here, there = (runs[compiled].trace(seed).aux["repaired"] for compiled in (True, False))
        both = min(len(here), len(there))
        np.testing.assert_array_equal(here[:both], there[:both])
        assert not here[:onset].any()
        if onset < both:
            assert set(np.flatnonzero(here.any(axis=0))) <= {names.index(where)}
            places |= set(np.flatnonzero(here.any(axis=0)))
    assert len(places) > 1  # more than one input was repaired


@pytest.mark.slow
def test_a_compiled_study_says_which_physics_made_it(tmp_path):
    options = {"arms": ("bare", "always_state"), "conditions": ("mixture",)}
    run_study(plan(tmp_path, episodes=4, num_envs=4, compiled=True, **options))
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    assert study["physics"] == "kinematic"
    rows = json.loads((tmp_path / "study" / "table.json").read_text())
    assert [(row["arm"], row["n"]) for row in rows] == [("bare", 4), ("always_state", 4)]


@pytest.mark.slow
def test_a_compiled_study_is_the_same_on_two_devices(tmp_path):
    words = ["study", "full_mist", "--compiled", "--arms", "bare", "monitor"]
    sizes = ["--conditions", "mixture", "--episodes", "8", "--num-envs", "4"]
    tables = []
    for devices in ("1", "2"):
        out = tmp_path / devices
        rest = [*sizes, "--devices", devices, "--out", str(out)]
        flags = "--xla_force_host_platform_device_count=2"
        subprocess.run(
            [sys.executable, "-m", "mistjax.cli", *words, *rest],
            env={**os.environ, "XLA_FLAGS": flags},
            check=True,
        )
        rows = json.loads((out / "table.json").read_text())
        tables.append([(row["arm"], row["n"], row["successes"]) for row in rows])
    assert tables[0] == tables[1]


def test_remedies_are_tuned_on_starts_of_a_suite_that_the_study_does_not_play(tmp_path):
    config = plan(tmp_path, suite="libero_object", episodes=3, sizes={"nominal": 5}, tuning=2)
    nominal = config.plan(condition("nominal"))
    assert (nominal.first_seed, nominal.episodes, config.first_tuning) == (0, 5, 5)
    assert nominal.batch_size == 1


def test_an_oracle_is_told_the_input_and_the_first_inference_that_shows_it(subject):
    assert truth(7, subject, FRONT) == ("front", 3)
    assert truth(7, subject, Mixture()) == (None, NEVER)
    assert truth(7, subject, Mixture.single("push")) == (None, NEVER)
    kept = Mixture.single("instruction_typos")  # by the preparation, in every arm
    assert truth(7, subject, kept) == (None, NEVER)


def test_controls_are_told_other_things_of_the_same_seed(subject):
    names = {arm: find_arm(arm).told(subject, FRONT) for arm in ("wrong_input", "random_input")}
    wrong = [names["wrong_input"](seed)[0] for seed in range(40)]
    drawn = [names["random_input"](seed)[0] for seed in range(40)]
    assert set(wrong) == {"wrist", "state"}
    assert set(drawn) == {"front", "wrist", "state"}
    assert wrong == [names["wrong_input"](seed)[0] for seed in range(40)]
    late = find_arm("random_time").told(subject, FRONT)
    assert {late(seed)[0] for seed in range(40)} == {"front"}
    assert len({late(seed)[1] for seed in range(40)}) > 5


def test_an_arm_is_idle_where_nothing_can_make_it_act(subject):
    def idle(arm, faults, alarmed):
        return find_arm(arm).idle(subject, faults, 3, alarmed)

    assert [idle("mist", FRONT, alarmed) for alarmed in (True, False)] == [False, True]
    assert [idle("oracle", faults, False) for faults in (FRONT, Mixture())] == [False, True]
    assert idle("oracle_input", Mixture(), True)
    assert not idle("always_all", Mixture(), False)
    assert not idle("bare", Mixture(), False)


def test_every_arm_can_be_made_of_what_is_shipped(subject):
    """The state of LIBERO's alone is reckoned by sight."""
    libero = Subject(load_policy(SHIPPED / "libero_pi0"), SHIPPED / "libero_mist")
    for name in ARMS:
        if not ARMS[name].robust:
            policy = make_arm(name, libero if name == "commands_only" else subject, FRONT)
            assert policy.spec.fingerprint
            assert ARMS[name].says


def test_every_condition_has_faults_that_a_plan_plays():
    for name in ("nominal", "mixture", "unseen_kinds", *CHOSEN, "state_scaled_0.5"):
        found = condition(name)
        assert plan_of(found).mixture() == found.faults


def test_a_fault_is_played_at_the_strength_that_its_condition_names():
    for name, strength in (("wrist_dimmed", 0.8), ("wrist_dimmed_0.6", 0.6), ("push_1", 1.0)):
        assert condition(name).name == name
        (part,) = condition(name).faults.parts
        assert name.startswith(part.name) and part.strengths == (strength,)
    for wrong in ("wrist_dimmed_2", "wrist_dimmed_nan"):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            condition(wrong)


@pytest.mark.parametrize("name", ["wrist_frozen", "mixture", "nominal", "a file"])
def test_conditions_are_played_with_or_without_sensor_noise(name, tmp_path):
    """A mixture in a file keeps its own, unless told otherwise."""
    noisy = True
    if name == "a file":
        noisy, path = False, tmp_path / "mine.json"
        faults = Mixture.single("push", sensor_noise=False)
        path.write_text(json.dumps(faults.to_json()))
        name = str(path)
    for asked, played in ((None, noisy), (True, True), (False, False)):
        found = condition(name, asked)
        assert found.faults.sensor_noise is played and found.name == condition(name).name
        plays = plan_of(found).mixture()
        assert plays == found.faults or (name == "nominal" and not played and plays is None)
    quiet = plan(tmp_path, conditions=(name,), sensor_noise=False)
    assert not quiet.plan(quiet.condition(name)).sensor_noise


def plan_of(found):
    from mistjax.rollouts.plan import EpisodePlan

    return EpisodePlan(episodes=1, **found.plan)


@pytest.mark.slow
def test_a_study_writes_its_table_and_goes_on_where_it_was(tmp_path):
    small = plan(
        tmp_path,
        episodes=3,
        first_seed=5_000_000,
        num_envs=3,
        arms=("bare", "monitor", "mist", "oracle"),
        conditions=("mixture", "nominal"),
    )
    found = run_study(small)
    table = json.loads((small.out / "table.json").read_text())
    assert [(row["condition"], row["arm"]) for row in table] == [
        (where, arm) for where in ("mixture", "nominal") for arm in small.arms
    ]
    assert all(row["n"] == 3 for row in table)
    written = {p: p.stat().st_mtime_ns for p in small.out.rglob("*.safetensors")}
    again = run_study(small)
    assert again.rows == found.rows
    assert written == {p: p.stat().st_mtime_ns for p in small.out.rglob("*.safetensors")}
    runs = {arm: load_run(small.out / "mixture" / arm) for arm in small.arms}
    for seed in runs["bare"].seeds:
        bare, watched = runs["bare"].trace(seed), runs["monitor"].trace(seed)
        assert np.array_equal(bare.actions, watched.actions)


@pytest.mark.slow
def test_an_episode_that_is_not_played_again_would_have_been_the_same(tmp_path, subject):
    options = {"episodes": 4, "first_seed": 22_900_000, "num_envs": 4, "conditions": ("mixture",)}
    shared = plan(tmp_path, arms=("bare", "monitor", "mist"), **options)
    alone = dataclasses.replace(shared, arms=("bare", "mist"), out=tmp_path / "alone")
    rows = [{row.arm: row for row in run_study(p).rows}["mist"] for p in (shared, alone)]
    assert rows[0].successes == rows[1].successes
    played = [set(load_run(p.out / "mixture" / "mist").seeds) for p in (shared, alone)]
    assert played[0] < played[1]
    for seed in played[1] - played[0]:
        there = load_run(alone.out / "mixture" / "mist").trace(seed)
        bare = load_run(alone.out / "mixture" / "bare").trace(seed)
        assert np.array_equal(there.actions, bare.actions)


@pytest.mark.slow
def test_the_demo_shows_what_was_repaired(tmp_path):
    found = run_study(dataclasses.replace(shipped_demo(tmp_path, 3), videos=3, num_envs=3))
    assert [row.arm for row in found.rows] == list(shipped_demo(tmp_path).arms)
    page = (tmp_path / "report.html").read_text()
    assert "What was named, and what stood in for it" in page
    assert "Unsound: camera" in page
    assert page.count("data:video/mp4") == 12

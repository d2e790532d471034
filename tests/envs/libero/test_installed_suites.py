"""All 130 installed tasks are read as LIBERO reads them, and can be perturbed."""

import numpy as np
import pytest

from mistjax.envs.libero import installation
from mistjax.envs.libero.bddl import Problem
from mistjax.envs.libero.paraphrases import paraphrase
from mistjax.envs.libero.perturbations import PERTURBATIONS, perturb
from mistjax.envs.libero.suites import SUITES, suite

try:
    installation.package()
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs LIBERO")


def every_task():
    return [task for name in SUITES for task in suite(name)]


def test_suites_have_their_tasks_in_the_published_order():
    assert [len(suite(name)) for name in SUITES] == [10, 10, 10, 10, 90]
    assert suite("libero_object")[1].prompt == "pick up the cream cheese and place it in the basket"
    assert suite("libero_10")[2].prompt == "turn on the stove and put the moka pot on it"
    with pytest.raises(ValueError, match="unknown suite 'libero_100'"):
        suite("libero_100")


def test_every_task_survives_writing_and_reading():
    assert all(Problem.parse(t.problem.text()) == t.problem for t in every_task())


@pytest.mark.slow
def test_libero_reads_the_same_in_its_files_and_in_ours(tmp_path):
    installation.load()
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    ours = tmp_path / "ours.bddl"
    for task in every_task():
        theirs = installation.package() / "bddl_files" / task.suite / f"{task.name}.bddl"
        ours.write_text(task.problem.text())
        assert robosuite_parse_problem(str(ours)) == robosuite_parse_problem(str(theirs))


@pytest.mark.parametrize("name", ["libero_object", "libero_goal"])
def test_every_task_has_fifty_fixed_starts_for_its_scene(name):
    for task in suite(name):
        states = task.init_states()
        assert states.shape[0] == 50 and np.isfinite(states).all()
        movable = len(task.problem.objects)
        assert states.shape[1] >= 1 + 9 + 9 + 13 * movable  # time, robot, free bodies


def test_every_instruction_has_three_paraphrases():
    for prompt in {task.prompt for task in every_task()}:
        assert len({prompt, *(paraphrase(prompt, variant) for variant in range(3))}) == 4


COVERED = {
    ("object", "tint"): 116,
    ("object", "category"): 50,
    ("position", "shift"): 105,
    ("position", "swap"): 105,
    ("semantic", "paraphrase"): 130,
    ("task", "goal"): 129,
    ("task", "target"): 100,
    ("environment", "style"): 130,
    ("environment", "workspace"): 130,
}


@pytest.mark.parametrize(("name", "kind"), COVERED)
def test_each_perturbation_applies_to_most_tasks_and_changes_them(name, kind):
    done = 0
    for task in every_task():
        try:
            change = perturb(task, {name: kind}, np.random.default_rng(0), suite(task.suite))
        except ValueError:
            continue
        done += 1
        assert Problem.parse(change.problem.text()) == change.problem
        changed = change.problem != task.problem or change.prompt != task.prompt
        assert changed or change.style or change.tints
    assert done >= COVERED[name, kind]
    assert kind in PERTURBATIONS[name].kinds

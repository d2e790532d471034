"""Each perturbation changes what it says, all else stays, and 0 changes nothing."""

import dataclasses

import numpy as np
import pytest

from mistjax.envs.libero.bddl import Problem
from mistjax.envs.libero.changes import Change, renamed
from mistjax.envs.libero.paraphrases import paraphrase
from mistjax.envs.libero.perturbations import PERTURBATIONS, perturb

EVERY = [(name, kind) for name, p in PERTURBATIONS.items() for kind in p.kinds]


def changed(task, requested, seed=0, suite=()):
    return perturb(task, requested, np.random.default_rng(seed), suite)


def differing(task, change):
    """What differs from the task: fields of the problem, and of the change."""
    new, old = change.problem, task.problem
    names = {
        f.name for f in dataclasses.fields(Problem) if getattr(new, f.name) != getattr(old, f.name)
    }
    names |= {"prompt"} if change.prompt != task.prompt else set()
    return names | {name for name in ("style", "tints", "scene_changed") if getattr(change, name)}


CHANGES = {
    ("object", "tint"): {"tints"},
    ("object", "category"): {"objects", "scene_changed"},
    ("position", "shift"): {"regions", "scene_changed"},
    ("position", "swap"): {"init", "scene_changed"},
    ("semantic", "paraphrase"): {"prompt"},
    ("semantic", "0"): {"prompt"},
    ("semantic", "1"): {"prompt"},
    ("semantic", "2"): {"prompt"},
    ("task", "goal"): {"goal", "interest", "language", "prompt"},
    ("task", "target"): {"goal", "interest", "language", "prompt"},
    ("environment", "style"): {"style"},
    ("environment", "workspace"): {"kind", "fixtures", "regions", "init", "scene_changed"},
}


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_each_kind_changes_what_it_says_and_nothing_else(task, name, kind):
    for seed in range(5):
        change = changed(task, {name: kind}, seed)
        assert differing(task, change) == CHANGES[name, kind]
        assert Problem.parse(change.problem.text()) == change.problem


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_strength_zero_changes_nothing(task, name):
    assert changed(task, {name: 0.0}) == Change(task.problem, task.prompt)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_number_takes_the_first_kind(task, name):
    first = next(iter(PERTURBATIONS[name].kinds))
    assert changed(task, {name: 1.0}) == changed(task, {name: first})


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_the_same_seed_gives_the_same_change(task, name, kind):
    assert changed(task, {name: kind}, 3) == changed(task, {name: kind}, 3)


def test_one_perturbation_draws_the_same_whatever_follows_it(task):
    alone = changed(task, {"position": 1.0})
    both = changed(task, {"position": 1.0, "semantic": "paraphrase"})
    assert alone.problem == both.problem and both.prompt != task.prompt


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_a_shift_is_as_long_as_its_strength_says(task, strength):
    new = changed(task, {"position": strength}).problem.region("floor_left_region").boxes[0]
    old = task.problem.region("floor_left_region").boxes[0]
    moved = np.subtract(new, old)
    assert np.hypot(moved[0], moved[1]) == pytest.approx(0.12 * strength)
    assert moved[:2] == pytest.approx(moved[2:])


def test_a_full_shift_keeps_its_distance_from_the_other_things(task):
    for seed in range(20):
        problem = changed(task, {"position": 1.0}, seed).problem
        centres = [np.mean(np.reshape(r.boxes[0], (2, 2)), 0) for r in problem.regions if r.boxes]
        me = centres.pop(1)
        assert min(np.linalg.norm(me - other) for other in centres) > 0.11


def test_a_swap_exchanges_two_starts_and_never_the_basket(task):
    for seed in range(20):
        init = dict(fact[1:] for fact in changed(task, {"position": "swap"}, seed).problem.init)
        assert init["basket_1"] == "floor_bin_region"
        assert init["alphabet_soup_1"] in ("floor_right_region", "floor_near_region")
        assert sorted(init.values()) == sorted(fact[2] for fact in task.problem.init)


def test_another_category_is_a_relative_that_is_not_there_yet(task):
    change = changed(task, {"object": "category"})
    assert change.problem.category("alphabet_soup_1") == "tomato_sauce"
    crowded = dataclasses.replace(
        task.problem, objects=(*task.problem.objects, ("tomato_sauce_1", "tomato_sauce"))
    )
    with pytest.raises(ValueError, match="no relative"):
        changed(dataclasses.replace(task, problem=crowded), {"object": "category"})


def test_another_target_is_asked_for_in_words_and_in_the_goal(task):
    change = changed(task, {"task": "target"})
    (fact,) = change.problem.goal
    assert fact[1] in ("butter_1", "milk_1") and fact[2] == "basket_1_contain_region"
    assert change.prompt == "pick up the butter and place it in the basket"


def test_another_goal_comes_from_a_task_with_the_same_scene(task):
    problem = dataclasses.replace(
        task.problem, goal=(("On", "milk_1", "floor_near_region"),), language="x"
    )
    other = dataclasses.replace(task, prompt="leave the milk alone", problem=problem)
    elsewhere = dataclasses.replace(other, problem=dataclasses.replace(problem, init=()))
    change = changed(task, {"task": "goal"}, suite=(elsewhere, task, other))
    assert change.prompt == "leave the milk alone" and change.problem.goal == problem.goal
    assert change.problem.init == task.problem.init


def test_a_workspace_is_exchanged_everywhere_it_is_named(task):
    change = changed(task, {"environment": "workspace"})
    text = change.problem.text()
    assert "floor" not in text.lower()
    assert {fact[2] for fact in change.problem.init} <= {
        r.full_name for r in change.problem.regions
    }


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"weather": 1.0}, "unknown perturbation 'weather'"),
        ({"object": "size"}, "unknown kind 'size' of 'object'"),
        ({"position": 1.5}, "strength of 'position' is 1.5"),
        ({"position": -0.1}, "expected 0 to 1"),
        ({"semantic": "3"}, "unknown kind '3'"),
    ],
)
def test_a_wrong_request_is_refused(task, requested, message):
    with pytest.raises(ValueError, match=message):
        changed(task, requested)


def test_a_task_that_moves_nothing_has_no_object_to_change(task):
    goal = (("Open", "cabinet_1_top_region"),)
    still = dataclasses.replace(task, problem=dataclasses.replace(task.problem, goal=goal))
    for requested in ({"object": 1.0}, {"position": 1.0}, {"task": "target"}):
        with pytest.raises(ValueError, match="moves no object"):
            changed(still, requested)


@pytest.mark.parametrize(
    ("prompt", "old", "new", "expected"),
    [
        (
            "pick up the black bowl next to the plate and place it on the plate",
            "akita_black_bowl",
            "cookies",
            "pick up the cookie box and place it on the plate",
        ),
        ("put the bowl on the stove", "akita_black_bowl", "plate", "put the plate on the stove"),
        (
            "put the white mug on the left plate",
            "porcelain_mug",
            "red_coffee_mug",
            "put the red mug on the left plate",
        ),
    ],
)
def test_an_instruction_is_renamed_as_libero_would_say_it(prompt, old, new, expected):
    assert renamed(prompt, old, new) == expected


def test_an_instruction_that_does_not_name_the_object_cannot_be_renamed():
    with pytest.raises(ValueError, match="does not name"):
        renamed("turn on the stove", "plate", "butter")


def test_paraphrases_keep_nouns_and_places():
    prompt = "put both the cream cheese box and the butter in the basket"
    for variant in range(3):
        words = paraphrase(prompt, variant)
        assert words != prompt
        assert words.endswith(" both the cream cheese box and the butter in the basket")
    with pytest.raises(ValueError, match="cannot paraphrase"):
        paraphrase("wave", 0)
    with pytest.raises(ValueError, match="expected 0 to 2"):
        paraphrase(prompt, 3)

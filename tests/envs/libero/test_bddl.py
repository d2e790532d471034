"""A task file is read completely or refused, and written back to the same task."""

import pytest

from mistjax.envs.libero.bddl import Problem, Region


def test_a_task_file_is_read_completely(bddl):
    problem = Problem.parse(bddl)
    assert problem.kind == "LIBERO_Floor_Manipulation"
    assert problem.language == "Pick the alphabet soup and place it in the basket"
    assert problem.regions[1] == Region(
        "left_region", "floor", ((-0.15, -0.27, -0.10, -0.22),), (0.0, 1.5)
    )
    assert problem.regions[-1] == Region("contain_region", "basket_1")
    assert problem.fixtures == (("floor", "floor"),)
    assert problem.objects[-2:] == (("butter_1", "butter"), ("milk_1", "butter"))
    assert problem.interest == ("alphabet_soup_1", "basket_1")
    assert problem.init[0] == ("On", "alphabet_soup_1", "floor_left_region")
    assert problem.goal == (("In", "alphabet_soup_1", "basket_1_contain_region"),)


def test_writing_and_reading_gives_the_same_task(bddl):
    problem = Problem.parse(bddl)
    assert Problem.parse(problem.text()) == problem


def test_a_category_stands_on_one_line_since_libero_forgets_the_others(bddl):
    split = bddl.replace(
        "butter_1 milk_1 - butter", "butter_1 - butter\n box_1 - box\n milk_1 - butter"
    )
    problem = Problem.parse(split)
    assert problem.objects[-3:] == (("butter_1", "butter"), ("milk_1", "butter"), ("box_1", "box"))
    assert problem.text().count("- butter") == 1


def test_names_and_categories_are_found_by_name(bddl):
    problem = Problem.parse(bddl)
    assert problem.category("milk_1") == "butter" and problem.category("floor") == "floor"
    assert problem.region("floor_near_region").name == "near_region"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("((0.0 1.5))", "((0.0 __import__('os').getpid))", "not a number"),
        ("((0.0 1.5))", "((0.0 nan))", "not a number"),
        ("((0.0 1.5))", "((0.0 pi))", "LIBERO would evaluate it as code"),
        (
            "(:domain robosuite)",
            "(:domain robosuite) (:perturbation_config x)",
            "perturbation_config",
        ),
        ("(:fixtures floor - floor)", "", r"no sections \['fixtures'\]"),
        ("(And (In", "(Or (In", "LIBERO checks only `And`"),
        ("(On butter_1 floor", "(Beside butter_1 floor", "unknown predicate 'Beside'"),
        ("LIBERO_Floor_Manipulation", "My_Floor", "unknown problem 'My_Floor'"),
        ("(-0.01 0.25 0.01 0.27)", "(0.01 0.25 -0.01 0.27)", "expected low x"),
        ("(:target basket_1)", "(:colour red)", "region 'contain_region'"),
        ("butter_1 milk_1 - butter", "butter_1 milk_1", "have no category"),
        ("(:domain robosuite)", "(:domain robosuite))", "one parenthesis too many"),
        ("(define", "((define", "open parentheses"),
        ("(define", "(deny", "not a BDDL problem"),
        ("(:domain robosuite)", "(:domain robosuite) (:domain x)", "section 'domain' twice"),
        ("(:domain robosuite)", "()", "not a named group in parentheses"),
        ("alphabet_soup_1 - alphabet_soup", "(a) - b", "objects has parentheses"),
        ("(:ranges ((-0.01 0.25 0.01 0.27)))", "(:ranges -0.01)", "not a list of groups"),
        ("(:target basket_1)", "(:target basket_1) (:target floor)", "an attribute twice"),
        ("(And (In", "(And (In (In", "fact has parentheses|open parentheses"),
        ("(:domain robosuite)", "(" * 100_000, "more than 16 deep"),
    ],
)
def test_what_a_scene_would_ignore_run_or_misread_is_refused(bddl, old, new, message):
    assert old in bddl
    with pytest.raises(ValueError, match=message):
        Problem.parse(bddl.replace(old, new))

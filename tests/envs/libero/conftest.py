"""A LIBERO task written out, so that most tests here need no LIBERO."""

import importlib.util

import pytest

from mistjax.envs.libero.bddl import Problem
from mistjax.envs.libero.suites import Task

TEXT = """
; two cans, a box and a basket
(define (problem LIBERO_Floor_Manipulation)
  (:domain robosuite)
  (:language Pick the alphabet soup and place it in the basket)
  (:regions
    (bin_region (:target floor) (:ranges ((-0.01 0.25 0.01 0.27))))
    (left_region (:target floor) (:ranges ((-0.15 -0.27 -0.10 -0.22))) (:yaw_rotation ((0.0 1.5))))
    (right_region (:target floor) (:ranges ((0.03 -0.13 0.08 -0.08))))
    (near_region (:target floor) (:ranges ((0.13 0.03 0.18 0.08))))
    (contain_region (:target basket_1))
  )
  (:fixtures floor - floor)
  (:objects
    alphabet_soup_1 - alphabet_soup
    basket_1 - basket
    butter_1 milk_1 - butter
  )
  (:obj_of_interest alphabet_soup_1 basket_1)
  (:init
    (On alphabet_soup_1 floor_left_region)
    (On butter_1 floor_right_region)
    (On milk_1 floor_near_region)
    (On basket_1 floor_bin_region)
  )
  (:goal (And (In alphabet_soup_1 basket_1_contain_region)))
)
"""


@pytest.fixture(scope="session")
def bddl() -> str:
    return TEXT


@pytest.fixture(scope="session")
def task() -> Task:
    prompt = "pick up the alphabet soup and place it in the basket"
    return Task("libero_object", "soup", prompt, Problem.parse(TEXT), None, 280)


@pytest.fixture
def no_libero(monkeypatch):
    """LIBERO's packages cannot be found."""
    find = importlib.util.find_spec
    absent = ("libero", "robosuite", "bddl")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in absent else find(name, *a)
    )

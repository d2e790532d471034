"""Folders in LIBERO-PRO's layout become tasks; what does not fit is named."""

import pickle
import zipfile

import numpy as np
import pytest

from mistjax.envs.libero.suites import prompt_of, published


@pytest.fixture
def folders(tmp_path, bddl):
    tasks, states = tmp_path / "libero_object_swap", tmp_path / "init"
    tasks.mkdir()
    states.mkdir()
    (tasks / "b_task.bddl").write_text(bddl)
    (tasks / "a_task.bddl").write_text(bddl.replace("Pick the", "Grab the"))
    with zipfile.ZipFile(states / "b_task.pruned_init", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(np.zeros((2, 5)), 2))
    return tasks, states


def test_tasks_come_in_the_order_of_their_names_with_their_own_prompt(folders):
    first, second = published(*folders)
    assert (first.name, second.name) == ("a_task", "b_task")
    assert first.prompt == "Grab the alphabet soup and place it in the basket"
    assert first.suite == "libero_object_swap" and first.max_steps == 280


def test_start_states_are_found_by_name_or_drawn(folders):
    first, second = published(*folders)
    assert first.init_states() is None and second.init_states().shape == (2, 5)
    assert published(folders[0])[1].init_file is None


def test_a_bad_file_is_named(folders):
    (folders[0] / "c.bddl").write_text("(define (problem x))")
    with pytest.raises(ValueError, match=r"c\.bddl"):
        published(*folders)


def test_a_folder_without_tasks_or_step_limit_is_refused(tmp_path, folders):
    with pytest.raises(FileNotFoundError, match=r"no \.bddl files"):
        published(tmp_path)
    other = folders[0].rename(tmp_path / "my_suite")
    with pytest.raises(ValueError, match="has no step limit to go by"):
        published(other)
    assert published(other, max_steps=5)[0].max_steps == 5


def test_prompts_are_what_file_names_say():
    assert (
        prompt_of("open_the_middle_drawer_of_the_cabinet")
        == "open the middle drawer of the cabinet"
    )
    assert prompt_of("KITCHEN_SCENE10_close_the_top_drawer") == "close the top drawer"
    assert prompt_of("LIVING_ROOM_SCENE5_put_the_red_mug_down") == "put the red mug down"

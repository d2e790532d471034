"""A policy comes from a checkpoint or from a function, as docs/your_policy.md says."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.policies import BOARD, FastPolicy, Policy, families, load_policy
from mistjax.policies.load import read_policy
from mistjax.rollouts.run import load_run

PAGE = (Path(__file__).parents[2] / "docs" / "your_policy.md").read_text()
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
TAP = "vlm.resid@-1/all/mean"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The page's module and its entry point, as an installed package has them."""
    folder = tmp_path / "site"
    (folder / "my_robot-1.0.dist-info").mkdir(parents=True)
    (folder / "my_robot.py").write_text(BLOCKS["my_robot"] + BLOCKS["family"])
    meta = {"METADATA": "Name: my_robot\nVersion: 1.0\n"}
    meta["entry_points.txt"] = "[mistjax.policies]\nmy_robot = my_robot:FAMILY\n"
    for name, text in meta.items():
        (folder / "my_robot-1.0.dist-info" / name).write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    yield
    sys.modules.pop("my_robot", None)


def test_a_policy_of_ones_own_runs_from_the_command_line(installed, tmp_path, lacking, capsys):
    policy = load_policy("my_robot:make_policy")
    assert isinstance(policy, Policy) and not lacking(policy, Policy)
    out = tmp_path / "run"
    arguments = ["--episodes", "1", "--num-envs", "1", "--max-steps", "8", "--taps", TAP]
    assert main(["collect", "my_robot:make_policy", "--out", str(out), *arguments]) == 0
    assert load_run(out).trace(0).features[TAP].shape[-1] == 32


def test_a_family_of_another_package_is_found_by_its_entry_point(installed, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "my_robot"}))
    assert load_policy(tmp_path).spec.name == "my_robot"


def test_an_entry_point_that_is_no_family_is_named(installed, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "my_robot"}))
    monkeypatch.setattr(importlib.import_module("my_robot"), "FAMILY", 3)
    with pytest.raises(ValueError, match=r"my_robot:FAMILY.* is not a `mistjax.policies.Family`"):
        load_policy(tmp_path)


def test_the_librarys_own_families_know_their_checkpoints():
    policy = load_policy(SHIPPED / "board_fast")
    assert isinstance(policy, FastPolicy) and policy.preset.name == "board_fast"


def test_a_checkpoint_of_no_family_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config.json.*pi0 and pi0.5"):
        read_policy(tmp_path, BOARD)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="a Hugging Face model of type 'llama', not a policy"):
        read_policy(tmp_path, BOARD)
    (tmp_path / "config.json").write_text(json.dumps({"width": 3}))
    with pytest.raises(ValueError, match=r"holds none of .*OpenVLA.* entry point group"):
        read_policy(tmp_path, BOARD)


@pytest.mark.parametrize(("source", "said"), [
    ("no_such_module:make", "No module named"),
    ("my_robot:no_such_function", "has no function 'no_such_function'"),
    ("my_robot:DEPTH", "has no function 'DEPTH'"),
    ("my_robot:Network", "made a Network, which is not a policy"),
])  # fmt: skip
def test_a_function_that_makes_no_policy_is_refused(source, said, installed, tmp_path, capsys):
    assert main(["collect", source, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_a_function_chooses_its_own_robot(installed):
    with pytest.raises(ValueError, match="chooses its own robot"):
        load_policy("my_robot:make_policy", "board")

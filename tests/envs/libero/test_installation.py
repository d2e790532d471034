"""What is missing is said in one error that says how to get it."""

import tarfile

import gymnasium as gym
import pytest

import mistjax.envs  # noqa: F401 (registers the environments)
from mistjax.envs.libero import installation
from mistjax.envs.libero.installation import find_assets, package, unpack
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
    monkeypatch.setattr(installation, "BESIDE", tmp_path / "beside")


def test_without_libero_the_error_says_make_libero(no_libero):
    for use in (package, lambda: suite("libero_goal"), lambda: gym.make("mistjax/Libero-v0")):
        with pytest.raises(ImportError, match=r"LIBERO needs libero, robosuite, bddl.*make libero"):
            use()


def test_assets_are_looked_for_in_order(nowhere, tmp_path, monkeypatch):
    places = ["beside/assets", "cache", "package/assets"]
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
    with pytest.raises(FileNotFoundError, match="hf download"):
        find_assets()


def test_an_archive_is_unpacked_whatever_its_top_folder(tmp_path, nowhere):
    asset_folder(tmp_path / "some_pack")
    archive = tmp_path / "assets.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tmp_path / "some_pack", "some_pack")
    assert find_assets(unpack(archive, tmp_path / "out" / "assets"))
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(__file__, "other.py")
    with pytest.raises(ValueError, match=r"holds no scenes"):
        unpack(archive, tmp_path / "again")
    assert not (tmp_path / "again").exists()

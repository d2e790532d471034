"""What is built from the repository, and that it works where only that is installed."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    return Path(next(SdistBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


def test_a_wheel_holds_the_package_and_nothing_beside_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "interop",
        "mistjax",
        "mistjax-0.1.0.dist-info",
    }
    inside = {name.removeprefix("mistjax/") for name in names}
    assert {"py.typed", "citations.bib", "report/page.css"} <= inside
    assert {"checkpoints/board_pi0/config.json", "checkpoints/board_mist/remedy.json"} <= inside
    packages = ROOT / "mistjax", ROOT / "interop"
    sources = {path.relative_to(ROOT) for package in packages for path in package.rglob("*.py")}
    assert {str(path) for path in sources} <= set(names)
    assert not [name for name in names if "test" in name.lower() or "experiment" in name]


def test_a_source_distribution_holds_what_the_wheel_is_built_from(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "mistjax/py.typed"} <= names
    assert {"interop/openvla/policy.py", "checkpoints/board_pi0/config.json"} <= names
    assert not [name for name in names if name.startswith(("tests", "experiments"))]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_an_installation_plays_the_demo_in_an_empty_folder(kind, request, tmp_path):
    """Its dependencies come from the environment of the tests; mistjax itself does not."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall", "--quiet"]
    run(str(python), "-m", "pip", "install", *offline, str(request.getfixturevalue(kind)))
    where = run(str(python), "-c", "import mistjax.demo as d; print(d.__file__, d.SHIPPED)")
    assert all(path.startswith(str(packages)) for path in where.split())
    command = str(tmp_path / "venv" / "bin" / "mistjax")
    assert "train-detector" in run(command, "--help")
    said = run(command, "demo", "--episodes", "2", "--out", "out")
    assert "mist" in said and (tmp_path / "out" / "report.html").stat().st_size > 100_000

"""What works on this machine, and the command that fixes what does not.

Whatever may crash, hang or ask a question (drivers, GL contexts, optional packages) is tried in a
process of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import jax

TIMEOUT_SECONDS = 120
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

# What it is needed for, and what must import. "base" is a plain installation.
PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "base": (
        "everything",
        ("flax", "optax", "orbax.checkpoint", "mujoco", "gymnasium", "av", "pyarrow", "sklearn"),
    ),
    "openvla": ("OpenVLA policies", ("torch", "transformers")),
    "libero": ("LIBERO environments", ("robosuite", "bddl", "libero", "cv2", "numba")),
    "ray": ("episodes on Ray workers", ("ray",)),
    "download": ("published checkpoints", ("filelock", "gcsfs", "huggingface_hub")),
}
# What LIBERO's numbers depend on; other versions build other scenes, or none.
LIBERO_PINS = ("hf-libero", "robosuite", "bddl", "mujoco", "numba", "opencv-python-headless")
ASKED = (*PARTS, "gl")
PIP = f"{sys.executable} -m pip install -c constraints.txt -e"
PART_FIXES = {"base": f"{PIP} .", "libero": "make libero"}

GL_FIXES = {
    "egl": "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0",
    "osmesa": "apt-get install -y libosmesa6",
}
GL_TRIAL = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 2'/><geom size='.3'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().any(), "the picture is black"
renderer.close()
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        what: the thing that was tried.
        purpose: what needs it.
        works: whether it does.
        found: version or devices; the last line of the error if it does not work.
        fix: the command that makes it work; "" if it works.
        part: which of `ASKED` it belongs to; "" if it only affects how numbers compare.
    """

    what: str
    purpose: str
    works: bool
    found: str
    fix: str = ""
    part: str = ""


def attempt(code: str, **environment: str) -> str | None:
    """Runs Python code in a process of its own: None, or the last line of its error."""
    try:
        process = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_SECONDS} s"
    if process.returncode == 0:
        return None
    lines = process.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with code {process.returncode}"


def check_jax() -> Finding:
    """The backend that JAX chose, and whether it leaves an NVIDIA GPU unused."""
    what, purpose, fix = f"jax {jax.__version__}", "everything", f"{PIP} '.[cuda12]'"
    try:
        devices = jax.devices()
    except RuntimeError as error:
        return Finding(what, purpose, False, str(error).splitlines()[0], fix, "base")
    kinds = sorted({device.device_kind for device in devices})
    found = f"{len(devices)} x {', '.join(kinds)}"
    if devices[0].platform == "cpu" and NVIDIA_DRIVER.exists():
        return Finding(what, "speed", False, f"{found}, and an NVIDIA GPU that JAX ignores", fix)
    return Finding(what, purpose, True, found)


def pins(constraints: Path | None = None) -> dict[str, str]:
    """Tested versions by distribution name; {} where the file does not come with the package."""
    path = constraints or Path(__file__).parents[1] / "constraints.txt"
    if not path.exists():
        return {}
    lines = [line.split("==") for line in path.read_text().splitlines() if "==" in line]
    return {name.strip(): version.strip() for name, version in lines}


def check_pins(tested: Mapping[str, str]) -> Finding:
    """Whether installed packages have the tested versions."""
    differ = []
    for name, version in tested.items():
        try:
            installed = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
        if installed != version:
            differ.append(f"{name} {installed} (tested: {version})")
    return Finding(
        "pinned versions",
        "the numbers in the documentation",
        works=not differ,
        found=", ".join(differ) or "as tested",
        fix=f"{PIP} ." if differ else "",
    )


def check_libero_pins(tested: Mapping[str, str]) -> Finding:
    """Whether the packages that LIBERO's scenes depend on have the tested versions."""
    differ = []
    for name in LIBERO_PINS:
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "is missing"
        if installed != tested.get(name, installed) or installed == "is missing":
            differ.append(f"{name} {installed} (tested: {tested.get(name, 'unknown')})")
    return Finding(
        "libero's pins",
        "LIBERO environments",
        works=not differ,
        found=", ".join(differ) or "as tested",
        fix="make libero" if differ else "",
    )


def check_libero_assets() -> Finding:
    """Whether LIBERO's meshes and textures are found, all parts of them."""
    from mistjax.envs.libero.installation import GET_ASSETS, find_assets

    what, purpose = "libero's assets", "LIBERO environments"
    try:
        folder = find_assets()
    except ImportError as error:
        return Finding(what, purpose, False, str(error), "make libero", "libero")
    except FileNotFoundError as error:
        return Finding(what, purpose, False, str(error).splitlines()[0], GET_ASSETS, "libero")
    return Finding(what, purpose, True, str(folder))


def check_gl(backend: str) -> Finding:
    """Whether MuJoCo's own renderer makes a picture without a screen."""
    error = attempt(GL_TRIAL, MUJOCO_GL=backend)
    return Finding(
        f"MUJOCO_GL={backend}",
        'LIBERO, and the board with render="gl"; the default needs none',
        works=error is None,
        found=error or "renders",
        fix="" if error is None else GL_FIXES[backend],
        part="gl",
    )


def check_part(part: str) -> Finding:
    """Whether the packages of the base or of an extra can be imported."""
    purpose, modules = PARTS[part]
    error = attempt("import " + ", ".join(modules))
    fix = PART_FIXES.get(part, f"{PIP} '.[{part}]'")
    return Finding(
        part if part == "base" else f"extra {part}",
        purpose,
        works=error is None,
        found=error or ", ".join(modules),
        fix="" if error is None else fix,
        part=part,
    )


def examine() -> list[Finding]:
    """All findings; takes some seconds, most of them for importing PyTorch."""
    checks: list[Callable[[], Finding]] = [check_jax, lambda: check_pins(pins())]
    checks += [functools.partial(check_part, part) for part in PARTS]
    checks += [functools.partial(check_gl, backend) for backend in GL_FIXES]
    checks += [lambda: check_libero_pins(pins()), check_libero_assets]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda check: check(), checks))


def lacking(findings: Iterable[Finding], parts: Sequence[str] = ()) -> list[str]:
    """The parts (by default what everything needs) that do not work here. LIBERO also needs
    pictures, from either backend.

    Raises:
        ValueError: an unknown part.
    """
    check_parts(parts)
    asked = {"base", *parts, *(("gl",) if "libero" in parts else ())}
    works: dict[str, list[bool]] = {part: [] for part in ASKED}
    for finding in findings:
        if finding.part:
            works[finding.part].append(finding.works)
    return [p for p in ASKED if p in asked and not (any if p == "gl" else all)(works[p])]


def check_parts(parts: Sequence[str]) -> None:
    """ValueError for an unknown part."""
    if unknown := sorted(set(parts) - set(ASKED)):
        raise ValueError(f"no part is called {unknown[0]!r}; choose some of {', '.join(ASKED)}.")


def table(findings: Iterable[Finding]) -> str:
    """One line per finding and, indented under those that do not work, the fix."""
    findings = list(findings)
    width = max(len(f.what) for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{'ok' if f.works else '--'}  {f.what:<{width}}  {f.found}")
        if not f.works:
            lines.append(f"{'':<{width + 6}}needed for: {f.purpose}")
            lines.append(f"{'':<{width + 6}}fix: {f.fix}")
    return "\n".join(lines)

"""No module imports upward: the floors of docs/architecture.md, read off every import statement."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mistjax

PACKAGE = Path(mistjax.__file__).parent
BESIDE = PACKAGE.parent / "interop"
FLOORS = (
    "hooks",
    "models",
    "policies",
    "envs",
    "rollouts",
    "detect",
    "attribute",
    "steer",
    "recover",
    "realtime",
    "report",
    "studies",
    "interop",
    "conformance",
    "serve",
    "demo",
    "doctor",
    "cli",
)
ROOMS = {
    path.stem for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()
}
FILES = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
GROUND = FILES - set(FLOORS)


def level(room: str) -> int:
    """0 for the ground floor, whose modules any room may import."""
    return 0 if room in GROUND else 1 + FLOORS.index(room)


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that a source imports anywhere, those for type checkers alone left out; and those
    that it names in a string of their own, which it may import or run.
    """
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If() if "TYPE_CHECKING" in ast.dump(node.test):
                yield from imports(ast.Module(node.orelse, []))
                continue
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module="mistjax"):
                yield from (f"mistjax.{alias.name}" for alias in node.names)
            case ast.ImportFrom(module=module, level=level):
                assert module and not level, "imports are absolute"
                yield module
            case ast.Constant(value=str(text)) if re.fullmatch(r"\w+(\.\w+)+", text):
                yield text
        yield from imports(node)


def upward() -> set[tuple[str, str]]:
    """(file, room above it that it imports)."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")) + sorted(BESIDE.rglob("*.py")):
        name = path.relative_to(BESIDE.parent if path.is_relative_to(BESIDE) else PACKAGE)
        room = name.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for module in imports(ast.parse(path.read_text())):
            top, *rest = module.split(".")
            assert top not in ("experiments", "tests"), f"{name} imports {module}"
            imported = rest[0] if top == "mistjax" and rest else top
            if imported in {*FLOORS, *GROUND} and level(imported) > level(room):
                found.add((str(name), imported))
    return found


def test_every_room_has_a_floor():
    assert set(FLOORS) == ROOMS | {"interop", "demo", "doctor"} and {"files", "stats"} <= GROUND


def test_no_module_imports_upward():
    assert not upward()


@pytest.mark.parametrize("source", [
    "from mistjax.cli import main",
    "from mistjax import cli",
    "import mistjax.cli",
    "def f():\n    if x:\n        import mistjax.cli.main",
    "importlib.import_module('mistjax.cli')",
    "if TYPE_CHECKING:\n    import mistjax.report\nelse:\n    import mistjax.cli",
])  # fmt: skip
def test_an_import_is_seen_wherever_it_stands(source):
    (found,) = imports(ast.parse(source))
    assert found.split(".")[:2] == ["mistjax", "cli"]


def test_an_import_for_type_checkers_is_none():
    assert not list(imports(ast.parse("if TYPE_CHECKING:\n    import mistjax.cli")))

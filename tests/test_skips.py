"""tests/SKIPS.md names every test that may be skipped, and nothing else."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
SKIPPING = (
    "pytest.importorskip",
    "pytest.mark.skip",
    "pytest.mark.skipif",
    "pytest.mark.xfail",
    "pytest.skip",
    "pytest.xfail",
)


def skips_in(source: str) -> list[str]:
    """The reason of every skip in a test file; an importorskip's reason is its module name."""
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {id(call.func) for call in calls}
    reasons = [reason_of(call) for call in calls if ast.unparse(call.func) in SKIPPING]
    reasons += [
        "no reason"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in SKIPPING
        and id(node) not in called
    ]
    return reasons


def reason_of(call: ast.Call) -> str:
    """The reason's text, or its source where it is no plain text."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
    if not given and ast.unparse(call.func) != "pytest.mark.skipif":
        given = call.args[:1]
    if not given:
        return "no reason"
    return given[0].value if isinstance(given[0], ast.Constant) else ast.unparse(given[0])


def listed(table: str) -> set[tuple[str, str]]:
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    return {(row[0].strip().strip("`"), row[1].strip()) for row in rows}


def test_every_skip_is_listed_with_its_reason_and_every_listed_skip_exists():
    found = {
        (path.relative_to(TESTS).as_posix(), reason)
        for path in (*TESTS.rglob("test_*.py"), *TESTS.rglob("conftest.py"))
        for reason in skips_in(path.read_text())
    }
    assert found == listed((TESTS / "SKIPS.md").read_text())


def test_all_ways_of_skipping_are_seen():
    source = """
pytest.importorskip("torch")
pytest.skip("no GL")
@pytest.mark.skipif(True, reason="no LIBERO")
@pytest.mark.xfail(strict=True, reason=UPSTREAM)
def test_x(): ...
@pytest.mark.skip
def test_y(): ...
"""
    assert sorted(skips_in(source)) == ["UPSTREAM", "no GL", "no LIBERO", "no reason", "torch"]


def test_a_table_row_is_a_file_and_a_reason():
    assert listed("| `envs/test_gl.py` | no GL | with EGL |") == {("envs/test_gl.py", "no GL")}

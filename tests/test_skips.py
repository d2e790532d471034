"""tests/SKIPS.md names every test that may be skipped, and nothing else."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
SKIPPING = ("pytest.skip", "pytest.importorskip", "pytest.xfail", "pytest.mark.skip")
SKIPPING_MARKS = ("pytest.mark.skipif", "pytest.mark.xfail")


def skips_in(source: str) -> list[str]:
    """The reason of every skip in a test file; an importorskip's reason is its module name."""
    reasons = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name not in SKIPPING + SKIPPING_MARKS:
            continue
        given = [k.value for k in node.keywords if k.arg == "reason"]
        if name in SKIPPING:
            given += node.args[:1]
        reasons.append(ast.literal_eval(given[0]) if given else f"{name} without a reason")
    return reasons


def listed(table: str) -> set[tuple[str, str]]:
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    return {(row[0].strip().strip("`"), row[1].strip()) for row in rows}


def test_every_skip_is_listed_with_its_reason_and_every_listed_skip_exists():
    found = {
        (path.relative_to(TESTS).as_posix(), reason)
        for path in TESTS.rglob("test_*.py")
        for reason in skips_in(path.read_text())
    }
    assert found == listed((TESTS / "SKIPS.md").read_text())


def test_all_ways_of_skipping_are_seen():
    source = """
pytest.importorskip("torch")
pytest.skip("no GL")
@pytest.mark.skipif(True, reason="no LIBERO")
@pytest.mark.xfail(strict=True, reason="upstream")
def test_x(): ...
"""
    assert sorted(skips_in(source)) == ["no GL", "no LIBERO", "torch", "upstream"]


def test_a_table_row_is_a_file_and_a_reason():
    assert listed("| `envs/test_gl.py` | no GL | with EGL |") == {("envs/test_gl.py", "no GL")}

"""The documentation: its code parses and runs, its commands and options exist, and the messages
that it explains are those of the code.
"""

import ast
import importlib
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import jax
import pytest

from mistjax.cli import COMMANDS, DEBUG, main
from mistjax.cli.telling import JSON, QUIET
from mistjax.detect import DETECTORS
from mistjax.detect.artifact import CLASSES

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ]
)
BLOCK = re.compile(r"^```([a-z]*)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(language, kind.strip(), source, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (language, kind, source) in enumerate(BLOCK.findall(page.read_text()))
]
RUN_ELSEWHERE = "README.md", "your_environment.md"
MESSAGES = (ROOT / "docs" / "messages.md").read_text()


@pytest.mark.parametrize(("language", "kind", "source"), BLOCKS)
def test_every_block_parses(language, kind, source):
    if language == "python":
        ast.parse(source)
    elif language == "sh":
        checked = subprocess.run(["bash", "-n"], input=source, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr
    else:
        assert language in ("toml", "json", "text"), f"a block without a language: {source:.60}"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(source, id=page.name)
        for page in PAGES
        for language, kind, source in BLOCK.findall(page.read_text())
        if (language, kind) == ("python", " run") and page.name not in RUN_ELSEWHERE
    ],
)
def test_the_examples_run(source, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for registry in (DETECTORS, CLASSES):  # what an example registers is gone after it
        monkeypatch.setitem(registry, "norm", None)
        monkeypatch.setitem(registry, "Norm", None)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as users have
        exec(compile(source, "docs", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out.strip()


def shown_commands() -> set[tuple[str, str]]:
    """(command, option) of every `mistjax` line of the blocks; "" for the command itself."""
    found = set()
    for block in BLOCKS:
        language, _, source = block.values
        if language != "sh":
            continue
        for line in source.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "mistjax" not in words:
                continue
            name, *arguments = words[words.index("mistjax") + 1 :] or [""]
            if name.startswith("-"):
                continue
            found |= {(name, "")} | {(name, word) for word in arguments if word.startswith("--")}
    return found


@cache
def help_of(name: str, read) -> str:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    return read().out


def test_every_command_and_option_that_is_shown_exists(capsys):
    shown = shown_commands()
    assert len(shown) > 60
    unknown = {name for name, _ in shown} - set(COMMANDS)
    assert not unknown
    shown = {(name, word) for name, word in shown if word not in (DEBUG, JSON, QUIET)}
    wrong = {(name, word) for name, word in shown if word not in help_of(name, capsys.readouterr)}
    assert not wrong


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for words in re.findall(r"(?:^|`)make ((?:[a-z]+[a-z-]* ?)+)", page.read_text(), re.M):
            for target in words.split():
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page.name, target)


def raised() -> list[re.Pattern[str]]:
    """What the code raises, its first line, with anything in place of what is filled in."""
    calls = (
        node.exc
        for package in ("mistjax", "interop")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
    )
    patterns = (pattern(call.args[0]).split("\\\n")[0] for call in calls)
    return [re.compile(p) for p in patterns if len(p.replace(".+", "")) > 15]


def pattern(message: ast.expr) -> str:
    match message:
        case ast.Constant(value=str(text)):
            return re.escape(text)
        case ast.JoinedStr(values=parts):
            return re.sub(r"(\.\+)+", ".+", "".join(map(pattern, parts)))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return pattern(left) + pattern(right)
    return ".+"


def test_every_message_that_is_explained_is_raised():
    explained = re.findall(r"^### (.*)", MESSAGES, re.MULTILINE)
    known = raised()
    assert len(explained) > 35
    stale = [text for text in explained if not any(p.fullmatch(text) for p in known)]
    assert not stale


def test_a_message_is_found_by_what_is_fixed_in_it():
    def matches(code, text):
        return bool(re.fullmatch(pattern(ast.parse(code, mode="eval").body), text))

    code = 'f"{a} is no run: it has no {b}." + " Record."'
    assert matches(code, "X is no run: it has no Y. Record.")
    assert not matches('f"{a} is no run."', "X is not a run.")


@pytest.mark.slow
def test_the_robot_and_the_environment_of_the_pages_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(tmp_path)
    for name, page in (("my_arm", "your_policy.md"), ("my_env", "your_environment.md")):
        found = BLOCK.findall((ROOT / "docs" / page).read_text())
        source = "\n".join(text for language, kind, text in found if kind == f" {name}")
        (tmp_path / f"{name}.py").write_text(source)
    importlib.import_module("my_arm")
    assert capsys.readouterr().out.count("[") == 9  # a chunk of 8 actions
    command = ["collect", "checkpoints/board_pi0", "--env", "my_env:Reach-v0", "--episodes", "2"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert "/2) of the finished ones" in capsys.readouterr().out

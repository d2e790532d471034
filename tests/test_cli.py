"""The command line parses, calls, and says in one sentence what was refused."""

import errno
import json
import os
import sys
from pathlib import Path

import gymnasium
import pytest

from mistjax import cli
from mistjax.cli.telling import tell
from mistjax.demo import SHIPPED
from mistjax.envs.board.env import BoardEnv
from mistjax.stats import Rate


def test_help_lists_every_subcommand(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert cli.COMMANDS[name].__doc__.splitlines()[0] in " ".join(capsys.readouterr().out.split())


def test_cite_prints_bibtex(capsys):
    assert cli.main(["cite", "hooks"]) == 0
    assert capsys.readouterr().out.startswith("@software{mistjax,")


def test_the_exit_code_of_a_subcommand_is_the_programs(monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", {"doctor": lambda: 1, "cite": cli.cite})
    assert cli.main(["doctor"]) == 1


def test_a_report_compares_the_runs_in_the_order_given(monkeypatch):
    from mistjax.report import build

    calls = []
    monkeypatch.setattr(build, "build_report", lambda runs, out, title: calls.append((runs, out)))
    assert cli.main(["report", "b/run", "a/run", "--out", "page.html"]) == 0
    runs, out = calls[0]
    assert list(runs) == ["b/run", "a/run"] and out == Path("page.html")


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, ImportError])
def test_what_the_library_refuses_is_one_sentence_and_code_2(error, monkeypatch, capsys):
    def refuse():
        raise error("the reason.")

    monkeypatch.setattr(cli, "COMMANDS", {"doctor": refuse, "cite": cli.cite})
    assert cli.main(["doctor"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "mistjax: the reason.\n"


def test_an_error_of_the_system_names_the_file(monkeypatch, capsys):
    def refuse():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/run.json")

    monkeypatch.setattr(cli, "COMMANDS", {"doctor": refuse, "cite": cli.cite})
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "mistjax: runs/x/run.json: No space left on device\n"


def test_a_bug_is_one_sentence_and_its_traceback_is_shown_when_asked_for(monkeypatch, capsys):
    def fail():
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(cli, "COMMANDS", {"doctor": fail, "cite": cli.cite})
    assert cli.main(["doctor"]) == 70
    shown = capsys.readouterr().err
    assert shown.startswith("mistjax: ZeroDivisionError: first line. This is a bug of mistjax")
    assert "--debug" in shown and shown.count("\n") == 1
    for words in (["--debug", "doctor"], ["doctor", "--debug"]):
        with pytest.raises(ZeroDivisionError):
            cli.main(words)


def test_debug_shows_the_traceback_of_a_refusal_too(monkeypatch):
    def refuse():
        raise ValueError("the reason.")

    monkeypatch.setattr(cli, "COMMANDS", {"doctor": refuse, "cite": cli.cite})
    with pytest.raises(ValueError, match="the reason"):
        cli.main(["doctor", "--debug"])


def test_a_report_that_cannot_read_its_option_says_which_was_meant(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["collect", "policy", "--out", "run", "--episods", "3"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("mistjax: Unrecognized options: --episods, 3 (perhaps --episodes INT")
    assert told.endswith("see mistjax collect --help\n") and told.count("\n") == 1


def test_json_is_one_object_with_what_was_said_and_told(monkeypatch, capsys):
    def work():
        print("a line")
        tell(rate=Rate(3, 4), page=Path("x.html"), missing=float("nan"))
        return 1

    monkeypatch.setattr(cli, "COMMANDS", {"doctor": work, "cite": cli.cite})
    assert cli.main(["doctor", "--json"]) == 1
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert shown.out.count("\n") == 1 and shown.err == ""
    assert (told["command"], told["exit_code"], told["said"]) == ("doctor", 1, ["a line"])
    assert told["rate"] == {"k": 3, "n": 4} and told["page"] == "x.html" and told["missing"] is None
    assert "error" not in told and told["seconds"] >= 0


def test_json_says_what_was_refused_and_nothing_of_an_earlier_command(capsys):
    tell(left="over")
    assert cli.main(["report", "/no/such/run", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert "not a run folder" in told["error"] and "left" not in told and told["exit_code"] == 2


def test_quiet_shows_an_error_and_nothing_else(monkeypatch, capsys):
    def work():
        print("a line")
        print("progress", file=sys.stderr)

    with monkeypatch.context() as patched:
        patched.setattr(cli, "COMMANDS", {"doctor": work, "cite": cli.cite})
        assert cli.main(["--quiet", "doctor"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(["report", "/no/such/run", "--quiet"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("mistjax: /no/such/run is not a run folder")
    with pytest.raises(SystemExit):
        cli.main(["report", "--quiet"])
    assert capsys.readouterr().err.startswith("mistjax: Missing from mistjax report")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_for_a_shell_knows_every_subcommand(shell, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--tyro-print-completion", shell])
    script = capsys.readouterr().out
    assert not ended.value.code and all(name in script for name in cli.COMMANDS)


class Unlucky(BoardEnv):
    """Seed 1 crashes, as long as there is a file of that name."""

    def reset(self, *, seed=None, options=None):
        if seed == 1 and Path(os.environ["UNLUCKY"]).exists():
            raise OSError("the simulator lost its display")
        return super().reset(seed=seed, options=options)


@pytest.mark.slow
def test_crashed_episodes_are_told_until_a_retry_succeeds(monkeypatch, tmp_path, capsys):
    gymnasium.register("Unlucky-v0", Unlucky, kwargs={"max_steps": 4})
    mark, out = tmp_path / "mark", tmp_path / "run"
    monkeypatch.setenv("UNLUCKY", str(mark))
    command = ["collect", str(SHIPPED / "board_pi0"), "--out", str(out), "--env", "Unlucky-v0"]
    mark.touch()
    assert cli.main([*command, "--episodes", "1", "--first-seed", "1"]) == 1
    told = capsys.readouterr()
    assert "the first 1 episodes all crashed" in told.err and "lost its display" in told.err
    assert not out.exists()
    for extra in ([], [], ["--retry-errors"]):
        assert cli.main([*command, "--episodes", "3", *extra]) == 1
        told = capsys.readouterr().out
        assert "1 of 3 episodes crashed (seeds 1)" in told and "--retry-errors" in told
    mark.unlink()
    assert cli.main([*command, "--episodes", "3"]) == 1, "a crash is not run again unasked"
    capsys.readouterr()
    assert cli.main([*command, "--episodes", "3", "--retry-errors"]) == 0
    assert "crashed" not in capsys.readouterr().out


def test_an_interrupt_ends_with_the_shells_code(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "COMMANDS", {"doctor": interrupt, "cite": cli.cite})
    assert cli.main(["doctor"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_an_unknown_subcommand_is_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["fly"])
    assert ended.value.code == 2

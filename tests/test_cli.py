"""The command line parses, calls, and says in one sentence what was refused."""

from pathlib import Path

import pytest

from mistjax import cli


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


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "COMMANDS", {"doctor": fail, "cite": cli.cite})
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


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

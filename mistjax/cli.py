"""The `mistjax` command: argument parsing, and one call for each subcommand.

What the library refuses (ValueError, a missing file, a missing extra) is printed as one sentence,
exit code 2. `python -X dev -m mistjax.cli ...` shows the traceback instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro
from tyro.conf import Positional


def doctor() -> None:
    """Say what works on this machine, and the command that fixes what does not."""
    from mistjax.doctor import examine, table

    print(table(examine()))


def conformance(
    file: Positional[Path], /, *, atol: float = 2e-5, record: Path | None = None
) -> int:
    """Compare FILE.npz, recorded outputs of a model, with what this code computes.

    Exit code 1 when an output is off by more than the tolerance.

    Args:
        file: recorded arrays; the model's sizes lie beside it as FILE.json.
        atol: largest absolute error that passes.
        record: a checkpoint folder: write FILE from it first.
    """
    from mistjax.conformance import main

    return main(file, atol=atol, record_from=record)


def report(
    baseline: Positional[Path],
    others: Positional[tuple[Path, ...]] = (),
    /,
    *,
    out: Path = Path("report.html"),
) -> None:
    """Write one HTML page about recorded runs.

    Args:
        baseline: a run folder.
        others: further run folders, compared with the first.
        out: the file to write.
    """
    from mistjax.report.build import build_report

    runs = {str(run): run for run in (baseline, *others)}
    print(build_report(runs, out, title="mistjax report"))


def cite(room: Positional[str | None] = None) -> None:
    """Print BibTeX of mistjax and of the works behind it.

    Args:
        room: only those behind one part of the library, e.g. detect.
    """
    from mistjax.citations import citation

    print(citation(room))


COMMANDS: dict[str, Callable[..., int | None]] = {
    "report": report,
    "conformance": conformance,
    "doctor": doctor,
    "cite": cite,
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit code."""
    from mistjax.compilation import enable_cache

    enable_cache()
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="mistjax",
            description="Watch, explain and steer robot policies.",
            args=args,
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        if sys.flags.dev_mode:
            raise
        print(f"mistjax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mistjax: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return code or 0


if __name__ == "__main__":
    sys.exit(main())

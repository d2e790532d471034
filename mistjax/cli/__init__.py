"""The `mistjax` command: one function for each subcommand, and the exit code.

What the library refuses (ValueError, a missing file or extra, a broken connection) is printed as
one sentence, exit code 2. `python -X dev -m mistjax.cli ...` shows the traceback instead. Modules
of the library are imported where a subcommand needs them, so that `--help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

if sys.argv[0] == "-m" and not sys.flags.safe_path:
    # `python -m` searches the current folder first, which may be a download with a csv.py in it.
    sys.path.append(sys.path.pop(0))

import tyro

from mistjax.cli.detectors import (
    calibrate,
    detect_bench,
    drift,
    export_safe,
    fit_inputs,
    import_safe,
    train_detector,
)
from mistjax.cli.episodes import collect, demo, evaluate, export_lerobot, price, report
from mistjax.cli.installation import cite, conformance, doctor, fetch
from mistjax.cli.remedies import explain, remedy, vectors

COMMANDS: dict[str, Callable[..., int | None]] = {
    "demo": demo,
    "collect": collect,
    "price": price,
    "train-detector": train_detector,
    "calibrate": calibrate,
    "fit-inputs": fit_inputs,
    "drift": drift,
    "detect-bench": detect_bench,
    "import-safe": import_safe,
    "export-safe": export_safe,
    "vectors": vectors,
    "remedy": remedy,
    "explain": explain,
    "eval": evaluate,
    "report": report,
    "export-lerobot": export_lerobot,
    "fetch": fetch,
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
    except (ValueError, FileNotFoundError, ConnectionError, ImportError) as error:
        if sys.flags.dev_mode:
            raise
        print(f"mistjax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mistjax: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return code or 0

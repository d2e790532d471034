"""The `mistjax` command: one function for each subcommand, and the exit code.

Exit codes: 0 done; 1 done, and something was found (crashed episodes, a stale calibration, a
missing part); 2 the library refused its input (ValueError, a missing file or extra, a broken
connection); 70 a bug; 130 interrupted. All but 0 come with one sentence on stderr or a finding on
stdout. Anywhere in a command `--debug` shows the traceback instead, `--json` prints an object for
machines, and `--quiet` prints only errors. Modules of the library are imported where a subcommand
needs them, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

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
from mistjax.cli.episodes import (
    collect,
    demo,
    evaluate,
    export_lerobot,
    export_rerun,
    memory,
    merge,
    report,
    study,
)
from mistjax.cli.installation import (
    cite,
    conformance,
    doctor,
    export_checkpoint,
    fetch,
    libero_pro,
)
from mistjax.cli.neurons import train_sae, words
from mistjax.cli.remedies import (
    explain,
    fit_elites,
    fit_feedback,
    fit_imputer,
    fit_reckoning,
    fit_remedies,
    nmr,
    patch,
    remedy,
    vectors,
)
from mistjax.cli.serving import certify, serve
from mistjax.cli.telling import JSON, QUIET, Said, silence

DEBUG = "--debug"
FOUND, REFUSED, BUG, INTERRUPTED = 1, 2, 70, 130

COMMANDS: dict[str, Callable[..., int | None]] = {
    "demo": demo,
    "collect": collect,
    "merge": merge,
    "memory": memory,
    "train-detector": train_detector,
    "calibrate": calibrate,
    "fit-inputs": fit_inputs,
    "fit-imputer": fit_imputer,
    "fit-reckoning": fit_reckoning,
    "fit-remedies": fit_remedies,
    "fit-elites": fit_elites,
    "fit-feedback": fit_feedback,
    "drift": drift,
    "detect-bench": detect_bench,
    "import-safe": import_safe,
    "export-safe": export_safe,
    "words": words,
    "train-sae": train_sae,
    "vectors": vectors,
    "remedy": remedy,
    "explain": explain,
    "patch": patch,
    "nmr": nmr,
    "eval": evaluate,
    "study": study,
    "report": report,
    "serve": serve,
    "certify": certify,
    "export-lerobot": export_lerobot,
    "export-rerun": export_rerun,
    "fetch": fetch,
    "export-checkpoint": export_checkpoint,
    "libero-pro": libero_pro,
    "conformance": conformance,
    "doctor": doctor,
    "cite": cite,
}

RENAMED = {"price": "memory"}
"""Names of the release before this one; they still work, and say what to write instead."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit code.

    Raises:
        SystemExit: after --help, and for a command line that cannot be read (code 2).
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = sys.flags.dev_mode or DEBUG in words
    asks = {"--help", "-h"} & set(words)
    shown = {flag for flag in (JSON, QUIET) if flag in words and not asks}
    words = [word for word in words if word not in (DEBUG, JSON, QUIET)]
    if words and words[0] in RENAMED:
        now = RENAMED[words[0]]
        print(f"mistjax: `{words[0]}` is now called `{now}`", file=sys.stderr)
        words[0] = now

    said, code, error = Said(), 0, ""
    with contextlib.ExitStack() as around:
        try:
            command = _parse(words)
            if QUIET in shown:
                around.enter_context(silence())
            if JSON in shown:
                around.enter_context(said.captured())
            from mistjax.compilation import enable_cache

            enable_cache()
            code = command() or 0
        except KeyboardInterrupt:
            code, error = INTERRUPTED, "interrupted; run the same command again to resume"
        except Exception as caught:
            if debug:
                raise
            error, code = _told(caught)
    if JSON in shown:
        print(said.document(words[0], code, error))
        return code
    return _end(error, code) if error else code


def _parse(words: Sequence[str]) -> Callable[[], int | None]:
    """The call that a command line asks for. tyro's own complaints become one sentence."""

    def later(function: Callable[..., int | None]) -> Callable[..., Callable[[], int | None]]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Callable[[], int | None]:
            return functools.partial(function, *args, **kwargs)

        return call

    complaint = io.StringIO()
    name = words[0] if words and words[0] in COMMANDS else ""
    try:
        with contextlib.redirect_stderr(complaint):
            if name:
                return tyro.cli(later(COMMANDS[name]), prog=f"mistjax {name}", args=words[1:])
            return tyro.extras.subcommand_cli_from_dict(
                {name: later(function) for name, function in COMMANDS.items()},
                prog="mistjax",
                description=f"Watch, explain and steer robot policies. Anywhere: {DEBUG} shows the "
                f"traceback of an error, {JSON} prints JSON for machines, {QUIET} only errors.",
                args=words,
            )
    except SystemExit as end:
        if end.code not in (0, None):
            command = f"mistjax {name}".strip()
            _end(f"{_sentence(complaint.getvalue())}; see {command} --help", REFUSED)
        raise


def _sentence(box: str) -> str:
    """What tyro says in a box of several sections: the first paragraph without help texts, which
    are indented, and the option that it thinks was meant.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    boxed = [line[2:-1] for line in plain if line.startswith("│")]
    paragraphs: list[list[str]] = [[]]
    for line in boxed or [line[2:] for line in plain[2:]]:  # in ASCII: a title, a rule, no frame
        if set(line) <= {"─", "-", " "}:
            paragraphs.append([])
        elif not line.startswith(" " * 8):
            paragraphs[-1].append(line.strip())
    said = " ".join(paragraphs[0]).rstrip(".")
    meant = [lines[1] for lines in paragraphs if lines[:1] == ["Perhaps you meant:"]]
    return said + "".join(f" (perhaps {option} was meant)" for option in meant)


def _told(error: Exception) -> tuple[str, int]:
    """What is said of an error, in one line, and the exit code."""
    from mistjax.rollouts.plan import CrashedError

    if isinstance(error, CrashedError):
        return str(error), FOUND
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        said = f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError | ImportError) and said.strip():
        return " ".join(said.split()), REFUSED
    first = f"{type(error).__name__}: {said}".strip().splitlines()[0]
    return f"{first}. This is a bug of mistjax: the same command with {DEBUG} shows where.", BUG


def _end(said: str, code: int) -> int:
    print(f"mistjax: {said}", file=sys.stderr)
    return code

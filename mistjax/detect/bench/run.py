"""Run a comparison, keep what is finished, and write it out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mistjax.detect.bench.config import BenchConfig
from mistjax.detect.bench.episodes import read_runs
from mistjax.detect.bench.rows import Row, evaluate
from mistjax.detect.bench.table import by_auc, write_csv
from mistjax.files import atomic, refuse_file
from mistjax.rollouts.trace import to_json

Page = Callable[[Sequence[Row], Mapping[str, Any], Path], None]


def run_bench(
    config: BenchConfig, *, progress: bool = True, write_page: Page | None = None
) -> list[Row]:
    """Fits and scores every applicable detector; finished rows of an earlier call are kept.

    Writes `rows/<detector>.json` and `bench.csv` under `config.out`, and with `write_page` (see
    `report.bench`) also `bench.html`.

    Returns:
        One row per detector, the best by earliest stop first; those that do not apply come last,
        with the reason.

    Raises:
        ValueError: the folder holds another comparison, or the runs cannot be compared.
    """
    refuse_file(config.out)
    recorded = read_runs(config, progress=progress)
    folder = config.out / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    about = json.loads(to_json({"settings": config.settings(), **recorded.about}))
    _same_or_new(config, about)
    rows: list[Row] = []
    with tqdm(recorded.cases, unit="detector", disable=None if progress else True) as bar:
        for case in bar:
            bar.set_postfix_str(case.name)
            path = folder / f"{case.name}.json"
            if not case.missing and path.exists():
                rows.append(json.loads(path.read_text()))
                continue
            row = evaluate(case, recorded, config)
            if row["status"] == "scored":
                with atomic(path) as temporary:
                    temporary.write_text(to_json(row))
            rows.append(row)
    rows = by_auc(rows)
    write_csv(rows, config.out / "bench.csv")
    if write_page is not None:
        write_page(rows, about, config.out / "bench.html")
    return rows


def _same_or_new(config: BenchConfig, about: dict[str, Any]) -> None:
    path = config.out / "bench.json"
    if path.exists():
        old = json.loads(path.read_text())
        names = [name for name in about if old.get(name) != about[name]]
        if names:
            changes = "; ".join(f"{n} was {old.get(n)}, now {about[n]}" for n in names)
            raise ValueError(
                f"{config.out} holds another comparison ({changes}): choose another --out."
            )
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n")

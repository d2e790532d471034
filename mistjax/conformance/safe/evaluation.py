"""Conformal bands, split-conformal thresholds and the evaluation tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mistjax.conformance.rows import Row, compare
from mistjax.conformance.safe.bands import functional_band, split_thresholds
from mistjax.conformance.safe.baselines import recorded_episodes
from mistjax.detect.calibration.conformal import Band, extend
from mistjax.detect.data import Episodes, Split, split_tasks
from mistjax.detect.metrics import (
    accuracy_time_tradeoff,
    alarm_rates,
    at_fraction,
    auprc,
    peak,
    relative_detection_time,
    roc_auc,
    summary,
)
from mistjax.untrusted import read_npz

BANDS: dict[str, Band] = {"Const": "constant", "Stdev": "stdev", "Tfunc": "tfunc"}
RATES = ("tpr", "tnr", "fpr", "fnr", "acc", "bal_acc", "f1", "weighted-acc")


def conformal(folder: Path) -> list[Row]:
    """Functional bands, split thresholds and prediction sets in the mode of the release."""
    z = read_npz(folder / "conformal.npz")
    rows = []
    for name, band in BANDS.items():
        for key in ("upper", "lower", "two_upper", "two_lower"):
            side: Any = "both" if key.startswith("two") else key
            alphas = z["two_sided_alphas" if side == "both" else "alphas"]
            ours = [
                functional_band(z["train"], z["cal"], a, band=band, side=side, as_released=True)[
                    int("upper" in key)
                ]
                for a in alphas
            ]
            rows.append(compare("bands", f"{name} {key}", ours, z[f"{name}/{key}"], 1e-12))
    scores, success = z["split_cal_scores"], z["split_cal_labels"] == 0
    limits = np.array([split_thresholds(scores, success, a, as_released=True) for a in z["alphas"]])
    wanted = z["split_thresholds_label0_label1"]
    rows.append(compare("split", "thresholds", limits, wanted, 1e-12))
    test = z["split_test_scores"]
    sets = np.stack([test <= limits[:, :1], 1 - test <= limits[:, 1:]], axis=-1)
    rows.append(compare("split", "prediction sets", sets, z["split_pred_sets"], 0.0))
    return rows


def _at(scores: np.ndarray, episodes: Episodes, time: str) -> np.ndarray:
    """One score an episode at the evaluation time that a recorded table names."""
    if time == "at earliest stop":
        return at_fraction(scores, episodes.earliest_stop, 1.0)
    stop = episodes.earliest_stop if time == "by earliest stop" else episodes.lengths
    return peak(scores, stop)


def _ranking(
    name: str, table: dict, scores: np.ndarray, episodes: Episodes, split: Split
) -> list[Row]:
    rows = []
    keys = {
        "falert_early_roc_auc": "roc_auc",
        "falert_early_prc_auc": "auprc",
        "falert_end_roc_auc": "roc_auc_full",
        "falert_end_prc_auc": "auprc_full",
        "falert_early_roc_auc_taskwise": "roc_auc_task_mean",
    }
    for part, index in split._asdict().items():
        e, s = episodes.take(index), scores[index]
        failed, ours, wanted = ~e.success, [], []
        for q in (0.25, 0.5, 0.75, 1.0):
            value = at_fraction(s, e.earliest_stop, q)
            ours += [roc_auc(value, failed), auprc(value, failed)]
            wanted += [table[f"{m}_auc/m_{part}_tq{q}"] for m in ("roc", "prc")]
        total = summary(s, e)
        ours += [total[k] for k in keys.values()]
        wanted += [table[f"{k}/m_{part}"] for k in keys]
        rows.append(compare(f"metrics {name}", f"{part} ranking", ours, wanted, 1e-12))
    return rows


def _alarm_values(alarms: np.ndarray, stop: np.ndarray, failed: np.ndarray) -> dict[str, float]:
    time = relative_detection_time(alarms, stop)[failed].mean()
    return {**alarm_rates(alarms.any(1), failed), "avg_det_time": time}


def _thresholded(
    name: str, tables: dict, scores: np.ndarray, episodes: Episodes, split: Split
) -> list[Row]:
    """Fixed and split-conformal thresholds."""
    index = split._asdict()
    cal, test = (episodes.take(index[k]) for k in ("val_seen", "val_unseen"))
    rows: list[Row] = []
    for kind in ("fixed_0.5", "split_cp"):
        ours, wanted = [], []
        for row in tables[f"{name}/{kind}"]:
            if kind == "split_cp":
                e, s = test, scores[index["val_unseen"]]
                limits = split_thresholds(
                    _at(scores[index["val_seen"]], cal, row["time"]),
                    cal.success,
                    row["alpha"],
                    as_released=True,
                )
                limit = limits[0] if row["calib on"] == "neg" else 1 - limits[1]
            else:
                e, s = episodes.take(index[row["split"]]), scores[index[row["split"]]]
                limit = row["threshold"]
            failed = ~e.success
            # the original takes detection times from full-length scores at every evaluation time
            values = {
                **_alarm_values((s >= limit) & e.mask, e.lengths, failed),
                **alarm_rates(_at(s, e, row["time"]) >= limit, failed),
                "threshold": limit,
            }
            ours.append([values[k] for k in (*RATES, "avg_det_time", "threshold")])
            wanted.append([row[k] for k in (*RATES, "avg_det_time", "threshold")])
        rows.append(compare(f"metrics {name}", kind, ours, wanted, 1e-12))
    return rows


def _functional(
    name: str, tables: dict, z: dict, scores: np.ndarray, episodes: Episodes, split: Split
) -> list[Row]:
    order = z[f"{name}/fcp_cal_order"]
    curves = extend(scores[order], episodes.mask[order])
    reference, calibration = np.split(curves, [int(0.3 * len(curves))])
    test = episodes.take(split.val_unseen)
    padded, failed = extend(scores[split.val_unseen], test.mask), ~test.success
    bands = {
        a: functional_band(reference, calibration, a, as_released=True)[1]
        for a in z[f"{name}/fcp_alphas"]
    }
    rows = [
        compare(
            f"metrics {name}",
            "functional bands",
            list(bands.values()),
            z[f"{name}/fcp_bands"],
            1e-12,
        )
    ]
    ours, wanted = [], []
    keys = ("tpr", "tnr", "fpr", "fnr", "acc", "bal_acc", "f1", "avg_det_time")
    for row in tables[f"{name}/functional_cp"]:
        end = np.full(len(failed), padded.shape[1])
        stop = end if row["time"] == "by final end" else test.earliest_stop
        alarms = (padded >= bands[row["alpha"]]) & (np.arange(padded.shape[1]) < stop[:, None])
        values = _alarm_values(alarms, stop, failed)
        ours.append([values[k] for k in keys])
        wanted.append([row[k] for k in keys])
    return [*rows, compare(f"metrics {name}", "functional alarms", ours, wanted, 1e-12)]


def metrics(folder: Path) -> list[Row]:
    """Every table of the original evaluation, for two recorded score series."""
    z = read_npz(folder / "metrics.npz")
    tables = json.loads((folder / "metrics.json").read_text())
    episodes = recorded_episodes(folder)
    split = split_tasks(episodes.task_id, 0)
    rows: list[Row] = []
    for name in ("a", "b"):
        scores = np.zeros(episodes.mask.shape)
        scores[episodes.mask] = z[f"score_{name}"]
        rows += _ranking(name, tables[f"{name}/roc_prc"], scores, episodes, split)
        rows += _thresholded(name, tables, scores, episodes, split)
        rows += _functional(name, tables, z, scores, episodes, split)
        for part in ("val_seen", "val_unseen"):
            index = split._asdict()[part]
            e = episodes.take(index)
            curve = accuracy_time_tradeoff(scores[index], e.lengths, ~e.success)
            ours = np.stack(
                [curve.threshold, curve.detection_time, curve.tpr, curve.tnr, curve.bal_acc], 1
            )
            wanted = z[f"{name}/det_curve_{part}"][:, [0, 1, 2, 3, 5]]
            rows.append(
                compare(f"metrics {name}", f"{part} time-accuracy curve", ours, wanted, 1e-12)
            )
    return rows


GROUPS = {
    ("conformal.npz",): conformal,
    ("dataset.npz", "metrics.npz", "metrics.json"): metrics,
}

"""Failure detection: scores that grow with the risk that an episode fails, and thresholds with a
promise.
"""

from mistjax.detect.artifact import Artifact, load_detector, save_detector
from mistjax.detect.calibration.conformal import Threshold, calibrate
from mistjax.detect.data import Episodes, split_seeds, split_tasks
from mistjax.detect.detector import Detector, score_episodes
from mistjax.detect.inputs import Input
from mistjax.detect.monitor import Monitor
from mistjax.detect.registry import DETECTORS, fit_detector

__all__ = [
    "DETECTORS",
    "Artifact",
    "Detector",
    "Episodes",
    "Input",
    "Monitor",
    "Threshold",
    "calibrate",
    "fit_detector",
    "load_detector",
    "save_detector",
    "score_episodes",
    "split_seeds",
    "split_tasks",
]

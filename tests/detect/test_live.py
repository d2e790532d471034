"""Every registered detector, from recorded runs to a live step inside `MistPolicy`."""

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.demo import SHIPPED
from mistjax.detect import DETECTORS, Monitor, score_episodes
from mistjax.detect.artifact import load_calibrated
from mistjax.detect.calibration.runs import calibrate_detector
from mistjax.detect.inputs import DEFAULT_TAPS
from mistjax.detect.training import train_detector
from mistjax.policies.load import load_policy
from mistjax.recover.mist import MistPolicy
from mistjax.rollouts.collect import collect

TINY_UNET = {"channels": (8, 8), "step_dim": 8, "epochs": 2, "batch_size": 64}
TINY_MLPS = {"target_widths": (8, 4), "predictor_widths": (8, 8, 4), "epochs": 2}
TINY = {
    "safe_mlp": {"epochs": 3, "hidden": 8},
    "safe_lstm": {"epochs": 3, "hidden": 8},
    "shuffled_labels": {"epochs": 3, "hidden": 8},
    "hide_and_seek": {"epochs": 3, "hidden": 8, "window": 2},
    "contrast_probe": {"epochs": 3, "hidden": 8},
    "guard": {"epochs": 3, "hidden": 8},
    "ensemble": {"members": [{"name": "linear_probe"}, {"name": "mahalanobis"}]},
    "rnd": TINY_UNET,
    "logpzo": TINY_UNET,
    "rnd_oe": TINY_MLPS,
    "fiper": TINY_MLPS,
}
WIDE = ("action_rotation_var", "action_gripper_var")  # read seven dimensions, the board has four
OF_TOKENS = [name for name in DETECTORS if "_token_" in name]
ON_THE_BOARD = [name for name in DETECTORS if name not in (*OF_TOKENS, *WIDE)]


def deployed(name, runs, folder, policy):
    """Trained on the first run, calibrated on the second, saved, loaded."""
    train_detector(runs[:1], folder, name=name, folds=0, **TINY.get(name, {}))
    calibrate_detector(folder, runs[1:], alpha=0.4, band="constant")
    found, threshold = load_calibrated(folder, policy.spec.fingerprint)
    return Monitor(found.detector, threshold, found.reads)


def check_in_an_episode(name, runs, folder, policy):
    """Runs an episode under the monitor, and scores what was recorded of it again."""
    monitor = deployed(name, runs, folder / "detector", policy)
    run = collect(
        MistPolicy(policy, monitor),
        folder / "live",
        episodes=1,
        first_seed=500,
        taps=monitor.reads.taps,
        aux=monitor.reads.aux,
        num_envs=1,
    )
    trace = run.trace(500)
    features = monitor.reads.recorded(trace)[None]
    again = score_episodes(monitor.detector, features, np.ones(features.shape[:2], bool))[0]
    np.testing.assert_array_equal(trace.score, again)
    limit = monitor.threshold.alarm(jnp.arange(len(again)), again)
    np.testing.assert_array_equal(trace.alarm, limit)


@pytest.fixture(scope="module")
def board_pi0():
    return load_policy(SHIPPED / "board_pi0")


@pytest.fixture(scope="module")
def board_fast():
    return load_policy(SHIPPED / "board_fast")


@pytest.fixture(scope="module")
def fast_runs(board_fast, tmp_path_factory):
    """10 episodes for training and 14 for calibration of board_fast."""
    folder = tmp_path_factory.mktemp("fast")
    return [
        collect(board_fast, folder / name, episodes=n, first_seed=seed, taps=DEFAULT_TAPS)
        for name, n, seed in (("train", 10, 0), ("calibration", 14, 100))
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ON_THE_BOARD)
def test_live_scores_are_those_of_the_recorded_episode(name, board_runs, board_pi0, tmp_path):
    check_in_an_episode(name, board_runs, tmp_path, board_pi0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OF_TOKENS)
def test_live_scores_of_tokens_are_those_of_the_recorded_episode(
    name, fast_runs, board_fast, tmp_path
):
    check_in_an_episode(name, fast_runs, tmp_path, board_fast)

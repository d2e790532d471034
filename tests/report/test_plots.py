import matplotlib
import numpy as np
import pytest

from mistjax.report import plots
from mistjax.stats import Rate

matplotlib.use("svg")


def texts(figure):
    axes = figure.axes[0]
    legend = axes.get_legend()
    return [t.get_text() for t in [*axes.texts, *(legend.get_texts() if legend else [])]]


def line(figure, name):
    return next(line for line in figure.axes[0].lines if line.get_label() == name)


def test_the_alarm_is_marked_where_it_was_raised(trace):
    figure = plots.score_curve(trace())
    assert line(figure, "alarm").get_xydata().tolist() == [[4.0, 0.6]]
    steered = line(figure, "steered").get_ydata()
    np.testing.assert_array_equal(np.isfinite(steered), [False, False, False, True])


def test_an_infinite_threshold_is_not_drawn_and_a_nan_score_is_a_gap(trace):
    odd = trace(threshold=np.full(4, np.inf), score=np.array([0.1, np.nan, 0.2, np.inf]))
    figure = plots.score_curve(odd)
    assert "threshold" not in texts(figure)
    shown = line(figure, "failure score").get_ydata()
    np.testing.assert_array_equal(np.isfinite(shown), [True, False, True, False])


def test_many_episodes_are_told_apart_by_outcome_with_their_number(trace):
    figure = plots.score_curves([trace(1), trace(2, succeeded=True), trace(3, succeeded=True)])
    assert {"success (n = 2)", "failure (n = 1)", "threshold"} <= set(texts(figure))


def test_an_episode_without_scores_is_refused(trace):
    with pytest.raises(ValueError, match="no monitor"):
        plots.score_curve(trace(monitored=False))
    with pytest.raises(ValueError, match="at least one"):
        plots.score_curves([])


def test_bars_carry_their_interval_and_counts():
    figure = plots.success_bars({"bare": Rate(5, 20), "ours": Rate(12, 20)}, "bare")
    assert "25%  (5/20)" in texts(figure)
    intervals = [line.get_xdata() for line in figure.axes[0].lines]
    assert any(np.allclose(x, Rate(12, 20).interval) for x in intervals)


def test_the_last_arm_has_the_same_colour_in_every_figure():
    arms = ("bare", "middle", "ours")
    bars = plots.success_bars({name: Rate(1, 2) for name in arms}).axes[0].patches
    times = plots.latency_histogram({name: np.arange(5.0) for name in arms}).axes[0].lines
    last = matplotlib.colors.to_rgb(bars[-1].get_facecolor()[:3])
    assert matplotlib.colors.to_rgb(times[-1].get_color()) == last


def test_latency_is_given_as_a_median_with_n():
    figure = plots.latency_histogram({"bare": np.array([1.0, 2.0, 9.0])})
    assert texts(figure) == ["bare: median 2.0 ms (n = 3)"]


def test_the_heatmap_brightens_what_counts_and_keeps_patches_sharp():
    image = np.full((16, 16, 3), 80, np.uint8)
    heat = np.zeros((4, 4))
    heat[1, 2], heat[3, 3] = 1.0, -5.0
    drawn = plots.heatmap(image, heat, height=32)
    assert drawn.shape == (32, 32, 3)
    changed = (drawn != 80).any(-1)
    expected = np.zeros((4, 4), bool)
    expected[1, 2] = True
    np.testing.assert_array_equal(changed, np.kron(expected, np.ones((8, 8), bool)))


def test_a_heatmap_that_does_not_tile_the_picture_is_refused():
    with pytest.raises(ValueError, match="does not tile"):
        plots.heatmap(np.zeros((16, 16, 3), np.uint8), np.zeros((5, 5)))

import numpy as np
import pytest

from interop.openvla import actions

STATS = {"q01": [-2.0, 0.0], "q99": [4.0, 1.0], "mask": [True, False]}


def test_decoding_is_the_inverse_of_encoding_to_half_a_bin():
    values = np.linspace(-1, 1, 500)
    assert np.abs(actions.decode(actions.encode(values)) - values).max() <= 1 / 255 + 1e-12


def test_unmasked_dimensions_keep_their_value():
    np.testing.assert_allclose(actions.unnormalise(np.array([1.0, 0.3]), STATS), [4.0, 0.3])


def test_statistics_without_a_mask_scale_every_dimension():
    stats = {name: STATS[name] for name in ("q01", "q99")}
    np.testing.assert_allclose(actions.unnormalise(np.array([-1.0, -1.0]), stats), [-2.0, 0.0])


def test_normalising_clips_and_inverts():
    values = np.array([[1.0, 0.3], [9.0, 0.3]])
    unit = actions.normalise(values, STATS)
    np.testing.assert_allclose(unit, [[0.0, 0.3], [1.0, 0.3]], atol=1e-8)


def test_an_open_gripper_is_minus_one_in_libero():
    np.testing.assert_array_equal(
        actions.libero_gripper(np.array([[5.0, 0.9], [5.0, 0.1]])), [[5.0, -1.0], [5.0, 1.0]]
    )


@pytest.mark.parametrize("key", [None, "other"])
def test_an_unclear_data_set_is_refused_with_the_known_ones(key):
    stats = {"a": {"action": STATS}, "b": {"action": STATS}}
    with pytest.raises(ValueError, match=r"'a'.*'b'"):
        actions.statistics(stats, key, "action")


def test_the_only_data_set_needs_no_name():
    assert actions.statistics({"a": {"action": STATS}}, None, "action") is STATS


def test_a_state_is_clipped_in_the_dimensions_that_are_not_normalised_as_well():
    """As OpenVLA-OFT's own evaluation does: the clip is around the mask."""
    stats = {"q01": [0.0, 0.0], "q99": [2.0, 2.0], "mask": [True, False]}
    normal = actions.normalise(np.array([[1.0, 0.3], [9.0, 9.0], [-9.0, -9.0]]), stats)
    np.testing.assert_allclose(normal, [[0, 0.3], [1, 1], [-1, -1]], atol=1e-7)

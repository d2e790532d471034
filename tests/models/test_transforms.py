"""Raw observations become model inputs by openpi's data rules."""

import numpy as np
import pytest

from mistjax.models.transforms import (
    Cameras,
    DeltaActions,
    delta_mask,
    flat_batch,
    flatten,
    numbers,
    resize_with_pad,
    rgb,
    to_unit,
    words,
)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_pixels_map_to_minus_one_to_one():
    unit = to_unit(np.array([[[0, 255, 51]]], np.uint8))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[[-1, 1, -0.6]]], atol=1e-6)


def test_a_picture_of_the_right_size_is_untouched():
    image = picture(16, 16)
    np.testing.assert_array_equal(resize_with_pad(image, 16, 16), image)


@pytest.mark.parametrize(
    ("shape", "inside"),
    [
        ((20, 40), np.s_[4:12, :]),
        ((40, 20), np.s_[:, 4:12]),
        ((8, 16), np.s_[4:12, :]),
    ],
)
def test_resizing_keeps_the_aspect_and_pads_with_black(shape, inside):
    white = np.full((*shape, 3), 255, np.uint8)
    resized = resize_with_pad(white, 16, 16)
    assert (resized[inside] == 255).all()
    resized[inside] = 0
    assert not resized.any()


def test_resizing_is_linear_between_pixels():
    ramp = np.repeat(np.arange(0, 128, 2, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    small = resize_with_pad(ramp, 32, 32)
    assert np.abs(np.diff(small[16, 2:-2, 0].astype(int)) - 4).max() <= 1


def test_channels_first_pictures_are_transposed():
    image = picture(5, 7)
    np.testing.assert_array_equal(rgb(image.transpose(2, 0, 1)), image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
        np.zeros((4, 4, 3), bool),
        np.full((4, 4, 3), np.nan),
        np.zeros((4, 4, 3), int).tolist(),
        b"JPEG",
        None,
    ],
)
def test_anything_but_a_uint8_picture_is_refused_by_name(image):
    with pytest.raises(ValueError, match=r"wrist is .*expected uint8"):
        rgb(image, "wrist")


def test_a_picture_of_uneven_rows_is_refused_by_name():
    with pytest.raises(ValueError, match="wrist is a list of uneven rows"):
        rgb([[1, 2], [3]], "wrist")


def test_a_strip_of_pixels_is_still_a_picture():
    assert resize_with_pad(picture(1, 500), 16, 16).shape == (16, 16, 3)


@pytest.mark.parametrize("value", [1, True, np.float64(1), [1], np.ones(1, int), np.ones((), "O")])
def test_a_number_is_a_vector_of_one(value):
    vector = numbers(value, "gripper")
    assert vector.dtype == np.float32 and vector.tolist() == [1]


@pytest.mark.parametrize("value", ["1", ["1"], [[1.0]], [[1], [2, 3]], 1j, {}, object(), b"1"])
def test_what_is_no_vector_is_refused_by_name(value):
    with pytest.raises(ValueError, match="gripper is"):
        numbers(value, "gripper")


def test_a_number_beyond_float32_is_not_finite():
    assert numbers([1e300, -1e300, np.nan], "x").tolist()[:2] == [np.inf, -np.inf]


@pytest.mark.parametrize(
    "value",
    ["go", np.str_("go"), np.array("go"), np.array(["go"]), np.array("go", object)],
)
def test_text_is_text_however_numpy_holds_it(value):
    text = words(value)
    assert type(text) is str and text == "go"


@pytest.mark.parametrize(
    "value",
    ["", " \n", "_", b"go", np.bytes_(b"go"), None, 3, ["go"], np.array(["go", "on"]), "\ud83d go"],
)
def test_a_prompt_that_says_nothing_is_refused(value):
    with pytest.raises(ValueError, match="prompt is"):
        words(value)


def test_nested_names_are_the_whole_ones():
    flat = {"observation/image": 1, "observation/state/arm": 2, "prompt": 3}
    assert flatten({"observation": {"image": 1, "state": {"arm": 2}}, "prompt": 3}) == flat
    assert flatten({"observation/image": 1, "observation": {"state/arm": 2}, "prompt": 3}) == flat


def test_an_observation_that_is_none_or_ambiguous_is_refused():
    with pytest.raises(ValueError, match=r"\['a/b'\] twice"):
        flatten({"a/b": 1, "a": {"b": 2}})
    with pytest.raises(ValueError, match=r"the key b'prompt'"):
        flatten({b"prompt": "go"})
    with pytest.raises(ValueError, match="at least one"):
        flat_batch([])


@pytest.mark.parametrize("absent_mask", [False, True])
def test_an_absent_camera_is_black_with_the_mask_of_the_model(absent_mask):
    cameras = Cameras({"base": "front", "wrist": None}, size=8, absent_mask=absent_mask)
    images, masks = cameras({"front": picture(8, 8), "prompt": "go"})
    assert list(images) == ["base", "wrist"]
    assert masks == {"base": True, "wrist": absent_mask}
    assert (images["wrist"] == -1).all()
    np.testing.assert_allclose((images["base"] + 1) / 2 * 255, picture(8, 8), atol=1e-3)


def test_a_missing_picture_is_an_error_that_names_both_keys():
    with pytest.raises(ValueError, match=r"'base' reads 'front'.*has \['prompt'\]"):
        Cameras({"base": "front"}, size=8)({"prompt": "go"})


def test_delta_actions_are_relative_to_the_state_except_the_gripper():
    delta = DeltaActions(delta_mask(2, -1))
    actions = np.arange(8, dtype=np.float32).reshape(2, 4)
    state = np.array([10.0, 20.0, 30.0, 40.0], np.float32)
    relative = actions - np.array([10, 20, 0, 0], np.float32)
    np.testing.assert_array_equal(delta.to_absolute(relative, state), actions)


def test_delta_actions_of_a_batch_use_each_rows_own_state():
    delta = DeltaActions(delta_mask(1))
    actions, state = np.zeros((3, 2, 1), np.float32), np.arange(3, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(delta.to_absolute(actions, state)[:, 1, 0], [0, 1, 2])


def test_libero_and_aloha_masks():
    assert delta_mask(6, -1) == (True,) * 6 + (False,)
    assert delta_mask(6, -1, 6, -1) == ((True,) * 6 + (False,)) * 2


def test_a_mask_wider_than_the_state_is_refused():
    with pytest.raises(ValueError, match="mask has 7 dimensions"):
        DeltaActions(delta_mask(6, -1)).to_absolute(
            np.zeros((2, 7), np.float32), np.zeros(5, np.float32)
        )

"""Start states are read as numbers, whoever wrote the file; nothing in it is ever run."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from mistjax.envs.libero.init_states import read_init_states

STATES = np.random.default_rng(0).normal(size=(3, 7))


def written(path, value, protocol=2, name="archive/data.pkl"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("states", [STATES, np.asfortranarray(STATES)])
def test_states_are_read_bit_for_bit(tmp_path, states, protocol):
    found = read_init_states(written(tmp_path / "a.init", states, protocol))
    assert found.dtype == np.float64 and np.array_equal(found, states)


def test_one_state_alone_is_a_matrix_of_one_row(tmp_path):
    assert np.array_equal(read_init_states(written(tmp_path / "a.init", STATES[0])), STATES[:1])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Evil(), r"posix\.mkdir"),
        ({"states": STATES}, "something other than an array"),
        (STATES.astype(np.float32), "has the type"),
        (STATES[None], "has the shape"),
        (np.array([[None]]), "holds objects"),
        (7, "something other than an array"),
        (np.full((2, 3), np.nan), "not finite"),
    ],
)
def test_anything_but_a_matrix_is_refused_and_not_run(tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_init_states(written(tmp_path / "a.init", value))
    assert not (tmp_path / "hacked").exists()


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "a.init"
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.init is not a zip archive"):
        read_init_states(path)
    with pytest.raises(ValueError, match=r"expected one data\.pkl"):
        read_init_states(written(path, STATES, name="other"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    with pytest.raises(ValueError, match="compressed, which"):
        read_init_states(path)
    archive = written(path, STATES).read_bytes()  # said to be on several disks
    path.write_bytes(archive[:-22] + b"PK\x06\x07" + b"\xff" * 16 + archive[-22:])
    with pytest.raises(ValueError, match=r"a\.init is not a plain float64 matrix"):
        read_init_states(path)
    whole = pickle.dumps(STATES, 2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a plain float64 matrix"):
        read_init_states(path)


def test_numpy_archives_are_read_as_published(tmp_path):
    np.savez_compressed(tmp_path / "a.pruned_init.npz", states=STATES)
    np.testing.assert_array_equal(read_init_states(tmp_path / "a.pruned_init.npz"), STATES)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": STATES}, "expected one array, states"),
        ({"states": STATES, "more": STATES}, "expected one array, states"),
        ({"states": STATES.astype(np.float32)}, "type float32, expected float64"),
        ({"states": STATES[None]}, "expected states and their size"),
        ({"states": STATES * np.nan}, "not finite"),
        ({"states": np.array([None])}, "allow_pickle=False"),
    ],
)
def test_another_numpy_archive_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_init_states(tmp_path / "a.npz")

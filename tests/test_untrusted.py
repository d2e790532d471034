"""What lies under the name of a file is named as what it is."""

import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest

from mistjax.files import read_json, read_tensors
from mistjax.pickled import PickleRefused
from mistjax.untrusted import open_file, read_npz, read_text, reading

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


def safetensors(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("read", [read_text, read_json, read_tensors])
def test_a_missing_file_a_folder_a_pointer_and_a_web_page_are_named(read, tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        read(path)
    for content, said in ((POINTER, "Git LFS pointer"), (b"\n<!DOCTYPE html>", "web page")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"config\.json is a {said}"):
            read(path)
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        safetensors([]),
        safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        safetensors({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        safetensors({"a": {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}}),
        safetensors({"a": {"dtype": "O8", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
        safetensors({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1)),
        safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
    ],
)
def test_a_safetensors_file_that_says_what_it_does_not_hold_is_refused(content, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors is not safetensors"):
        read_tensors(path)


def test_a_byte_that_is_no_truth_value_becomes_one(tmp_path):
    path = tmp_path / "a.safetensors"
    entry = {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]}
    path.write_bytes(safetensors({"a": entry}, b"\x00\x02\xff"))
    assert read_tensors(path)["a"].view(np.uint8).tolist() == [0, 1, 1]


def npz(path, *members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, shape, kind, data in members:
            file = io.BytesIO()
            header = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            archive.writestr(f"{name}.npy", file.getvalue() + data)
    return path


@pytest.mark.parametrize(
    "member",
    [
        ("a", (2**40,), "<f8", b""),
        ("a", (3,), "<f8", bytes(8)),
        ("a", (1,), "<f8", bytes(800)),
        ("a", (0, 2**40), "<f8", b""),
        ("a", (1,), "|O", bytes(8)),
    ],
)
def test_an_npz_member_that_says_what_it_does_not_hold_is_refused(member, tmp_path):
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_npz(npz(tmp_path / "a.npz", member))


def test_an_npz_file_comes_back_and_its_pickles_do_not(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(True), "c": np.array(["x"])}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    np.testing.assert_equal(read_npz(tmp_path / "a.npz"), arrays)
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz")
    bad = read_npz(npz(tmp_path / "a.npz", ("a", (2,), "|b1", b"\x02\xff")))
    assert bad["a"].view(np.uint8).tolist() == [1, 1]


def test_links_devices_and_folders_are_not_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("pipe", "not a regular file"),
        ("", "not a regular file"),
    ):
        with pytest.raises(ValueError, match=said):
            open_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_file(tmp_path / "other")
    with open_file(tmp_path / "file") as file:
        assert file.read() == b"x"


def test_what_goes_wrong_while_reading_names_the_file_and_errors_that_say_more_remain():
    for raised, kind, said in (
        (KeyError("version"), ValueError, "a.json is not a card .KeyError: 'version'"),
        (ValueError("too long"), ValueError, "a.json: too long"),
        (PickleRefused("other"), PickleRefused, "a.json: other"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "no"), ValueError, "a.json: 'utf-8' codec"),
        (FileNotFoundError("no file"), FileNotFoundError, "no file"),
    ):
        with pytest.raises(kind, match=said), reading("a.json", "a card"):
            raise raised

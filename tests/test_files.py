"""Files are whole or absent, alone and together, whenever the process that writes them dies."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save

from mistjax.files import atomic, load_together, read_json, read_tensors, save_together

SAVER = "import os, pathlib; from mistjax.files import *; path = pathlib.Path(os.environ['INDEX'])"
OLD, NEW = ({"value": 1}, {"a.bin": b"old"}), ({"value": 2}, {"a.bin": b"newer"})


def write(path, text):
    with atomic(path) as temporary:
        temporary.write_text(text)


def test_a_write_that_dies_leaves_what_was_there(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic(target) as temporary:
        temporary.write_text("ne")
        raise OSError("disk full")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_one_file_is_the_old_or_the_new_one_whenever_its_writer_dies(tmp_path, kill_at_every_call):
    target, seen = tmp_path / "file", set()
    target.write_text("old")
    for _ in kill_at_every_call(lambda: write(target, "newer")):
        seen.add(target.read_text())
        target.write_text("old")
    assert seen == {"old", "newer"}
    assert target.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [target], "leftovers go with the next write"


def test_a_folder_appears_whole(tmp_path, kill_at_every_call):
    target = tmp_path / "folder"

    def make():
        with atomic(target) as temporary:
            temporary.mkdir()
            (temporary / "a").write_text("one")
            (temporary / "b").write_text("two")

    for _ in kill_at_every_call(make):
        if target.exists():
            assert sorted(f.read_text() for f in target.iterdir()) == ["one", "two"]
            target.rename(tmp_path / "moved")
    assert sorted(f.read_text() for f in target.iterdir()) == ["one", "two"]
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


@pytest.mark.parametrize("digests", [True, False], ids=["of this format", "from before"])
def test_files_that_belong_together_are_all_old_or_all_new(tmp_path, kill_at_every_call, digests):
    index, seen = tmp_path / "made" / "index.json", []

    def back():
        save_together(index, *OLD)
        if not digests:
            index.write_text('{"value": 1}')

    back()
    for _ in kill_at_every_call(lambda: save_together(index, *NEW)):
        seen.append(load_together(index, ["a.bin"]))
        assert seen[-1] in (OLD, NEW)
        back()
    assert OLD in seen and NEW in seen
    assert load_together(index, ["a.bin"]) == NEW
    assert sorted(f.name for f in index.parent.iterdir()) == ["a.bin", "index.json"]


def test_a_first_save_that_dies_leaves_nothing_that_loads(tmp_path, kill_at_every_call):
    index, loaded = tmp_path / "made" / "index.json", []
    for _ in kill_at_every_call(lambda: save_together(index, *NEW)):
        try:
            assert load_together(index, ["a.bin"]) == NEW
            loaded.append(True)
        except FileNotFoundError:
            loaded.append(False)
        for file in index.parent.glob("*.*") if index.parent.exists() else ():
            file.unlink()
    assert loaded == sorted(loaded) and True in loaded and False in loaded


def test_two_saves_of_one_artefact_leave_one_of_the_two(tmp_path):
    index = tmp_path / "index.json"
    save_together(index, *OLD)
    savers = [
        subprocess.Popen(
            [sys.executable, "-c", f"{SAVER}\nfor _ in range(50): save_together(path, *{made})"],
            env={**os.environ, "INDEX": str(index)},
        )
        for made in (OLD, NEW)
    ]
    while any(saver.poll() is None for saver in savers):
        assert load_together(index, ["a.bin"]) in (OLD, NEW)
    assert [saver.wait() for saver in savers] == [0, 0]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.bin", "index.json"]


def test_a_companion_from_elsewhere_is_refused(tmp_path):
    index = tmp_path / "index.json"
    save_together(index, *NEW)
    (tmp_path / "a.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"a\.bin is not the file that index\.json was saved with"):
        load_together(index, ["a.bin"])
    (tmp_path / "a.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.bin is missing"):
        load_together(index, ["a.bin"])
    index.write_text('{"files": {"../a.bin": "0"}}')
    with pytest.raises(ValueError, match="does not name its files"):
        load_together(index, ["a.bin"])


def test_a_full_disk_is_told_with_the_files_name(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for saved in (lambda: write(tmp_path / "f", "x"), lambda: save_together(tmp_path / "f", *NEW)):
        with pytest.raises(OSError, match="No space left on device") as told:
            saved()
        assert told.value.filename == str(tmp_path / "f")
        assert not list(tmp_path.iterdir())


NOT_JSON = {
    "empty": (b"", "is empty"),
    "cut off": (b'{"a": [1, 2', "was cut off"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
    "UTF-8 with a mark": (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "byte order mark"),
    "binary": (b"\x80\x04\x95", "not text in UTF-8"),
    "nested": (b"[" * 100_000, "is not JSON"),
    "a list": (b"[1]", "expected an object"),
    "NaN": (b'{"a": NaN}', "NaN, which is not a finite number"),
    "infinite": (b'{"a": 1e999}', "1e999, which is not a finite number"),
    "a huge number": (b'{"a": ' + b"9" * 10_000 + b"}", "is not JSON"),
}


@pytest.mark.parametrize("content, told", NOT_JSON.values(), ids=NOT_JSON)
def test_a_json_file_that_is_none_is_named(tmp_path, content, told):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=told) as refused:
        read_json(tmp_path / "config.json")
    assert str(refused.value).startswith(str(tmp_path / "config.json"))
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


def test_a_tensor_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "arrays.safetensors"
    whole = save({"a": np.arange(6.0)})
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_tensors(path)["a"], np.arange(6.0))
    for content in (b"", whole[:4], whole[:-1], b"\xff" * 64, NOT_JSON["a Git LFS pointer"][0]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"arrays\.safetensors is"):
            read_tensors(path)

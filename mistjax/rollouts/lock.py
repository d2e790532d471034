"""`FolderLock`: one writer of a run folder at a time.

The lock is the kernel's (`flock` on `run.lock` in the folder), so it ends with the process that
holds it, however that ends. What the file says is who that is. Between machines that share a disk
the kernel's word may not reach, so a lock of another machine is refused, and never taken over.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import platform
import sys
from pathlib import Path

from tqdm import tqdm

NAME = "run.lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class FolderBusyError(BlockingIOError):
    """Somebody else writes to the folder; says who, and since when."""


class FolderLock:
    """A lock that is held. Use `FolderLock.take`."""

    def __init__(self, folder: Path, handle: int, made: bool):
        self._folder, self._handle, self._made = folder, handle, made

    @classmethod
    def take(cls, folder: Path) -> FolderLock:
        """Locks a folder, which is made if there is none. A lock whose owner died is taken over,
        and that is told on stderr.

        Raises:
            FolderBusyError: another process of this machine writes there, or one of another machine
                did and may still.
            OSError: the folder cannot be made.
        """
        path = folder / NAME
        while True:
            made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # who had made the folder has just removed it
                continue
            try:
                _lock(folder, path, handle)
                if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                    _sign(handle)
                    return cls(folder, handle, made)
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # its owner has just removed the file

    def release(self) -> None:
        """Unlocks the folder; one that was made for this lock and is empty goes with it."""
        (self._folder / NAME).unlink(missing_ok=True)
        os.close(self._handle)
        if self._made:
            with contextlib.suppress(OSError):
                self._folder.rmdir()


def _lock(folder: Path, path: Path, handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _owner(handle)
        who = f"process {owner['pid']} since {owner['since']}" if owner else "another process"
        raise FolderBusyError(f"{folder} is being written to by {who}: wait for its end.") from None
    if (owner := _owner(handle)) is None:
        return
    if platform.node() != owner["host"] and _boot() != owner["boot"]:
        raise FolderBusyError(
            f"{folder} was being written to by process {owner['pid']} of {owner['host']} since "
            f"{owner['since']}: if it has ended, remove {path}."
        )
    message = f"{folder}: process {owner['pid']} died while it wrote there since {owner['since']}"
    tqdm.write(f"{message}; going on in its place", file=sys.stderr)


def _owner(handle: int) -> dict[str, str] | None:
    """What the file says; None where it says nothing."""
    try:
        said = json.loads(os.pread(handle, 4096, 0))
        return {name: str(said[name]) for name in ("pid", "host", "boot", "since")}
    except (ValueError, TypeError, KeyError):
        return None


def _sign(handle: int) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    owner = {"pid": os.getpid(), "host": platform.node(), "boot": _boot(), "since": now}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(owner).encode(), 0)


def _boot() -> str:
    """Names the running kernel: the same in all its containers, another after a reboot."""
    return _BOOT.read_text().strip() if _BOOT.exists() else ""

"""Checkpoints from where they are published: a folder, a Google bucket, or the Hugging Face hub.

    fetch("checkpoints/board_pi0")                                 a folder stays where it is
    fetch("gs://openpi-assets/checkpoints/pi05_libero")            into openpi's own cache
    fetch("hf://OWNER/REPOSITORY@REVISION/FOLDER")                 a commit or a tag; never a branch

A download goes into `.NAME.partial` beside its final place, which it gets by a rename when every
byte has been checked: a folder that exists is complete. An interrupted download resumes where it
stopped, unless what is published has changed since. What was downloaded, and which commit a tag
stood for, is in `.NAME.source.json` beside the folder.

Cost: pi0 is 12 GB in float32. Needs the extra `mistjax[download]`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

BLOCK = 2**24
IGNORED = ("*.py", "*.pt", "*.pth", "*.bin", "*.pkl", "*.ckpt")  # code and pickles are not read
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@]+))?(/(?P<folder>.+))?")


def fetch(source: str | Path) -> Path:
    """The local folder (or file) of a checkpoint, downloaded if need be.

    Args:
        source: see the module. `gs://` uses `$GOOGLE_APPLICATION_CREDENTIALS` if set, and
            otherwise no credentials; the caches are `$OPENPI_DATA_HOME` (~/.cache/openpi) and, for
            the hub, `$MISTJAX_CACHE` (~/.cache/mistjax).

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: an unknown scheme, a hub source without a commit or tag, or a download that
            does not have the published checksum.
        ConnectionError: the download broke off; the same call resumes it.
        ImportError: the extra is not installed.
    """
    text = str(source)
    if not text.strip() or source == Path():
        raise ValueError("the source of a checkpoint is empty: expected a folder, gs:// or hf://.")
    if text.startswith("gs://"):
        return _from_bucket(text.rstrip("/"))
    if text.startswith("hf://"):
        return _from_hub(text.rstrip("/"))
    if "://" in text:
        raise ValueError(f"{text}: expected a folder, gs://BUCKET/PATH or hf://OWNER/REPO@COMMIT.")
    if not Path(source).exists():
        raise FileNotFoundError(f"{text} does not exist: expected a checkpoint folder.")
    return Path(source)


def _from_bucket(source: str) -> Path:
    """A folder or file of a Google bucket; the place in the cache is where openpi puts it."""
    key = PurePosixPath(source.removeprefix("gs://"))
    cache = Path(os.environ.get("OPENPI_DATA_HOME") or Path.home() / ".cache" / "openpi")
    if len(key.parts) < 2 or not _stays_inside(str(key)):
        raise ValueError(f"{source}: expected gs://BUCKET/PATH.")
    target = cache.expanduser() / key
    if target.exists():
        return target
    system, files = _bucket_files(source)

    def fill(partial: Path) -> None:
        for name, info in sorted(files.items()):
            _copy(system, f"{key}/{name}".rstrip("/"), info, partial / (name or target.name))

    _download(source, target, files, fill, one_file=set(files) == {""})
    return target


def _bucket_files(source: str) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The file system, and size and checksums of each file by its path below the source ("" if the
    source is a file itself)."""
    try:
        from gcsfs.core import GCSFileSystem  # the plain API; the default one tries gRPC first
    except ImportError as error:
        raise ImportError(f"{source} needs gcsfs: pip install 'mistjax[download]'.") from error

    token = "google_default" if "GOOGLE_APPLICATION_CREDENTIALS" in os.environ else "anon"
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST")
    system = GCSFileSystem(token=token, endpoint_url=endpoint, skip_instance_cache=True)
    root = source.removeprefix("gs://")
    with _connection(source):
        found: Any = system.find(root, detail=True)
    files = {
        path.removeprefix(root).lstrip("/"): _identity(info)
        for path, info in found.items()
        if not path.endswith("/")
    }
    if not files:
        raise FileNotFoundError(f"{source} does not exist, or is not public.")
    if bad := [name for name in files if name and not _stays_inside(name)]:
        raise ValueError(f"{source} holds files outside itself: {bad[0]!r}.")
    return system, files


def _stays_inside(name: str) -> bool:
    """Whether a name from elsewhere leads to a file below the folder that it is joined to."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.name.isprintable()


def _identity(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a file is known by."""
    known = {"size": int(info["size"])}
    return known | {n: info[n] for n in ("generation", "md5Hash", "crc32c") if n in info}


def _copy(system: Any, source: str, info: Mapping[str, Any], path: Path) -> None:
    """Downloads the rest of a file and checks it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as out:
        while (have := out.tell()) < info["size"]:
            with _connection(source):
                block = system.cat_file(source, start=have, end=min(have + BLOCK, info["size"]))
            if not block:
                raise ConnectionError(f"{source} broke off after {have} bytes.")
            out.write(block)
    if path.stat().st_size != info["size"] or not _has_checksum(path, info):
        path.unlink()
        raise ValueError(
            f"{source} does not have the published checksum; it was removed, so the same call "
            "downloads it again."
        )


def _has_checksum(path: Path, info: Mapping[str, Any]) -> bool:
    if "md5Hash" in info:
        digest, expected = hashlib.md5(usedforsecurity=False), info["md5Hash"]
    elif "crc32c" in info:  # objects that were uploaded in parts have no MD5
        import google_crc32c

        digest, expected = google_crc32c.Checksum(), info["crc32c"]
    else:
        raise ValueError(f"{path.name} was published without a checksum: it cannot be checked.")
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode() == expected


def _from_hub(source: str) -> Path:
    """A repository, or a folder of one, at a commit."""
    match = _HUB.fullmatch(source)
    if match is None:
        raise ValueError(f"{source}: expected hf://OWNER/REPOSITORY@COMMIT or .../FOLDER after it.")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f"{source} needs the hub: pip install 'mistjax[download]'.") from error

    repo, folder = match["repo"], match["folder"]
    if not _stays_inside(repo) or (folder is not None and not _stays_inside(folder)):
        raise ValueError(f"{source}: neither a repository nor a folder of it can contain '..'.")
    endpoint = os.environ.get("HF_ENDPOINT")
    api = huggingface_hub.HfApi(endpoint=endpoint)
    commit = _commit(api, source, repo, match["revision"])
    cache = Path(os.environ.get("MISTJAX_CACHE") or Path.home() / ".cache" / "mistjax").expanduser()
    target = cache / "hf" / f"{repo}@{commit}"
    if folder is not None:  # its own download: another folder may follow
        target = target.with_name(f"{target.name}--{folder.replace('/', '--')}")

    def fill(partial: Path) -> None:
        with _connection(source):
            huggingface_hub.snapshot_download(
                repo,
                revision=commit,
                local_dir=partial,
                allow_patterns=None if folder is None else f"{folder}/**",
                ignore_patterns=list(IGNORED),
                endpoint=endpoint,
            )
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        with _connection(source):
            listed = api.list_repo_tree(repo, revision=commit, recursive=True)
            _check_hub(source, partial, {item.path: item for item in listed})
        if not any(partial.iterdir()):
            raise FileNotFoundError(f"{source} holds no file that is read.")

    _download(source, target, {"commit": commit}, fill)
    return target if folder is None else target / folder


def _check_hub(source: str, folder: Path, published: Mapping[str, Any]) -> None:
    """ValueError where a file is not the published one, by its SHA-256 or Git's hash of it; it is
    removed, so that the same call downloads it again."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        about, size = published.get(name), path.stat().st_size
        large = getattr(about, "lfs", None)
        digest = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % size)
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        expected = large.sha256 if large else getattr(about, "blob_id", None)
        if path.is_symlink() or digest.hexdigest() != expected:
            path.unlink()
            raise ValueError(
                f"{source}: {name} does not have the published hash; it was removed, so the "
                "same call downloads it again."
            )


def _commit(api: Any, source: str, repo: str, revision: str | None) -> str:
    """The commit of a revision; a branch is refused, since it may be another policy tomorrow."""
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    with _connection(source):
        refs = api.list_repo_refs(repo)
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if revision in tags:
        return tags[revision]
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    name = revision or "main"
    if name in branches:
        raise ValueError(
            f"{source} names the branch {name!r}, which can change: pin it, "
            f"hf://{repo}@{branches[name]} is what it is now."
        )
    raise FileNotFoundError(
        f"{source}: no commit or tag {revision!r}; expected a commit of 40 digits or one of the "
        f"tags {sorted(tags)}."
    )


def _download(
    source: str,
    target: Path,
    contents: Mapping[str, Any],
    fill: Callable[[Path], None],
    *,
    one_file: bool = False,
) -> None:
    """Lets `fill` complete a folder, or a folder with `target.name` in it, which becomes `target`.

    One process at a time; another one that waited finds `target` there.
    """
    from filelock import FileLock

    partial = target.with_name(f".{target.name}.partial")
    record = target.with_name(f".{target.name}.source.json")
    about = json.dumps({"source": source, "contents": contents}, indent=2, sort_keys=True) + "\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.exists():
            return
        if not record.exists() or record.read_text() != about:
            shutil.rmtree(partial, ignore_errors=True)
            record.write_text(about)
        partial.mkdir(exist_ok=True)
        fill(partial)
        (partial / target.name if one_file else partial).replace(target)
        if one_file:
            partial.rmdir()


@contextlib.contextmanager
def _connection(source: str) -> Iterator[None]:
    """Network errors of any library as a ConnectionError; what is not there as itself."""
    try:
        yield
    except (FileNotFoundError, ValueError, ConnectionError):
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise FileNotFoundError(f"{source} does not exist, or is not public.") from error
        raise ConnectionError(
            f"{source} broke off ({type(error).__name__}: {error}); the same call resumes it."
        ) from error

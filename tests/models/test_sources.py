"""Downloads from servers on this machine that speak the bucket's and the hub's protocols."""

import base64
import gc
import hashlib
import json
import os
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mistjax.models import sources
from mistjax.models.sources import fetch

COMMIT, OTHER = "a" * 40, "b" * 40
BUCKET = "openpi-assets"
ROOT = "checkpoints/pi05_libero"
FILES = {
    f"{ROOT}/params/_METADATA": b"{}",
    f"{ROOT}/params/d/weights": bytes(range(256)) * 40,
    f"{ROOT}/assets/physical-intelligence/libero/norm_stats.json": b'{"norm_stats": {}}',
}
HUB = {
    "config.json": b"{}",
    "params/d/weights": bytes(range(256)) * 40,
    "assets/fast/tokenizer.json": b"[]",
    "evil.py": b"raise SystemExit",
    "weights.pkl": b"no",
}


def git_hash(body):
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Server(ThreadingHTTPServer):
    """A bucket and a hub; `breaks_at` ends a body early, `corrupt` swaps its first byte."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bucket, self.hub = dict(FILES), dict(HUB)
        self.breaks_at, self.corrupt, self.sent, self.requests = None, False, 0, []
        self.redirect = None
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.requests.append(self.path)
        url = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(url.path), urllib.parse.parse_qs(url.query)
        if "/storage/v1/b/" in path:
            return self.bucket(path, query)
        return self.hub(path)

    def bucket(self, path, query):
        if path.endswith("/o"):
            prefix = query.get("prefix", [""])[0]
            items = [self.item(name) for name in self.server.bucket if name.startswith(prefix)]
            return self.json({"kind": "storage#objects", "items": items})
        if "/o/" not in path:
            return self.json({"name": BUCKET})
        name = path.split("/o/")[1]
        if name not in self.server.bucket:
            return self.missing()
        if "alt" in query and self.server.redirect:
            return self.reply(302, b"", {"Location": self.server.redirect})
        if "alt" in query:
            return self.content(self.server.bucket[name])
        return self.json(self.item(name))

    def item(self, name):
        body = self.server.bucket[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": BUCKET,
            "size": str(len(body)),
            "generation": str(hash(body)),
            "md5Hash": base64.b64encode(hashlib.md5(body).digest()).decode(),
        }

    def hub(self, path):
        if path.endswith("/refs"):
            branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
            tag = {"name": "v1", "ref": "refs/tags/v1", "targetCommit": COMMIT}
            return self.json({"branches": [branch], "tags": [tag], "converts": []})
        if path.startswith("/api/models/someone/policy/revision/"):
            files = [{"rfilename": name} for name in self.server.hub]
            return self.json({"id": "someone/policy", "sha": COMMIT, "siblings": files})
        if path.startswith("/api/models/someone/policy/tree/"):
            rows = [
                {"type": "file", "path": n, "size": len(b), "oid": git_hash(b)}
                for n, b in self.server.hub.items()
            ]
            return self.json(rows)
        if path.startswith(f"/someone/policy/resolve/{COMMIT}/"):
            body = self.server.hub[path.split(f"{COMMIT}/")[1]]
            if self.server.redirect:
                return self.reply(302, b"", {"Location": self.server.redirect})
            tags = {"ETag": f'"{git_hash(body)}"', "X-Repo-Commit": COMMIT}
            return self.content(body, tags)
        return self.missing()

    def json(self, value):
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def missing(self):
        self.reply(404, b'{"error": "not found"}', {"X-Error-Code": "RepoNotFound"})

    def content(self, body, headers=None):
        headers, status = dict(headers or {}), 200
        if self.server.corrupt:
            body = b"?" + body[1:]
        if wanted := self.headers.get("Range"):
            start, end = wanted.removeprefix("bytes=").split("-")
            start, end = int(start), min(int(end or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            body, status = body[start : end + 1], 206
        self.reply(status, body, headers)

    def reply(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        weights = "weights" in self.path and status in (200, 206) and "json" not in str(headers)
        stop = self.server.breaks_at
        if weights and stop is not None and self.server.sent + len(body) > stop:
            body = body[: max(0, stop - self.server.sent)]
            self.close_connection = True
        self.wfile.write(body)
        self.server.sent += len(body) * weights


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path / "openpi"))
    monkeypatch.setenv("MISTJAX_CACHE", str(tmp_path / "mistjax"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("gcsfs.retry.min", lambda *_: 0.01, raising=False)  # between retries
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    yield server
    server.shutdown()
    server.server_close()
    gc.collect()


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


BELOW_ROOT = {name.removeprefix(f"{ROOT}/"): body for name, body in FILES.items()}


def test_a_folder_stays_where_it_is(tmp_path):
    assert fetch(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="does not exist: expected a checkpoint folder"):
        fetch(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected a folder, gs://"):
        fetch("s3://bucket/policy")


def test_a_bucket_is_downloaded_once_into_openpis_cache(server, tmp_path):
    folder = fetch(f"gs://{BUCKET}/{ROOT}")
    assert folder == tmp_path / "openpi" / BUCKET / ROOT
    assert contents(folder) == BELOW_ROOT
    about = json.loads((folder.parent / ".pi05_libero.source.json").read_text())
    assert about["source"] == f"gs://{BUCKET}/{ROOT}" and set(about["contents"]) == set(BELOW_ROOT)
    asked = len(server.requests)
    assert fetch(f"gs://{BUCKET}/{ROOT}/") == folder
    assert len(server.requests) == asked


def test_a_single_file_of_a_bucket(server, tmp_path):
    server.bucket["words.model"] = b"tokens"
    path = fetch(f"gs://{BUCKET}/words.model")
    assert path == tmp_path / "openpi" / BUCKET / "words.model" and path.read_bytes() == b"tokens"


def test_an_interrupted_download_goes_on_where_it_stopped(server, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 2000)
    server.breaks_at = 5000
    with pytest.raises(ConnectionError, match="the same call resumes it"):
        fetch(f"gs://{BUCKET}/{ROOT}")
    target = Path(os.environ["OPENPI_DATA_HOME"]) / BUCKET / ROOT
    assert not target.exists()
    kept = (target.parent / ".pi05_libero.partial" / "params/d/weights").stat().st_size
    assert kept == 4000  # whole blocks
    server.breaks_at, before = None, server.sent
    assert contents(fetch(f"gs://{BUCKET}/{ROOT}")) == BELOW_ROOT
    assert server.sent - before == len(FILES[f"{ROOT}/params/d/weights"]) - kept
    assert not (target.parent / ".pi05_libero.partial").exists()


def test_an_interrupted_download_of_something_else_since_starts_anew(server, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 2000)
    server.breaks_at = 5000
    with pytest.raises(ConnectionError):
        fetch(f"gs://{BUCKET}/{ROOT}")
    server.breaks_at = None
    server.bucket[f"{ROOT}/params/d/weights"] = new = bytes(range(256))[::-1] * 40
    folder = fetch(f"gs://{BUCKET}/{ROOT}")
    assert (folder / "params/d/weights").read_bytes() == new


def test_bytes_that_are_not_those_published_are_refused(server):
    server.corrupt = True
    with pytest.raises(ValueError, match="does not have the published checksum"):
        fetch(f"gs://{BUCKET}/{ROOT}")
    server.corrupt = False
    assert contents(fetch(f"gs://{BUCKET}/{ROOT}")) == BELOW_ROOT


def test_what_a_bucket_does_not_have_is_named(server):
    with pytest.raises(
        FileNotFoundError, match=r"gs://openpi-assets/checkpoints/pi9 does not exist"
    ):
        fetch(f"gs://{BUCKET}/checkpoints/pi9")
    server.bucket = {f"{ROOT}/../../escape": b"x"}
    with pytest.raises(ValueError, match="files outside itself"):
        fetch(f"gs://{BUCKET}/{ROOT}")


@pytest.mark.parametrize(
    "source",
    [
        "gs:///etc/passwd",
        "gs://bucket/../../../../../../../../etc/passwd",
        f"hf://../..@{COMMIT}",
        f"hf://someone/policy@{COMMIT}//etc",
        f"hf://someone/policy@{COMMIT}/../../x",
    ],
)
def test_no_name_leads_out_of_the_cache(server, source):
    with pytest.raises(ValueError, match=r"expected gs://BUCKET/PATH|can contain"):
        fetch(source)


def test_a_file_of_the_hub_with_another_hash_is_refused(server):
    server.corrupt = True
    with pytest.raises(ValueError, match="does not have the published hash"):
        fetch(f"hf://someone/policy@{COMMIT}")
    server.corrupt = False
    assert (fetch(f"hf://someone/policy@{COMMIT}") / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("source", [f"gs://{BUCKET}/{ROOT}", f"hf://someone/policy@{COMMIT}"])
def test_no_server_sends_to_a_file_of_this_machine(server, source, tmp_path):
    (tmp_path / "secret").write_bytes(b"{}")
    server.redirect = (tmp_path / "secret").as_uri()
    with pytest.raises((ConnectionError, ValueError, FileNotFoundError)):
        fetch(source)
    server.redirect = None
    assert fetch(source).is_dir()


@pytest.mark.parametrize("revision", [COMMIT, "v1"])
def test_the_hub_is_read_at_a_commit_or_a_tag(server, tmp_path, revision):
    folder = fetch(f"hf://someone/policy@{revision}")
    assert folder == tmp_path / "mistjax" / "hf" / "someone" / f"policy@{COMMIT}"
    assert contents(folder) == {n: b for n, b in HUB.items() if not n.endswith((".py", ".pkl"))}
    about = json.loads((folder.parent / f".policy@{COMMIT}.source.json").read_text())
    assert about == {"source": f"hf://someone/policy@{revision}", "contents": {"commit": COMMIT}}


def test_a_folder_of_the_hub(server):
    folder = fetch(f"hf://someone/policy@{COMMIT}/assets/fast")
    assert contents(folder) == {"tokenizer.json": b"[]"}


def test_a_revision_that_can_change_is_refused(server):
    for source in ("hf://someone/policy", "hf://someone/policy@main"):
        with pytest.raises(ValueError, match=f"can change: pin it, hf://someone/policy@{COMMIT}"):
            fetch(source)
    with pytest.raises(FileNotFoundError, match=r"no commit or tag 'v2'.*\['v1'\]"):
        fetch("hf://someone/policy@v2")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fetch("hf://someone/else@v1")
    with pytest.raises(ValueError, match="expected hf://OWNER/REPOSITORY@COMMIT"):
        fetch("hf://policy")


def test_an_interrupted_hub_download_leaves_nothing_that_looks_complete(server, monkeypatch):
    server.breaks_at = 5000
    with pytest.raises(ConnectionError, match="the same call resumes it"):
        fetch(f"hf://someone/policy@{COMMIT}")
    target = Path(os.environ["MISTJAX_CACHE"]) / "hf" / "someone" / f"policy@{COMMIT}"
    assert not target.exists()
    server.breaks_at = None
    assert (fetch(f"hf://someone/policy@{COMMIT}") / "params/d/weights").exists()


def test_a_published_checkpoint_becomes_a_policy(server, tmp_path, pi_variables, monkeypatch):
    """In openpi's layout: no config.json, no tokenizer, one path element more under every leaf."""
    import dataclasses

    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from mistjax.models.config import TINY
    from mistjax.models.normalize import NormStats, save_norm_stats
    from mistjax.models.tokenizers import train_word_tokenizer
    from mistjax.policies import PRESETS
    from mistjax.policies.load import load_policy

    config = dataclasses.replace(TINY, action_dim=32, action_horizon=10, pi05=True)
    preset = dataclasses.replace(PRESETS["pi05_libero"], model=config)
    monkeypatch.setitem(PRESETS, preset.name, preset)
    params = pi_variables(config)["params"]
    stored = jax.tree.map(lambda leaf: {"value": np.asarray(leaf)}, params)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "published" / "params", {"params": stored})
    ones = {n: np.ones(n, np.float32) for n in (7, 8)}
    stats = {k: NormStats(0 * ones[n], ones[n], -ones[n], ones[n]) for k, n in SIZES.items()}
    asset = tmp_path / "published" / "assets" / preset.asset_id
    save_norm_stats(asset / "norm_stats.json", stats)
    server.bucket = {f"{ROOT}/{n}": b for n, b in contents(tmp_path / "published").items()}
    words = tmp_path / "words.model"
    train_word_tokenizer(["put the bowl on the plate"], [], words)
    server.bucket["paligemma_tokenizer.model"] = words.read_bytes()

    source = f"gs://{BUCKET}/{ROOT}"
    policy = load_policy(source)  # its name says the preset
    assert policy.name == "pi05_libero" and policy.config == config
    assert policy.spec.action_horizon == 10 and len(policy.spec.fingerprint) == 64
    jax.tree.map(np.testing.assert_array_equal, policy.variables["params"], params)


SIZES = {"state": 8, "actions": 7}

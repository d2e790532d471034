"""A served episode in Rerun: in files, and in a viewer that saves what it gets."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

rr = pytest.importorskip("rerun")
from tests.report.test_rerun import columns, one  # noqa: E402 (it needs Rerun, too)


def played(client, look):
    """Two episodes: five looks, the fourth and fifth alarm; then one."""
    replies = [client.infer(look(0.1 * i)) for i in range(5)]
    client.infer(look(**{"mist/reset": True}))
    return replies


def seen_in(file, replies):
    """Asserts what a recording of the first episode holds."""
    found = columns(file)
    scores = np.ravel(one(found, "/monitor/failure_score/score", "scalars"))
    assert [*scores] == [reply["mist/score"] for reply in replies]
    executed = np.ravel(one(found, "/actions/dx/executed", "scalars"))
    np.testing.assert_allclose(executed, np.ravel([r["actions"][:4, 0] for r in replies]))
    states = np.ravel(one(found, "/monitor/state", "state"))
    assert [*states] == ["watching"] * 3 + ["ALARM"] * 2
    said = str(one(found, "/said", "text"))
    assert "\u201cgo\u201d" in said and "above 3" in said
    assert len(one(found, "/cameras/front", "buffer")) == 5


def listens(port):
    with socket.socket() as found:
        return not found.connect_ex(("127.0.0.1", port))


def test_every_episode_becomes_a_file(run, look, tmp_path):
    with run(rerun=str(tmp_path / "rrd")) as up, up.client() as client:
        replies = played(client, look)
    first, second = sorted((tmp_path / "rrd").iterdir())
    assert first.name.endswith("-000000.rrd") and second.name.endswith("-000001.rrd")
    seen_in(first, replies)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:RRD file has no footer")
def test_a_viewer_shows_it_as_it_happens(run, look, tmp_path, until):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    viewer = shutil.which("rerun", path=Path(sys.executable).parent)
    assert viewer is not None
    file = tmp_path / "seen.rrd"
    words = [viewer, "--save", str(file), "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port), seconds=20)
        with run(rerun=f"rerun+http://127.0.0.1:{port}/proxy") as up, up.client() as client:
            replies = [client.infer(look(0.1 * i)) for i in range(5)]
        until(lambda: file.stat().st_size > 10_000, seconds=20)
    finally:
        process.terminate()
        process.wait(20)
    seen_in(file, replies)


@pytest.mark.slow
def test_a_viewer_that_is_not_there_delays_nothing(run, look):
    with run(rerun="rerun+http://127.0.0.1:9/proxy") as up, up.client() as client:
        for i in range(100):
            assert not client.infer(look(0.01 * i))["mist/late"]

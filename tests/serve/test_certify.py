"""A certificate says what is, also where a promise is broken."""

import asyncio
import json

import numpy as np
import pytest

from mistjax import cli
from mistjax.demo import MIST, POLICY
from mistjax.serve.certify import certify, read_observations
from mistjax.serve.service import Service
from mistjax.serve.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(out=tmp_path / "out", max_batch=1, deadline_ms=300.0, watchdog_ms=600.0)


def tried(bare, monitored, settings, look, **options):
    seen = [look(0.1 * i) for i in range(4)]
    options = {"requests": 5, "slack_ms": 1000.0, "observations": seen, **options}
    return certify(bare, monitored, settings, **options)


@pytest.mark.slow
def test_a_server_that_keeps_its_promises(make_toy, settings, look):
    made = tried(make_toy(), make_toy(watched=True), settings, look)
    assert [name for name, found in made.promises.items() if not found.holds] == []
    assert made.kept and len(made.promises) == 12
    said = json.loads((settings.out / "certificate.json").read_text())
    assert said["kept"] and said["latency_ms"]["monitored"]["n"] == 5
    page = (settings.out / "certificate.html").read_text()
    assert "identity" in page and "BROKEN" not in page and said["about"]["policy"] in page


@pytest.mark.slow
def test_a_monitor_that_changes_a_quiet_action_is_found_out(make_toy, settings, look):
    class Meddling(type(make_toy())):
        def finish(self, sample, raw):
            return super().finish(sample, raw) + np.float32(1e-6)

    made = tried(make_toy(), Meddling(watched=True), settings, look)
    assert made.promises["identity"].holds is False and not made.kept
    assert "BROKEN" in (settings.out / "certificate.html").read_text()


@pytest.mark.slow
def test_a_server_that_forgets_its_deadline_is_found_out(make_toy, settings, look, monkeypatch):
    async def waits(self, session, request):
        return "monitored", await asyncio.wrap_future(self._monitored.submit(request))

    monkeypatch.setattr("mistjax.serve.promises.STALL_S", 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(Service, "_decide", waits)
        made = tried(make_toy(), make_toy(watched=True), settings, look, slack_ms=100.0)
    broken = {name for name, found in made.promises.items() if not found.holds}
    assert {"deadline", "watchdog", "kill switch"} <= broken and not made.kept


@pytest.mark.slow
def test_without_a_monitor_what_the_bare_policy_is_promised(make_toy, settings, look):
    made = tried(make_toy(), None, settings, look)
    assert made.kept and "deadline" not in made.promises and "bare" in made.latency_ms


@pytest.mark.slow
def test_an_open_door_is_no_certificate(make_toy, tmp_path, look):
    settings = Settings(out=tmp_path, host="0.0.0.0", max_batch=1, deadline_ms=300.0)
    made = tried(make_toy(), None, settings, look)
    assert made.promises["authorisation"].holds is False and not made.kept


def test_observations_are_read_from_a_file(tmp_path, look):
    path = tmp_path / "seen.npz"
    looks = [look(x) for x in (0.0, 0.5)]
    np.savez(path, **{key: np.stack([one[key] for one in looks]) for key in looks[0]})
    found = read_observations(path)
    assert [one["prompt"] for one in found] == ["go", "go"]
    np.testing.assert_array_equal(found[1]["observation/state"], looks[1]["observation/state"])


@pytest.mark.slow
def test_the_shipped_policy_keeps_its_promises(tmp_path):
    words = [POLICY, "--mist", MIST, "--out", tmp_path, "--requests", "10", "--slack-ms", "2000"]
    words += ["--deadline-ms", "5000", "--watchdog-ms", "8000", "--max-batch", "1"]
    assert cli.main(["certify", *map(str, words)]) == 0
    said = json.loads((tmp_path / "certificate.json").read_text())
    assert said["kept"] and "10 of 10" in said["promises"]["identity"]["said"]

"""What the server promises, each with the fault that would break it."""

import concurrent.futures
import json
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from mistjax.serve.frames import pack
from mistjax.serve.lane import plans
from mistjax.serve.promises import PROMISES

WATCHED = ("mist/score", "mist/threshold", "mist/alarm", "mist/input", "mist/explanation",
           "mist/edited", "mist/late")  # fmt: skip


def get(port, path, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=5) as response:
        return response.status, response.read().decode()


@pytest.mark.parametrize("name", PROMISES)
def test_what_is_promised_is_kept(name, run):
    with run(max_batch=1, deadline_ms=300.0, watchdog_ms=600.0) as up:
        stage = up.stage()
        if name == "bounds":
            PROMISES["identity"](stage)
        found = PROMISES[name](stage)
        assert found.holds, found.said


def test_a_reply_has_openpi_s_keys_and_the_monitor_s(run, look):
    with run() as up, up.client() as client:
        assert client.metadata["action_horizon"] == 8 and client.metadata["monitored"]
        first, second = client.infer(look()), client.infer(look())
        assert first["actions"].shape == (8, 4) and first["actions"].dtype == np.float32
        assert set(WATCHED) <= set(first) and first["policy_timing"]["infer_ms"] > 0
        assert "prev_total_ms" not in first["server_timing"]
        assert second["server_timing"]["prev_total_ms"] > 0
        arrays = [v for v in first.values() if isinstance(v, np.ndarray)]
        assert all(len(array) == 8 for array in arrays)  # openpi's chunk broker slices them


def test_state_belongs_to_one_connection_and_one_episode(run, look):
    with run() as up, up.client() as one, up.client() as other:
        assert [one.infer(look())["mist/score"] for _ in range(3)] == [1, 2, 3]
        assert other.infer(look())["mist/score"] == 1
        alarmed = one.infer(look())
        assert alarmed["mist/alarm"] and "score is 4, above 3" in alarmed["mist/explanation"]
        assert one.infer(look(**{"mist/reset": True}))["mist/score"] == 1
        assert one.infer(look(**{"mist/episode": "a"}))["mist/score"] == 1
        assert one.infer(look(**{"mist/episode": "a"}))["mist/score"] == 2
        assert one.infer(look(**{"mist/episode": "b"}))["mist/score"] == 1
        assert one.infer({"mist/reset": True})["mist/ok"]
        assert one.infer(look())["mist/score"] == 1
        with up.client() as again:
            assert again.infer(look())["mist/score"] == 1
        assert other.infer(look())["mist/score"] == 2


def test_a_late_reply_is_dropped_and_never_given_to_a_later_observation(run, look, until):
    with run(max_batch=1, deadline_ms=400.0, watchdog_ms=5000.0) as up, up.client() as client:
        up.watched.stall_s = 10.0
        assert client.infer(look(1.0))["mist/late"]
        up.watched.stall_s = 0.0
        up.watched.release.set()
        until(lambda: "late_results_total 1" in up.service.metrics.text())
        reply = client.infer(look(-1.0))
        assert not reply["mist/late"] and reply["actions"][:, 0].max() < 0
        assert reply["mist/score"] == 2  # the monitor has seen both


@pytest.mark.parametrize(("fallback", "gripper"), [("zero", 1.0), ("stop", None)])
def test_the_fallback_is_the_declared_one(run, look, fallback, gripper):
    with run(fallback=fallback) as up, up.client() as client:
        up.watched.nan = True
        reply = client.infer(look(1.0))
        if gripper is None:
            assert "stop the robot" in reply
            with pytest.raises(ConnectionClosed):
                client.socket.recv(timeout=5)
        else:
            np.testing.assert_array_equal(reply["actions"][0], [0, 0, 0, gripper])


WRONG = {
    "nan": {"observation/state": np.full(5, np.nan, np.float32)},
    "inf": {"observation/state": np.full(5, np.inf, np.float32)},
    "shape": {"observation/state": np.zeros(7, np.float32)},
    "picture": {"observation/image": np.zeros((8, 8), np.uint8)},
    "dtype": {"observation/image": np.zeros((8, 8, 3), np.float32)},
    "text": {"observation/state": "none"},
    "prompt": {"prompt": 7},
    "camera": {"observation/image": None},
    "key": {"mist/unknown": 1},
    "line": {"mist/two\nlines": 1},
    "seed": {"mist/seed": -1},
    "reset": {"mist/reset": "yes"},
}


def test_a_wrong_observation_is_one_sentence_and_nobody_else_s_matter(run, look):
    with run() as up, up.client() as one, up.client() as other:
        one.infer(look())
        for said in WRONG.values():
            wrong = {k: v for k, v in look(**said).items() if v is not None}
            text = one.infer(wrong)
            assert isinstance(text, str) and "\n" not in text and "Traceback" not in text
        for frame in (b"\xc1", "words", b"", {}, [1, 2]):
            assert isinstance(one.infer(frame), str)
        assert one.infer(look())["mist/score"] == 2 and other.infer(look())["mist/score"] == 1
        assert up.service.metrics.text().count("refused_total{") == 2


def test_a_row_that_fails_fails_alone(run, look):
    slow = {"deadline_ms": 5000.0, "watchdog_ms": 6000.0, "batch_wait_ms": 200.0}
    pool = concurrent.futures.ThreadPoolExecutor()
    with run(**slow) as up, up.client() as one, up.client() as other, pool:
        poisoned = pool.submit(one.infer, look(prompt="poison"))
        well = pool.submit(other.infer, look())
        assert poisoned.result()["mist/fallback"] and not well.result()["mist/late"]


def test_clients_are_batched_within_a_bounded_wait(run, look):
    with run(batch_wait_ms=300.0) as up:
        clients = [up.client() for _ in range(4)]
        up.watched.policy.sizes.clear()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            replies = list(pool.map(lambda c: c.infer(look()), clients))
        assert up.watched.policy.sizes == [4] and {r["mist/score"] for r in replies} == {1.0}
        start = time.monotonic()
        clients[0].infer(look())  # the others ask nothing: it waits no longer than said
        assert time.monotonic() - start < 2.0
        for client in clients:
            client.socket.close()


def test_requests_go_into_the_programs_that_cost_least_together():
    assert plans({1: 1.0, 4: 3.0, 8: 9.0})[:7] == [
        (), (1,), (1, 1), (4,), (4,), (4, 1), (4, 1, 1)]  # fmt: skip
    assert plans({1: 1.0, 4: 1.1, 16: 1.2})[2:9] == [(4,)] * 3 + [(16,)] * 4
    assert all(sum(sizes) >= n for n, sizes in enumerate(plans({1: 1.0, 4: 2.0, 6: 2.5})))


def test_the_gate_is_over_everything(run, look, tmp_path):
    path = tmp_path / "gate.json"
    path.write_text('{"velocity": [0.01, 0.01, 0.01, 2]}')
    with run(gate=path) as up, up.client() as client:
        for said in ({}, {"mist/pass_through": True}):
            reply = client.infer(look(1.0, **said))
            assert np.abs(reply["actions"][:, :3]).max() <= np.float32(0.01)


def test_a_key_is_asked_for_and_pages_of_a_browser_are_turned_away(run, look):
    with run(api_key="secret") as up:
        with up.client(additional_headers={"Authorization": "Api-Key secret"}) as client:
            assert client.infer(look())["mist/sequence"] == 1
        for headers in ({}, {"Authorization": "Api-Key wrong"}):
            with pytest.raises(InvalidStatus, match="401"):
                up.client(additional_headers=headers)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(up.port, "/metrics")
        assert get(up.port, "/healthz")[0] == 200
        right = {"Authorization": "Api-Key secret"}
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws://127.0.0.1:{up.port}", origin="http://evil", additional_headers=right)


def test_at_most_so_many_clients(run, look):
    with run(max_connections=2) as up:
        with up.client() as one, up.client():
            with pytest.raises(InvalidStatus, match="503"):
                up.client()
            assert one.infer(look())["mist/score"] == 1
        with up.client() as again:
            assert again.infer(look())["mist/score"] == 1


def test_who_does_not_read_is_cut_off(run, look, until, monkeypatch):
    with run(send_timeout_s=0.2) as up:

        async def long_answer(session, request):
            return {"actions": np.zeros((1 << 22, 1), np.float32)}

        with monkeypatch.context() as patch:
            patch.setattr(up.service, "answer", long_answer)
            silent = up.client(max_queue=1)
            for _ in range(16):  # 256 MB of answers: more than a kernel buffers
                silent.socket.send(pack(look()))
            until(lambda: 'what="slow reader"} 1' in up.service.metrics.text(), seconds=60)
        until(lambda: not up.service.sessions)
        with up.client() as client:
            assert client.infer(look())["mist/score"] == 1


def test_every_request_is_an_event(run, look):
    with run() as up:
        with up.client() as client:
            for _ in range(3):
                client.infer(look())
            client.infer(look(prompt=7))
        path = up.service.events.path
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [e["decision"] for e in events] == ["monitored"] * 3 + ["refused"]
    assert [e["sequence"] for e in events[:3]] == [1, 2, 3] and events[0]["score"] == 1
    assert {"threshold", "alarm", "edited", "queue_ms", "infer_ms", "total_ms", "policy",
            "mistjax", "jax", "episode"} <= set(events[0])  # fmt: skip


def test_metrics_are_what_prometheus_reads(run, look):
    with run() as up, up.client() as client:
        for _ in range(4):
            client.infer(look())
        _, text = get(up.port, "/metrics")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    values = dict(line.rsplit(" ", 1) for line in lines)
    assert float(values["mistjax_connections"]) == 1
    assert values['mistjax_latency_ms_count{path="monitored"}'] == "4"
    assert values['mistjax_latency_ms_bucket{path="monitored",le="+Inf"}'] == "4"
    assert values['mistjax_alarms_total{kind="failure"}'] == "1"


def test_a_policy_that_is_slower_than_the_deadline_is_not_served(run):
    wrong = {"deadline_ms": 0.001, "batch_wait_ms": 0.0}
    with pytest.raises(ValueError, match="raise --deadline-ms"), run(**wrong):
        pass

"""Events as pages and as a stream, attempts, logs."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from app.jobs import history
from app.jobs.schemas import AttemptList, EventPage
from tests.helpers.api import CRASH, SPEC, Api, pointers


def messages(text: str) -> list[dict[str, str]]:
    """The server-sent events of a stream, as a browser would read them."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block]
    return [dict(line.split(": ", 1) for line in block if not line.startswith(":")) for block in blocks]


class TestEventPages:
    def test_tell_the_jobs_life_in_order(self, api: Api) -> None:
        job = api.submit()
        held = api.claim()
        api.record(held, ("checkpoint", {"block": 0}), ("checkpoint", {"block": 1}))
        api.succeed(held)
        page = EventPage.model_validate(api.get(job, "/events").json())
        assert [event.type for event in page.data] == ["queued", "running", "checkpoint", "checkpoint", "succeeded"]
        assert [event.seq for event in page.data] == [1, 2, 3, 4, 5]
        assert page.data[3].data == {"block": 1}
        assert (page.last_seq, page.has_more) == (5, False)

    def test_follow_one_another(self, api: Api) -> None:
        job = api.submit()
        api.record(api.claim(), *(("checkpoint", {"block": n}) for n in range(5)))
        seen, after = [], 0
        for expected_more in (True, True, True, False):
            page = api.get(job, f"/events?after={after}&limit=2").json()
            seen += [event["seq"] for event in page["data"]]
            after = page["last_seq"]
            assert page["has_more"] is expected_more
        assert seen == [1, 2, 3, 4, 5, 6, 7]
        assert api.get(job, "/events?after=7").json() == {"data": [], "last_seq": 7, "has_more": False}


class TestEventStream:
    def stream(self, api: Api, job: dict[str, Any], **headers: str) -> httpx2.Response:
        return api.get(job, "/events", Accept="text/event-stream", **headers)

    def test_of_a_finished_job_repeats_its_events_and_ends(self, api: Api) -> None:
        job = api.succeeded()
        response = self.stream(api, job)
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert (response.headers["Cache-Control"], response.headers["X-Accel-Buffering"]) == ("no-cache", "no")
        retry, *events, end = messages(response.text)
        assert retry == {"retry": "3000"}
        assert [(e["id"], e["event"]) for e in events] == [("1", "queued"), ("2", "running"), ("3", "succeeded")]
        assert [json.loads(e["data"]) for e in events] == api.get(job, "/events").json()["data"]
        assert (end["event"], json.loads(end["data"])) == ("end", {"status": "succeeded"})
        assert "id" not in end, "or a reconnecting client would lose its place"

    def test_goes_on_behind_the_last_event_id(self, api: Api) -> None:
        job = api.succeeded()
        _, *events, _ = messages(self.stream(api, job, Last_Event_ID="1").text)
        assert [event["id"] for event in events] == ["2", "3"]
        _, *events, _ = messages(api.get(job, "/events?after=2", Accept="text/event-stream").text)
        assert [event["id"] for event in events] == ["3"]

    def test_of_many_events_misses_none(self, api: Api) -> None:
        job = api.submit()
        held = api.claim()
        api.record(held, *(("checkpoint", {"block": n}) for n in range(history.EVENTS_AT_ONCE + 7)))
        api.succeed(held)
        _, *events, _ = messages(self.stream(api, job).text)
        assert [int(event["id"]) for event in events] == list(range(1, history.EVENTS_AT_ONCE + 11))

    def test_tells_of_an_event_within_half_a_second(self, server: httpx2.Client) -> None:
        job = server.post("/v1/jobs", json={"spec": SPEC}).json()
        url = f"/v1/jobs/{job['id']}"
        cancelled_at: list[float] = []

        def cancel() -> None:
            cancelled_at.append(time.monotonic())
            server.post(f"{url}/cancel")

        with server.stream("GET", f"{url}/events", headers={"Accept": "text/event-stream"}) as response:
            threading.Timer(0.6, cancel).start()
            seen = {}
            for line in response.iter_lines():
                if line.startswith("event: "):
                    seen[line.removeprefix("event: ")] = time.monotonic()
        assert list(seen) == ["queued", "cancelling", "cancelled", "end"]
        assert seen["cancelled"] - cancelled_at[0] < 0.5 + history.LOOK_EVERY_S

    def test_pings_while_nothing_happens_and_ends_after_its_time(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(history, "PING_EVERY_S", 0.3)
        monkeypatch.setattr(history, "LONGEST_STREAM_S", 1.0)
        began = time.monotonic()
        text = self.stream(api, api.submit()).text
        assert 2 <= text.count(": ping\n\n") <= 4
        assert "event: end" not in text, "a client must come back"
        assert time.monotonic() - began < 5

    def test_ends_when_its_job_is_deleted(self, server: httpx2.Client, app: FastAPI) -> None:
        job = server.post("/v1/jobs", json={"spec": SPEC}).json()
        url = f"/v1/jobs/{job['id']}"

        def delete() -> None:
            server.post(f"{url}/cancel")
            server.delete(url)

        with server.stream("GET", f"{url}/events", headers={"Accept": "text/event-stream"}) as response:
            deleting = threading.Timer(0.3, delete)
            deleting.start()
            response.read()
        deleting.join()  # the stream ends with the cancellation already, if it looks in between
        assert server.get(url).status_code == 404

    def test_waiting_streams_hold_no_database_session(self, server: httpx2.Client, app: FastAPI) -> None:
        """More of them wait than the pool has connections, and the API still answers."""
        job = server.post("/v1/jobs", json={"spec": SPEC}).json()
        url, opened, stop = f"/v1/jobs/{job['id']}/events", [], threading.Event()

        def listen() -> None:
            with (
                httpx2.Client(base_url=server.base_url, headers=server.headers, trust_env=False) as client,
                client.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=30) as response,
            ):
                next(response.iter_lines())
                opened.append(1)
                stop.wait()

        listeners = [threading.Thread(target=listen) for _ in range(40)]
        for listener in listeners:
            listener.start()
        try:
            while len(opened) < 40:
                time.sleep(0.02)
            time.sleep(2 * history.LOOK_EVERY_S)
            assert app.state.services.database.engine.pool.checkedout() <= 2, "the status reader and the relay"
            assert server.get("/v1/jobs").status_code == 200
        finally:
            stop.set()
            for listener in listeners:
                listener.join()

    def test_needs_an_id_it_has_given(self, api: Api) -> None:
        response = self.stream(api, api.submit(), Last_Event_ID="abc")
        assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "#Last-Event-ID")


class TestAttempts:
    def test_are_all_kept(self, api: Api) -> None:
        job = api.submit()
        api.fail(api.claim())
        api.post(job, "retry")
        api.succeed(api.claim())
        found = AttemptList.model_validate(api.get(job, "/attempts").json()).data
        assert [(a.number, a.outcome) for a in found] == [(1, "failed"), (2, "succeeded")]
        assert found[0].error is not None
        assert (found[0].error.code, found[1].error, found[0].worker) == (CRASH.code, None, "w1")


class TestLogs:
    def test_are_there_while_the_job_runs_and_after_it_failed(self, api: Api) -> None:
        job = api.submit()
        assert api.get(job, "/logs").text == ""
        held = api.claim()
        api.log(held, 0, "loading\npruning")
        assert api.get(job, "/logs").text == "loading\npruning"
        api.log(held, 1, " block 0\nfailed\n")
        api.fail(held)
        response = api.get(job, "/logs")
        assert response.text == "loading\npruning block 0\nfailed\n"
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"

    def test_tail_counts_lines_over_pieces(self, api: Api) -> None:
        job = api.submit()
        held = api.claim()
        for n, piece in enumerate(["1\n2\n3", "3\n4", "\n5\n6\n"]):
            api.log(held, n, piece)
        assert api.get(job, "/logs?tail=1").text == "6\n"
        assert api.get(job, "/logs?tail=3").text == "4\n5\n6\n"
        assert api.get(job, "/logs?tail=100").text == "1\n2\n33\n4\n5\n6\n"

    def test_go_on_behind_what_one_has(self, api: Api) -> None:
        job = api.submit()
        held = api.claim()
        for n, piece in enumerate(["one\n", "two\n", "three\n"]):
            api.log(held, n, piece)
        whole = "one\ntwo\nthree\n"
        for after in (0, 3, 4, 7, 8, 14, 99):
            assert api.get(job, f"/logs?after={after}").text == whole[after:]
        assert pointers(api.get(job, "/logs?after=1&tail=1").json()) == ["?after"]

    def test_are_the_latest_attempts_unless_asked(self, api: Api) -> None:
        job = api.submit()
        for text in ("first\n", "second\n"):
            held = api.claim()
            api.log(held, 0, text)
            api.fail(held)
            api.post(job, "retry")
        assert api.get(job, "/logs").text == "second\n"
        assert api.get(job, "/logs?attempt=1").text == "first\n"
        response = api.get(job, "/logs?attempt=3")
        assert (response.status_code, response.json()["code"]) == (404, "no_such_attempt")

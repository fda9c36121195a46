"""Webhooks: signed by the scheme's own library, sent until they arrive, and nowhere that they may not go."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, text
from standardwebhooks import Webhook as Verifier

from app.jobs import service as jobs
from app.settings import Settings
from app.webhooks import addresses, deliverer, sending, service
from app.webhooks.deliverer import Deliverer
from app.webhooks.models import Delivery, Webhook
from tests.helpers.api import SPEC, Api, judged, make_key
from workers.engine.spec import CompressionSpec


class Receiver:
    """An HTTP server that keeps what it gets, and answers as told."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], str]] = []
        self.status, self.headers = 200, dict[str, str]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                outer.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook?a=b"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02])
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.got]

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow": "127.0.0.0/8, ::1/128"})


@pytest.fixture
def sender(api: Api) -> Deliverer:
    return Deliverer(api.database, api.services.settings)


def make(api: Api, url: str, **fields: Any) -> dict[str, Any]:
    answer = api.client.post("/v1/webhooks", json={"url": url, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def all_due(api: Api) -> None:
    """As after a long time."""
    with api.database.write() as session:
        session.execute(text("update webhook_deliveries set due_at = 1 where state = 'pending'"))


def drain(api: Api, sender: Deliverer) -> None:
    all_due(api)
    while sender.step():
        pass


def deliveries(api: Api, webhook: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.client.get(f"/v1/webhooks/{webhook['id']}/deliveries", params=query).json()[
        "data"
    ]
    return found


class TestMessages:
    def test_each_change_of_status_is_told_and_signed(self, api: Api, receiver: Receiver, sender: Deliverer) -> None:
        webhook = make(api, receiver.url)
        job = api.submit(labels={"team": "a"})
        api.succeed(api.claim())
        drain(api, sender)
        receiver.got.sort(key=lambda message: json.loads(message[1])["data"]["seq"])  # they come in any order
        assert receiver.types == ["job.queued", "job.running", "job.succeeded"]
        for headers, body in receiver.got:
            data = Verifier(webhook["secret"]).verify(body, headers)["data"]
            assert (data["job_id"], data["labels"], data["url"]) == (job["id"], {"team": "a"}, job["links"]["self"])
            assert headers["content-type"] == "application/json"
        seqs = [json.loads(body)["data"]["seq"] for _, body in receiver.got]
        assert seqs == [
            e["seq"] for e in api.get(job, "/events").json()["data"] if f"job.{e['type']}" in receiver.types
        ]
        assert [each["state"] for each in deliveries(api, webhook)] == ["delivered"] * 3

    def test_filters_by_event_and_label(self, api: Api, receiver: Receiver, sender: Deliverer) -> None:
        make(api, receiver.url, events=["job.failed", "job.paused"], labels={"team": "a"})
        for team in ("a", "b"):
            api.submit(labels={"team": team, "more": "x"})
            api.fail(api.claim())
            api.post(api.submit(labels={"team": team}), "pause")
        drain(api, sender)
        assert sorted(receiver.types) == ["job.failed", "job.paused"]
        with api.database.read() as session:
            assert len(session.scalars(select(Delivery)).all()) == 2  # the others leave no log

    def test_a_job_that_is_deleted_is_told_of_all_the_same(
        self, api: Api, receiver: Receiver, sender: Deliverer
    ) -> None:
        """Deleted before the sender, which was down, made a message of its event and its labels."""
        make(api, receiver.url, events=["job.succeeded", "job.failed"], labels={"team": "a"})
        for team in ("a", "b"):
            done = api.submit(labels={"team": team})
            api.succeed(api.claim(), judged("pass"))
            assert api.client.delete(f"/v1/jobs/{done['id']}").status_code == 204
        drain(api, sender)
        [(_, body)] = receiver.got
        data = json.loads(body)["data"]
        assert (data["status"], data["labels"], data["verdict"]) == ("succeeded", {"team": "a"}, "pass")

    def test_they_are_written_with_the_event_or_not_at_all(self, api: Api, receiver: Receiver) -> None:
        make(api, receiver.url)

        def half_done() -> None:
            with api.database.write() as session:
                jobs.create(
                    session, tenant_id=api.tenant_id, spec=CompressionSpec.model_validate(SPEC), labels={}, priority=0,
                    max_attempts=1, deadline_s=1, request_id=None,
                )  # fmt: skip
                raise RuntimeError

        with pytest.raises(RuntimeError):
            half_done()
        with api.database.read() as session:
            assert session.scalars(select(Delivery)).all() == []

    def test_a_test_message(self, api: Api, receiver: Receiver, sender: Deliverer) -> None:
        webhook = make(api, receiver.url, events=["job.failed"], labels={"team": "a"})
        sent = api.client.post(f"/v1/webhooks/{webhook['id']}/test").json()
        drain(api, sender)
        assert (receiver.types, receiver.ids) == (["webhook.test"], [sent["message_id"]])

    def test_other_tenants_are_told_of_their_own_jobs_only(
        self, api: Api, foreign: httpx2.Headers, receiver: Receiver, sender: Deliverer
    ) -> None:
        assert api.client.post("/v1/webhooks", json={"url": receiver.url}, headers=foreign).status_code == 201
        api.succeeded()
        drain(api, sender)
        assert receiver.got == []


class TestDelivery:
    def test_a_receiver_that_is_down_for_an_hour_misses_nothing(
        self, api: Api, receiver: Receiver, sender: Deliverer
    ) -> None:
        down = Receiver()
        webhook = make(api, down.url)
        down.close()
        for _ in range(4):
            api.succeeded()
        expected = 4 * 3
        for _ in range(4):  # the tries of its first hour
            all_due(api)
            assert sender.step(limit=100) == expected
            assert sender.step(limit=100) == 0  # none is due before its time
        waiting = deliveries(api, webhook, limit=200)
        assert {(each["state"], each["tries"], len(each["log"])) for each in waiting} == {("pending", 4, 4)}
        assert all("refused" in each["log"][-1]["error"] for each in waiting)
        with api.database.write() as session:  # it is up again, where it was
            session.execute(text("update webhooks set url = :url"), {"url": receiver.url})
        drain(api, sender)
        assert sorted(receiver.ids) == sorted(each["message_id"] for each in waiting)
        assert len({*receiver.ids}) == expected
        bodies = {headers["webhook-id"]: body for headers, body in receiver.got}
        first = waiting[0]
        again = api.client.post(f"/v1/webhooks/{webhook['id']}/deliveries/{first['id']}/redeliver").json()
        drain(api, sender)
        headers, body = receiver.got[-1]
        assert headers["webhook-id"] == again["message_id"] == first["message_id"]  # how a duplicate is known
        assert body == bodies[first["message_id"]]

    def test_waits_grow_and_the_receiver_may_ask_for_longer(
        self, api: Api, receiver: Receiver, sender: Deliverer
    ) -> None:
        receiver.status = 503
        make(api, receiver.url)
        api.submit()

        def wait_s() -> float:
            all_due(api)
            sender.step()
            with api.database.read() as session:
                now = session.execute(text("select max(at) from events")).scalar_one()
                delivery = session.scalars(select(Delivery)).one()
                return (delivery.due_at - now) / 1000

        waits = [wait_s() for _ in range(len(deliverer.WAITS_S))]
        for wait, planned in zip(waits, deliverer.WAITS_S, strict=True):
            assert planned <= wait <= planned * 1.1 + 20
        with api.database.write() as session:
            session.execute(text("update webhook_deliveries set tries = 0"))
        receiver.headers = {"Retry-After": "1000"}
        assert 1000 <= wait_s() <= 1120

    def test_it_is_given_up_after_days_and_goes_on_when_enabled(
        self, api: Api, receiver: Receiver, sender: Deliverer
    ) -> None:
        receiver.status = 500
        webhook = make(api, receiver.url)
        api.submit()
        with api.database.write() as session:
            session.execute(text("update webhook_deliveries set tries = 9"))
        later = api.submit()
        with api.database.write() as session:
            session.execute(text("update webhook_deliveries set due_at = 9999999999999 where tries = 0"))
        assert sender.step() == 1
        shown = api.client.get(f"/v1/webhooks/{webhook['id']}").json()
        assert (shown["enabled"], "10 tries" in shown["disabled_because"]) == (False, True)
        assert sorted(each["state"] for each in deliveries(api, webhook)) == ["failed", "pending"]
        drain(api, sender)
        assert len(receiver.got) == 1
        receiver.status = 204
        assert api.client.patch(f"/v1/webhooks/{webhook['id']}", json={"enabled": True}).json()["enabled"]
        drain(api, sender)
        assert json.loads(receiver.got[-1][1])["data"]["job_id"] == later["id"]

    def test_sent_again_by_hand_an_older_try_disables_nothing(self, api: Api, receiver: Receiver) -> None:
        webhook = make(api, receiver.url)
        api.submit()
        with api.database.write() as session:
            session.execute(text("update webhook_deliveries set tries = 9"))
        [delivery] = deliveries(api, webhook)

        def fail(*_: Any) -> sending.Answer:
            again = api.client.post(f"/v1/webhooks/{webhook['id']}/deliveries/{delivery['id']}/redeliver")
            assert again.status_code == 200
            return sending.Answer(500, "the receiver answered 500", None, 0.1)

        assert Deliverer(api.database, api.services.settings, fail).step() == 1
        assert api.client.get(f"/v1/webhooks/{webhook['id']}").json()["enabled"]
        drain(api, Deliverer(api.database, api.services.settings))
        assert receiver.types == ["job.queued"]

    def test_a_receiver_that_is_gone_is_told_no_more(self, api: Api, receiver: Receiver, sender: Deliverer) -> None:
        receiver.status = 410
        webhook = make(api, receiver.url)
        api.submit()
        drain(api, sender)
        assert not api.client.get(f"/v1/webhooks/{webhook['id']}").json()["enabled"]
        api.submit()
        drain(api, sender)
        assert len(receiver.got) == 1

    def test_a_sender_that_dies_sends_it_twice_under_one_id(self, api: Api, receiver: Receiver) -> None:
        make(api, receiver.url)
        api.submit()

        def die(*args: Any) -> sending.Answer:
            sending.post(*args)
            raise MemoryError

        dying = Deliverer(api.database, api.services.settings, die)
        assert dying.step() == 1
        assert dying.step() == 0  # it has a lease
        drain(api, Deliverer(api.database, api.services.settings))
        assert len(receiver.got) == 2
        assert len({*receiver.ids}) == 1

    def test_several_senders_send_each_message_once(self, api: Api, receiver: Receiver) -> None:
        make(api, receiver.url)
        for _ in range(10):
            api.submit()
        all_due(api)
        senders = [Deliverer(api.database, api.services.settings) for _ in range(3)]
        threads = [threading.Thread(target=each.step, kwargs={"limit": 5}) for each in senders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        drain_left = Deliverer(api.database, api.services.settings)
        while drain_left.step():
            pass
        assert len(receiver.ids) == len({*receiver.ids}) == 10

    def test_no_tenant_waits_behind_anothers_messages(
        self, api: Api, foreign: httpx2.Headers, receiver: Receiver, sender: Deliverer
    ) -> None:
        for headers, jobs_ in ((None, deliverer.AT_ONCE + 4), (foreign, 2)):
            assert api.client.post("/v1/webhooks", json={"url": receiver.url}, headers=headers).status_code == 201
            made = [
                api.client.post("/v1/jobs", json={"spec": SPEC}, headers=headers).json()["id"] for _ in range(jobs_)
            ]
        all_due(api)
        assert sender.step() == deliverer.AT_ONCE
        assert {*made} < {json.loads(body)["data"]["job_id"] for _, body in receiver.got}

    def test_all_tries_of_a_step_begin_at_once(self, api: Api, receiver: Receiver) -> None:
        """Their lease is as long as one try: none may wait for another's."""
        make(api, receiver.url)
        for _ in range(deliverer.AT_ONCE + 1):
            api.submit()
        all_begun = threading.Barrier(deliverer.AT_ONCE)

        def hang(*args: Any) -> sending.Answer:
            all_begun.wait(20)
            return sending.Answer(None, "TimeoutError", None, 15.0)

        all_due(api)
        assert Deliverer(api.database, api.services.settings, hang).step() == deliverer.AT_ONCE
        assert not all_begun.broken

    def test_what_filters_leave_out_holds_up_nothing(self, api: Api, receiver: Receiver, sender: Deliverer) -> None:
        make(api, receiver.url, labels={"team": "a"})
        for team in ("b", "b", "a"):
            api.submit(labels={"team": team})
        all_due(api)
        assert sender.step(limit=2) == 2  # so that the next step is due at once
        assert sender.step(limit=2) == 1
        assert receiver.types == ["job.queued"]

    def test_a_redirect_is_not_followed(self, api: Api, receiver: Receiver, sender: Deliverer) -> None:
        receiver.status, receiver.headers = 302, {"Location": receiver.url}
        webhook = make(api, receiver.url)
        api.submit()
        drain(api, sender)
        assert len(receiver.got) == 1
        [delivery] = deliveries(api, webhook)
        assert (delivery["state"], delivery["log"][0]["status"]) == ("pending", 302)

    def test_a_receiver_without_tls_behind_https_gets_nothing(
        self, api: Api, receiver: Receiver, sender: Deliverer
    ) -> None:
        webhook = make(api, receiver.url.replace("http:", "https:"))
        api.submit()
        drain(api, sender)
        assert receiver.got == []
        assert "SSL" in deliveries(api, webhook)[0]["log"][0]["error"]


class TestSecrets:
    def test_rotated_both_sign_until_the_time_is_over(self, api: Api, receiver: Receiver, sender: Deliverer) -> None:
        webhook = make(api, receiver.url)
        rotated = api.client.post(f"/v1/webhooks/{webhook['id']}/rotate", json={"keep_hours": 1}).json()
        assert rotated["secret"] != webhook["secret"]
        api.submit()
        drain(api, sender)
        for secret in (webhook["secret"], rotated["secret"]):
            Verifier(secret).verify(receiver.got[0][1], receiver.got[0][0])
        with api.database.write() as session:
            session.execute(text("update webhooks set previous_until = 1"))
        api.submit()
        drain(api, sender)
        Verifier(rotated["secret"]).verify(receiver.got[1][1], receiver.got[1][0])
        with pytest.raises(Exception, match="No matching signature"):
            Verifier(webhook["secret"]).verify(receiver.got[1][1], receiver.got[1][0])

    def test_none_is_stored(self, api: Api, receiver: Receiver) -> None:
        secret = make(api, receiver.url)["secret"]
        with api.database.read() as session:
            stored = session.scalars(select(Webhook)).one()
        assert secret.removeprefix("whsec_") not in str(vars(stored))


def test_a_foreign_webhook_is_exactly_a_missing_one(api: Api, foreign: httpx2.Headers, receiver: Receiver) -> None:
    mine = make(api, receiver.url)["id"]
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"enabled": False}),
        ("POST", "/rotate", {}),
        ("POST", "/test", None),
        ("GET", "/deliveries", None),
        ("POST", "/deliveries/1/redeliver", None),
        ("DELETE", "", None),
    ):
        for webhook_id, headers in ((mine, foreign), ("whk_" + "0" * 32, None), ("%00", None)):
            answer = api.client.request(method, f"/v1/webhooks/{webhook_id}{path}", json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (method, path, webhook_id)
    assert api.client.get("/v1/webhooks", headers=foreign).json()["data"] == []
    assert [each["id"] for each in api.client.get("/v1/webhooks").json()["data"]] == [mine]
    assert api.client.delete(f"/v1/webhooks/{mine}").status_code == 204


def test_they_need_their_scope_and_are_bounded(api: Api, receiver: Receiver) -> None:
    text_, _, _ = make_key(api.services, "ours", ("jobs:read", "jobs:write"))
    headers = {"Authorization": f"Bearer {text_}"}
    assert api.client.post("/v1/webhooks", json={"url": receiver.url}, headers=headers).json()["allowed"] == [
        "webhooks"
    ]
    for _ in range(20):
        make(api, receiver.url)
    assert api.client.post("/v1/webhooks", json={"url": receiver.url}).json()["code"] == "too_many_webhooks"


def test_of_many_at_once_no_more_are_made_than_may(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits a moment between the count and the row, so that all others count too, unless they have to wait."""
    monkeypatch.setattr(service, "MOST", 2)
    real = service.new_id
    monkeypatch.setattr(service, "new_id", lambda prefix: (time.sleep(0.3), real(prefix))[1])
    statuses: list[int] = []

    def send() -> None:
        statuses.append(api.client.post("/v1/webhooks", json={"url": receiver.url}).status_code)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 2 + [422] * 2


def test_pages_of_deliveries_cover_each_once(api: Api, receiver: Receiver) -> None:
    webhook = make(api, receiver.url)
    for _ in range(5):
        api.submit()
    seen, url = [], f"/v1/webhooks/{webhook['id']}/deliveries?limit=2"
    while url:
        answer = api.client.get(url)
        seen += [each["id"] for each in answer.json()["data"]]
        url = answer.headers.get("Link", "")[1:].partition(">")[0]
    assert seen == sorted({*seen}, reverse=True)
    assert len(seen) == 5


def test_of_several_addresses_one_that_answers_is_told(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a host's IPv6 leads nowhere."""
    monkeypatch.setitem(NAMES, "two.example", ["127.0.0.2", "127.0.0.1"])
    url = receiver.url.replace("127.0.0.1", "two.example")
    with monkeypatch.context() as patch:
        patch.setattr(addresses.socket, "getaddrinfo", looking([]))
        answer = sending.post(url, '{"type": "x"}', {}, addresses.networks("127.0.0.0/8"))
    assert (answer.arrived, receiver.types) == (True, ["x"])


TRICKS = [
    "https://127.0.0.1/", "https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/",
    "https://0/", "https://0.0.0.0/", "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/", "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/", "https://[fc00::1]/", "https://[fec0::1]/", "https://169.254.169.254/latest/meta-data",
    "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/", "https://100.64.0.1/", "https://198.18.0.1/",
    "https://224.0.0.1/", "https://255.255.255.255/", "https://localhost/", "https://LOCALHOST./",
    "https://inside.example/", "https://both.example/", "https://metadata.example/",
    "https://user:pass@public.example/", "https://public.example@127.0.0.1/", "https://127.0.0.1#@public.example/",
    "https://public.example\\@127.0.0.1/", "http://public.example/", "file:///etc/passwd", "gopher://127.0.0.1:6379/_x",
    "https:///etc/passwd", "https://public.example:0/", "https://public.example:99999/", "https://①②⑦.⓪.⓪.①/",
    "https://public.example/\r\nX: y", "https://public.example/#f", "https://[::1", "https://[2001:db8::1]/",
    "https://[2001:0:7f00:1::]/",
]  # fmt: skip
NAMES = {
    "public.example": ["93.184.216.34"],
    "inside.example": ["10.1.2.3"],
    "both.example": ["93.184.216.34", "127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that are looked up. Numbers and localhost are looked up as they are everywhere."""
    looked: list[str] = []
    monkeypatch.setattr(addresses.socket, "getaddrinfo", looking(looked))
    return looked


def looking(looked: list[str]) -> Callable[..., Any]:
    real = socket.getaddrinfo

    def look(host: str, port: int, *args: Any, **kw: Any) -> Any:
        looked.append(host)
        if host in NAMES:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in NAMES[host]]
        return real(host, port, *args, **kw)

    return look


class TestAddresses:
    """Of a service that allows no private network."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"webhook_allow": ""})

    def test_no_trick_reaches_a_private_address(
        self, api: Api, names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither when a webhook is made, nor where one is in the database already."""
        monkeypatch.setattr(
            sending.socket, "create_connection", lambda *args, **kw: pytest.fail(f"connected to {args}")
        )
        assert len(TRICKS) >= 30
        for url in TRICKS:
            answer = api.client.post("/v1/webhooks", json={"url": url})
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/url"), url
            sent = sending.post(url, "{}", {}, [])
            assert sent.status is None, url
            assert sent.error, url
        assert make(api, "https://public.example/hook")["enabled"]
        assert api.client.get("/v1/webhooks").json()["data"][0]["url"] == "https://public.example/hook"

    def test_the_connection_goes_to_the_address_that_was_checked(
        self, names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A name that means something else a moment later (DNS rebinding) is looked up once."""
        connected: list[Any] = []

        def connect(address: Any, **_: Any) -> socket.socket:
            NAMES["public.example"] = ["127.0.0.1"]
            connected.append(address)
            raise ConnectionRefusedError("nobody listens")

        monkeypatch.setattr(sending.socket, "create_connection", connect)
        try:
            assert (
                sending.post("https://public.example/", "{}", {}, []).error == "ConnectionRefusedError: nobody listens"
            )
            assert (names, connected) == (["public.example"], [("93.184.216.34", 443)])
            assert "not public" in str(sending.post("https://public.example/", "{}", {}, []).error)
            assert len(connected) == 1
        finally:
            NAMES["public.example"] = ["93.184.216.34"]

    def test_a_name_that_cannot_be_looked_up_is_a_failure_like_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not one that is in no log and tried each minute for ever."""

        def refuse(*_: Any, **__: Any) -> Any:
            raise UnicodeError("label empty or too long")

        monkeypatch.setattr(addresses.socket, "getaddrinfo", refuse)
        assert "label empty" in str(sending.post("https://public.example/", "{}", {}, []).error)

    def test_an_allowed_network_and_nothing_beside_it(self, names: list[str]) -> None:
        allowed = addresses.networks("10.1.0.0/16")
        assert addresses.resolved(addresses.target("http://inside.example/"), allowed) == ["10.1.2.3"]
        for url in ("https://10.2.0.1/", "https://metadata.example/", "https://both.example/"):
            with pytest.raises(addresses.Refused):
                addresses.resolved(addresses.target(url), allowed)

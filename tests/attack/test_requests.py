"""Two thousand bad requests, made of the OpenAPI document and of values that break programs: none is a 500.

Every refusal is a problem document whose code docs/api.md lists, and names what is wrong in few words.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.services import Services
from tests.attack.client import JSON, Answer, Sent, running, send
from tests.helpers.api import GATED, ROOT, SPEC, WANDA, make_key
from tests.helpers.conformity import document

REQUESTS = 2000
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "G\xcbT")
JSONS = (
    *("18446744073709551616", "18446744073709551615", "9223372036854775808", "-9223372036854775809", "9" * 5000),
    *("-" + "9" * 30, "1e999", "-1e999", "1e-999", "NaN", "-Infinity", "1.0", "0.5", "-0", "true", "null", '""', '"1"'),
    *('"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\xff"', '"' + "x" * 5000 + '"', "[]", "{}", "[null]", '{"": ""}'),
    *('{"\\ud800": 1}', '{"\\u0000": 1}', "[" * 200 + "]" * 200, '{"a":' * 100 + "1" + "}" * 100, "[[[[1]]]]"),
    *('{"method": "magic"}', '{"method": 1}', '{"method": ["wanda"]}', '{"__class__": "x"}', '"../../etc/passwd"'),
)
TEXTS = (
    *("", " ", "0", "-1", "1.0", "1e9", "+1", "0x10", "1_0", "true", "True", "1", "null", "NaN", "a,b", "*", "''"),
    *("18446744073709551616", "-9223372036854775809", "9" * 5000, "\0", "a\0b", "\r\nX: y", "..", "../..", "%", "%zz"),
    *("\u0663", "\ufeff", "\U0001f600", "x" * 3000, "{}", "[]", "$ref", "job_" + "0" * 32, "2026-01-01", "0.5", "a:b"),
)
RAW = (
    b"%ff",
    b"%00",
    b"%ed%a0%80",
    b"%",
    b"%2",
    b"\xff",
    b"%c0%af",
    b"..%2f..%2fetc",
    b"%2e%2e",
    b"+",
    b"a=b=c",
    b"&&",
)
BODIES = (
    *(
        b"",
        b" ",
        b"{",
        b"}",
        b"[",
        b"null",
        b"1",
        b'"x"',
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"{}{}",
        b"'x'",
    ),
    *(
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 100_000,
        b"x" * 1_000_001,
    ),
    *(b"--x\r\n\r\n", b"a=b&c=d", b"\x1f\x8b\x08\x00", b'{"spec": {}, "spec": {}}', b"[" + b"1," * 30_000 + b"1]"),
    b"{" + b",".join(b'"f%d": 1' % i for i in range(20_000)) + b"}",
)
MEDIA_TYPES = (
    *(b"", b"text/plain", b"application/xml", b"application/json; charset=utf-16", b"application/json; charset=\xff"),
    *(b"application/x-www-form-urlencoded", b"multipart/form-data", b"multipart/form-data; boundary=x", b"json", b"/"),
    *(b"application/problem+json", b"application/json; charset", b";;;", b"application/json;" * 200, b"*/*"),
)
HEADERS = (
    *(b"authorization", b"idempotency-key", b"if-match", b"if-none-match", b"if-range", b"range", b"last-event-id"),
    *(b"prefer", b"accept", b"host", b"x-forwarded-host", b"x-forwarded-for", b"x-request-id", b"content-length"),
    *(b"transfer-encoding", b"expect", b"upgrade", b"cookie", b"content-encoding", b"forwarded"),
)
VALUES = (
    *(
        b"",
        b" ",
        b"\x00",
        b"\xff\xfe",
        b'"',
        b'"' * 99,
        b"*",
        b"W/*",
        b"," * 5000,
        b"bytes=0-",
        b"bytes=-",
        b"bytes=9-1",
    ),
    *(b"bytes=" + b"9" * 5000 + b"-", b"9" * 5000, b"18446744073709551616", b"-1", b"\xb2\xb3", b"wait=" + b"9" * 5000),
    *(
        b"text/html;q=nan",
        b"text/html;q=1e999,*/*;q=-1",
        b"q=" * 999,
        b"Bearer",
        b"Bearer \xff",
        b"Basic eDp5",
        b"[::1",
    ),
    *(b"a" * 15_000, b"evil.example", b"http://evil.example/", b"gzip", b"100-continue", b"websocket", b"\r\nX: y"),
    *(b"Bearer espk_" + b"0" * 49, b"Bearer espk_" + b"\xe9" * 49, b"\xd9\xa3", b"wait=1, wait=\xb2"),
)


def good_bodies(sweep: str) -> dict[str, dict[str, Any]]:
    """By operation. With everything that a spec may have."""
    gated = {
        **GATED,
        **WANDA,
        "evaluate": GATED["evaluate"],
        "compute": {"device": "cpu"},
        "package": {"dtype": "source"},
    }
    return {
        "jobs_create": {"spec": gated, "labels": {"a": "b"}, "priority": 1, "max_attempts": 1, "deadline_s": 60},
        "jobs_update": {"labels": {"a": None}},
        "webhooks_create": {"url": "https://127.0.0.1/", "events": ["job.failed"], "labels": {"a": "b"}},
        "webhooks_update": {"url": "https://127.0.0.1/", "events": [], "labels": {}, "enabled": True},
        "webhooks_rotate": {"keep_hours": 1},
        "publications_create": {"to": "s3", "credentials": "models", "path": "a/b", "replace": True, "gates": "any"},
        "keys_create": {"tenant": "theirs", "name": "ci", "scopes": ["jobs:read"], "expires_days": 30},
        "tenants_update": {"weight": 2, "quotas": {"queued": 5, "running": None, "requests": 100_000}},
        "sweeps_create": {
            "name": "n",
            "spec": {**SPEC, **gated},
            "grid": {"/prune/sparsity": [0.3, 0.4], "/seed": [1]},
            "stop": {"ascending": "/prune/sparsity", "after_failures": 1},
        },
    }


def spoiled(document: Any, value: str) -> Iterator[bytes]:
    """The document as JSON with each of its parts replaced in turn by `value`, and with `value` as another field."""
    mark = "\x01"

    def places(node: Any) -> Iterator[Any]:
        yield mark
        if isinstance(node, dict):
            yield {**node, "unknown": mark}
            for name, inner in node.items():
                for changed in places(inner):
                    yield {**node, name: changed}
        elif isinstance(node, list):
            for index, inner in enumerate(node):
                for changed in places(inner):
                    yield [*node[:index], changed, *node[index + 1 :]]

    for changed in places(document):
        yield json.dumps(changed).replace(json.dumps(mark), value).encode("utf-8", "surrogatepass")


def attacks(document: dict[str, Any], ids: dict[str, str]) -> Iterator[tuple[str, Sent]]:
    """(kind, request): far more than REQUESTS, some of each kind for every operation."""
    bodies = good_bodies(ids["sweep_id"])
    for template, operations in document["paths"].items():
        path = template.format(**ids).encode()
        for method, suffix in itertools.product(METHODS, (b"", b"/")):
            yield f"{template} method", Sent(method, path + suffix, body=b"{}", headers=(JSON,))
        for method, operation in operations.items():
            verb, of = method.upper(), operation["operationId"]
            for name in re.findall(r"\{(\w+)\}", template):
                for bad in (*(quote(text, safe="").encode() for text in TEXTS), *RAW):
                    given = template.replace(f"{{{name}}}", "\x01").format(**ids).encode().replace(b"\x01", bad)
                    yield f"{of} path", Sent(verb, given)
            queries = [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
            for name in (*queries, "unknown"):
                for bad in (*(quote(text, safe="").encode() for text in TEXTS), *RAW):
                    for repeated in (b"", f"{name}=1&".encode()):
                        yield f"{of} query", Sent(verb, path, repeated + f"{name}=".encode() + bad, b"{}", (JSON,))
            for name, value in itertools.product(HEADERS, VALUES):
                yield f"{of} header", Sent(verb, path, headers=((name, value),), body=b"{}")
            if "requestBody" in operation:
                for value in JSONS:
                    for body in spoiled(bodies[of], value):
                        for query in (b"", b"dry_run=true"):
                            yield f"{of} field {value[:9]}", Sent(verb, path, query, body, (JSON,))
                for body in BODIES:
                    yield f"{of} body", Sent(verb, path, body=body, headers=(JSON,))
                for kind in MEDIA_TYPES:
                    yield f"{of} media type", Sent(verb, path, body=b"{}", headers=((b"content-type", kind),))
                    yield f"{of} media type", Sent(verb, path, body=b"{}", headers=((b"content-type", kind), JSON))


def pages() -> Iterator[Sent]:
    """Every method on paths without parts to fill in, on the pages, and on what is not there at all."""
    own = [path for path in document()["paths"] if "{" not in path]
    pages = ["/", "/ui/app.js", "/about", "/docs", "/docs/start.js", "/openapi.json"]
    for path, method in itertools.product([*own, *pages, "/v1", "/nowhere", "//", "/%ff", "*"], METHODS):
        yield Sent(method, path.encode(), body=b"{}", headers=(JSON,))


@pytest.fixture(scope="module")
def documented() -> set[str]:
    """The codes of docs/api.md."""
    tables = (ROOT / "docs/api.md").read_text().partition("## Problems")[2]
    return set(re.findall(r"`([a-z_]+)`", tables))


def check(sent: Sent, answer: Answer, documented: set[str]) -> None:
    about = (sent.method, sent.path[:100], sent.query[:100], sent.body[:200], [(n, v[:60]) for n, v in sent.headers])
    assert 200 <= answer.status < 500, (about, answer.body[:500])
    assert "evil.example" not in answer.headers.get("location", "") + answer.headers.get("link", ""), about
    if answer.status >= 400:
        problem = answer.problem
        assert problem["code"] in documented, (about, problem)
        assert problem["status"] == answer.status
        assert len(answer.body) < 100_000, about
        assert len(problem["detail"]) > 10
        assert len(problem.get("errors", ())) <= 100
    if answer.status == 405:
        assert answer.headers["allow"], about


async def prepared(app: FastAPI) -> tuple[str, dict[str, str]]:
    """(key, ids of a job and a sweep that have ended)"""
    key, _, _ = make_key(app.state.services, "ours")
    ids = []
    for path, body in ((b"/v1/jobs", {"spec": SPEC}), (b"/v1/sweeps", {"spec": SPEC, "grid": {"/seed": [1, 2]}})):
        answer = await send(app, Sent("POST", path, body=json.dumps(body).encode(), headers=(JSON,)), key)
        ids.append(json.loads(answer.body)["id"])
    job, sweep = ids
    for path in (f"/v1/jobs/{job}/cancel", f"/v1/sweeps/{sweep}/cancel"):  # so that streams and waits end
        assert (await send(app, Sent("POST", path.encode()), key)).status == 200
    return key, {
        "job_id": job,
        "sweep_id": sweep,
        "path": "model.safetensors",
        "model_id": "bookworm-7m",
        "key_id": "key_" + "0" * 32,
        "tenant_id": "ten_" + "0" * 32,
        "webhook_id": "whk_" + "0" * 32,
        "publication_id": "pub_" + "0" * 32,
        "delivery_id": "1",
    }


def test_two_thousand_bad_requests(app: FastAPI, documented: set[str]) -> None:
    rng = random.Random(0)

    async def run() -> Counter[int]:
        statuses: Counter[int] = Counter()
        async with running(app):
            key, ids = await prepared(app)
            kinds: dict[str, list[Sent]] = {}
            for kind, sent in attacks(document(), ids):
                kinds.setdefault(kind, []).append(sent)
            for waiting in kinds.values():
                rng.shuffle(waiting)
            chosen = [*pages()]
            while len(chosen) < REQUESTS:  # of each kind in turn, so that none is left out
                chosen += [waiting.pop() for waiting in kinds.values() if waiting]
            for sent in chosen[:REQUESTS]:
                answer = await send(
                    app, sent, "" if sent.headers[:1] and sent.headers[0][0] == b"authorization" else key
                )
                check(sent, answer, documented)
                statuses[answer.status] += 1
        return statuses

    statuses = asyncio.run(run())
    assert sum(statuses.values()) == REQUESTS
    assert min(statuses[status] for status in (400, 404, 405, 422)) > 20, statuses


WORDS = st.text(max_size=20) | st.text(st.characters(categories=["Cs", "Cc"]), max_size=5)
NUMBERS = st.integers() | st.integers(2**63, 2**70) | st.floats() | st.booleans() | st.none()
ANYTHING = st.recursive(
    NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=20,
)
POINTERS = (
    "",
    "spec",
    "spec/model",
    "spec/model/id",
    "spec/score",
    "spec/prune",
    "spec/prune/sparsity",
    "spec/evaluate",
)


def test_no_body_breaks_it(app: FastAPI, documented: set[str]) -> None:
    with asyncio.Runner() as runner:
        context = running(app)
        runner.run(context.__aenter__())
        key, _ = runner.run(prepared(app))

        @given(where=st.sampled_from((*POINTERS, "labels", "priority", "grid", "list", "stop")), value=ANYTHING)
        @settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck)
        def attack(where: str, value: Any) -> None:
            for path in (b"/v1/jobs", b"/v1/sweeps"):
                body: Any = {"spec": json.loads(json.dumps(GATED))} | (
                    {} if path == b"/v1/jobs" else {"list": [{"/seed": 1}]}
                )
                node, *rest = body, *where.split("/")
                for name in rest[:-1]:
                    node = node[name]
                if where:
                    node[rest[-1]] = value
                else:
                    body = value
                sent = Sent("POST", path, b"dry_run=true", json.dumps(body).encode(), (JSON,))
                check(sent, runner.run(send(app, sent, key)), documented)

        attack()
        runner.run(context.__aexit__(None, None, None))


def test_no_header_breaks_it(app: FastAPI, documented: set[str]) -> None:
    with asyncio.Runner() as runner:
        context = running(app)
        runner.run(context.__aenter__())
        key, ids = runner.run(prepared(app))
        gets = [path.format(**ids).encode() for path, operations in document()["paths"].items() if "get" in operations]

        @given(
            path=st.sampled_from(gets),
            name=st.sampled_from([name for name in HEADERS if name not in (b"authorization", b"prefer")]),
            value=st.binary(max_size=40) | st.sampled_from(VALUES),
        )
        @settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck)
        def attack(path: bytes, name: bytes, value: bytes) -> None:
            sent = Sent("GET", path, headers=((name, value),))
            check(sent, runner.run(send(app, sent, key)), documented)

        attack()
        runner.run(context.__aexit__(None, None, None))


@pytest.mark.parametrize(
    ("path", "body", "children"),
    [
        (b"/v1/jobs", {"spec": {**SPEC, **{f"f{n}": 1 for n in range(90)}}, **{f"f{n}": 1 for n in range(90)}}, None),
        (b"/v1/sweeps", {"spec": SPEC, "list": [{"/prune": {f"f{n}": 1 for n in range(60)}} for _ in range(256)]}, 10),
        (b"/v1/sweeps", {"spec": {**SPEC, **{f"f{n}": 1 for n in range(90)}}, "grid": {"/seed": [*range(256)]}}, 10),
        (b"/v1/sweeps", {"spec": SPEC, "list": [{f"/x{n}": {f"f{m}": 1 for m in range(99)}} for n in range(150)]}, 10),
    ],
)
def test_errors_are_bounded(app: FastAPI, documented: set[str], path: bytes, body: Any, children: int | None) -> None:
    async def run() -> Answer:
        async with running(app):
            key, _ = await prepared(app)
            return await send(app, Sent("POST", path, body=json.dumps(body).encode(), headers=(JSON,)), key)

    answer = asyncio.run(run())
    check(Sent("POST", path), answer, documented)
    problem = answer.problem
    if children is None:
        assert (len(problem["errors"]), problem["more_errors"]) == (100, 80)
    else:
        assert max(len(error["children"]) for error in problem["errors"]) <= children
        assert problem["children_not_checked"] == (150 if b"x149" in json.dumps(body).encode() else 256) - children


@pytest.mark.parametrize("body", [{f"f{n}": 1 for n in range(70_000)}, {"spec": [1] * 300_000}])
def test_a_body_of_many_values_is_refused_before_it_is_validated(app: FastAPI, documented: set[str], body: Any) -> None:
    async def run() -> Answer:
        async with running(app):
            key, _ = await prepared(app)
            sent = Sent("POST", b"/v1/jobs", body=json.dumps(body, separators=(",", ":")).encode(), headers=(JSON,))
            return await send(app, sent, key)

    problem = asyncio.run(run()).problem
    assert problem["errors"][0]["code"] == "too_many_values"
    assert len(problem["errors"]) == 1


def test_no_body_is_read_without_a_key(app: FastAPI) -> None:
    async def run() -> None:
        async with running(app):
            for key in ("", "espk_" + "0" * 49):
                for path in (b"/v1/jobs", b"/v1/sweeps", b"/v1/jobs/job_" + b"0" * 32):
                    method = "PATCH" if b"job_" in path else "POST"
                    answer = await send(app, Sent(method, path, body=b"{", headers=(JSON,)), key)
                    assert answer.status == 401

    asyncio.run(run())


def test_services_hold_no_slot_afterwards(app: FastAPI, documented: set[str]) -> None:
    """However a request ends."""

    async def run() -> None:
        async with running(app):
            key, ids = await prepared(app)
            has: Services = app.state.services
            before = has.slots._value
            for sent in (
                Sent("GET", b"/v1/jobs"),
                Sent("GET", b"/v1/jobs", b"limit=x"),
                Sent("POST", b"/v1/jobs", body=b"{}", headers=(JSON,)),
                Sent("DELETE", f"/v1/jobs/{ids['job_id']}".encode()),
            ):
                check(sent, await send(app, sent, key), documented)
            assert has.slots._value == before

    asyncio.run(run())

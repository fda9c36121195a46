"""Database text traps: NUL, lone surrogates and NaN, wherever a model or an error may put them. On both databases."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import structlog

from app.db import Database
from app.keys.models import Tenant
from app.logs import configure_logging
from app.sweeps.models import Sweep
from app.text import json_text, readable
from tests.helpers.api import CRASH, REPORT, Api, make_key
from workers.engine.report import Metric
from workers.logs import LogShipper

TRAPS = ["a\0b", "a\ud800b", "a\udc80", "\udc80\ud800", "\0", "\ud83d\0", "␀\0", "a\u0001\u2028\ufffe"]
PAIR = "\ud83d\ude00"
"""Two halves of one character, as `json.loads` never leaves them and string slicing may."""


@pytest.mark.parametrize("text", TRAPS)
def test_readable_text_is_storable_and_as_long(text: str) -> None:
    found = readable(text)
    found.encode()
    assert "\0" not in found
    assert len(found) == len(text)
    assert readable(found) == found


def test_what_is_storable_is_not_touched() -> None:
    for value in ("plain", "ünï ␀ � 😀", 1, 2.5, None, True, b"\0", {"a": ["b", (1, "c")]}):
        assert readable(value) == value
        assert type(readable(value)) is type(value)


def test_halves_that_stand_together_are_joined() -> None:
    assert readable(f"a{PAIR}b\0") == "a😀b␀"


def test_json_has_no_nan_and_clean_keys() -> None:
    text = json_text({"k\0": [float("nan"), float("inf"), 1.5, "\ud800"], "t": (1, "\0")})
    assert json.loads(text) == {"k␀": [None, None, 1.5, "�"], "t": [1, "␀"]}


class TestThroughTheService:
    def test_an_attempts_words_are_stored_and_shown(self, api: Api) -> None:
        for text in TRAPS:
            self.fail_with(api, text)

    def fail_with(self, api: Api, text: str) -> None:
        job = api.submit()
        held = api.claim()
        api.record(held, ("log", {"message": text, text: [text, {"deep": text}], "loss": float("nan")}))
        api.fail(held, replace(CRASH, message=f"says {text}", hint=text, stage=text, field=text))
        shown = api.get(job).json()
        assert shown["status"] == "failed"
        assert shown["error"]["message"] == f"says {readable(text)}"
        events = api.get(job, "/events").json()["data"]
        data = next(e["data"] for e in events if e["type"] == "log")
        assert data == {
            "message": readable(text),
            readable(text): [readable(text), {"deep": readable(text)}],
            "loss": None,
        }
        assert api.get(job, "/attempts").json()["data"][0]["error"]["hint"] == readable(text)

    def test_a_report_is_stored_and_shown(self, api: Api) -> None:
        metric = Metric(name="x/\ud800", unit="\0", higher_is_better=False, dense=2.0, pruned=1.0, ratio=None)
        report = REPORT.model_copy(update={"warnings": list(TRAPS), "metrics": [metric]})
        job = api.submit()
        api.succeed(api.claim(), report)
        assert api.get(job).json()["metrics"]["x/�"] == {"dense": 2.0, "pruned": 1.0, "ratio": None, "unit": "␀"}
        assert api.get(job, "/report").json()["warnings"] == [readable(text) for text in TRAPS]

    def test_names_and_labels_are_stored(self, api: Api) -> None:
        """The API takes no control characters; whoever writes past it, the command line above all, breaks nothing."""
        make_key(api.services, "tenant\0\ud800")
        with api.database.write() as session:
            session.add(Sweep(id="swp_1", tenant_id=api.tenant_id, name="n\0", parameters=["/\0"], created_at=1))
        with api.database.read() as session:
            sweep = session.get_one(Sweep, "swp_1")
            assert (sweep.name, sweep.parameters) == ("n␀", ["/␀"])
            assert session.query(Tenant).filter(Tenant.name == "tenant\0\ud800").one().name == "tenant␀�"

    def test_what_is_asked_for_finds_nothing(self, api: Api) -> None:
        """A query parameter reaches the database, too."""
        for parameter in ("model_id", "label"):
            value = "a:b%00" if parameter == "label" else "a%00b"
            assert api.client.get(f"/v1/jobs?{parameter}={value}").status_code in (200, 422)


def test_a_failures_last_words_reach_the_log(api: Api) -> None:
    held_scope = (api.tenant_id, "job_1", 1, 1)
    store = api.services.store
    LogShipper(store, held_scope, api.services.settings.home / "no log").say_and_ship("bad \ud800\0 end\n")
    assert b"".join(store.read_log(*held_scope)).decode() == "bad �␀ end\n"


def test_log_pieces_of_a_number_that_is_taken_get_the_next(api: Api) -> None:
    """By an attempt that a database restored from a backup does not know of."""
    scope, store = (api.tenant_id, "job_1", 1, 1), api.services.store
    store.put_bytes(store.log_key(*scope, 0), b"old\n")
    LogShipper(store, scope, api.services.settings.home / "no log").say_and_ship("new\n")
    assert b"".join(store.read_log(*scope)) == b"old\nnew\n"


def test_our_own_log_takes_any_text(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    structlog.get_logger("traps").warning("attempt_failed", message="bad \ud800\0", nested={"k": ["\udc80"]})
    [line] = capfd.readouterr().err.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert (found["message"], found["nested"]) == ("bad �␀", {"k": ["�"]})


def test_executemany_is_covered(database: Database) -> None:
    with database.write() as session:
        session.add_all(Tenant(id=f"ten_{n}", name=f"{n}\0", created_at=1) for n in range(3))
    with database.read() as session:
        assert sorted(tenant.name for tenant in session.query(Tenant)) == ["0␀", "1␀", "2␀"]

"""GET /v1/jobs: pages, filters, cursors, and the indexes they run on."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone
from typing import Any, get_args

import httpx2
import pytest
from sqlalchemy import Text, cast, event, insert, join, literal, select, text, true, update

from app.db import table
from app.http.pagination import encode_cursor
from app.jobs import repository
from app.jobs.bodies import Bodies
from app.jobs.models import Job
from app.jobs.repository import Filters, Order, Page
from app.jobs.schemas import JobPage
from tests.helpers.api import GATED, SPEC, WANDA, Api, judged
from workers.engine.report import Verdict

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def listed(api: Api, **query: Any) -> list[str]:
    response = api.client.get("/v1/jobs", params=query)
    assert response.status_code == 200, response.text
    return [job["id"] for job in JobPage.model_validate(response.json()).model_dump()["data"]]


@pytest.fixture
def jobs(api: Api) -> list[dict[str, Any]]:
    """Seven jobs, oldest first, a second apart but for two made in the same millisecond."""
    made = [
        api.submit(
            {**SPEC, "model": {"id": "bookworm-7m" if n % 2 else "owner/name"}},
            labels={"team": "ab"[n % 2], "n": str(n)},
        )
        for n in range(7)
    ]
    with api.database.write() as session:
        for n, job in enumerate(made):
            at = 1_700_000_000_000 + 1000 * min(n, 5)
            session.execute(update(Job).where(Job.id == job["id"]).values(created_at=at))
    return sorted((api.get(job).json() for job in made), key=lambda job: (job["created_at"], job["id"]))


class TestMethodsAndText:
    def test_a_method_is_found_in_any_stage_and_by_its_whole_name(self, api: Api) -> None:
        plain = api.submit()["id"]
        measured = api.submit({**GATED, "allocate": {"method": "owl"}, "calibrate": WANDA["calibrate"]})["id"]
        assert listed(api, method="magnitude") == [measured, plain]
        assert listed(api, method="uniform") == [plain]  # the default counts
        assert listed(api, method="owl") == listed(api, method="size") == [measured]
        assert listed(api, method="mask", verdict="pass") == []
        refused = api.client.get("/v1/jobs", params={"method": "mas"})
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, "unknown_method")
        assert "wanda" in refused.json()["errors"][0]["allowed"]

    def test_text_is_found_in_id_model_methods_and_labels(self, api: Api, foreign: httpx2.Headers) -> None:
        one = api.submit(labels={"team": "Search", "share": "100%"})["id"]
        other = api.submit({**SPEC, "model": {"id": "Owner/my_name"}})["id"]
        api.client.post("/v1/jobs", json={"spec": SPEC, "labels": {"team": "search"}}, headers=foreign)
        for text_, found in {
            one[-8:]: [one], "search": [one], "TEAM": [one], "0%": [one], "%": [one],
            "owner/MY_": [other], "y_n": [other], "my%": [], "_ame": [], "MAGNITUDE": [other, one],
            "job_": [other, one], "nowhere": [], "'": [], "\\": [],
        }.items():  # fmt: skip
            assert listed(api, search=text_) == found, text_
        assert listed(api, search="mask", model="bookworm-7m", label="team:Search") == [one]
        assert api.client.get("/v1/jobs", params={"search": "a\0"}).status_code == 422

    def test_pages_keep_to_what_is_sought(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        first = api.client.get("/v1/jobs", params={"search": "OWNER", "limit": 3, "count": "true"}).json()
        assert (len(first["data"]), first["total"]) == (3, 4)
        second = api.client.get(
            "/v1/jobs", params={"search": "OWNER", "limit": 3, "cursor": first["next_cursor"]}
        ).json()
        assert len(second["data"]) == 1
        moved = api.client.get("/v1/jobs", params={"search": "book", "cursor": first["next_cursor"]})
        assert moved.json()["code"] == "cursor_mismatch"


class TestPages:
    def test_are_newest_first_and_cover_every_job_once(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        seen, url = [], "/v1/jobs?limit=2"
        for _ in itertools.count():
            response = api.client.get(url)
            page = response.json()
            seen += [job["id"] for job in page["data"]]
            assert page["has_more"] is (page["next_cursor"] is not None)
            if not page["has_more"]:
                assert "Link" not in response.headers
                break
            link = response.headers["Link"]
            assert link.endswith('>; rel="next"')
            url = link[1 : link.index(">")]
        assert seen == [job["id"] for job in reversed(jobs)]

    def test_a_new_job_does_not_shift_the_next_page(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        first = api.client.get("/v1/jobs", params={"limit": 3}).json()
        api.submit()
        second = api.client.get("/v1/jobs", params={"limit": 3, "cursor": first["next_cursor"]}).json()
        assert [job["id"] for job in first["data"] + second["data"]] == [job["id"] for job in reversed(jobs)][:6]

    def test_entries_are_the_jobs_themselves(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        assert api.client.get("/v1/jobs").json()["data"] == list(reversed(jobs))

    def test_hold_only_the_tenants_jobs(self, api: Api, foreign: httpx2.Headers) -> None:
        api.submit()
        assert api.client.get("/v1/jobs", headers=foreign).json() == {
            "data": [],
            "next_cursor": None,
            "has_more": False,
            "total": None,
        }


class TestFilters:
    def test_status(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        api.post(jobs[2], "cancel")
        api.claim()
        assert listed(api, status="cancelled") == [jobs[2]["id"]]
        assert listed(api, status="running,cancelled") == [jobs[2]["id"], jobs[0]["id"]]
        assert len(listed(api, status="queued")) == 5

    def test_several_statuses_page_in_one_order(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        for n in (0, 3, 6):
            api.post(jobs[n], "cancel")
        query = {"status": "queued,cancelled", "limit": 3}
        first = api.client.get("/v1/jobs", params=query).json()
        second = api.client.get("/v1/jobs", params={**query, "cursor": first["next_cursor"]}).json()
        assert [job["id"] for job in first["data"] + second["data"]] == [job["id"] for job in reversed(jobs)][:6]

    def test_labels_must_all_match(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        team = [job["id"] for job in reversed(jobs) if job["labels"]["team"] == "a"]
        assert listed(api, label="team:a") == team
        assert listed(api, label=["team:a", "n:4"]) == [j["id"] for j in jobs if j["labels"]["n"] == "4"]
        assert listed(api, label=["team:b", "n:4"]) == []
        assert listed(api, label="team:") == []

    def test_a_label_value_may_hold_a_colon(self, api: Api) -> None:
        job = api.submit(labels={"url": "https://example.org"})
        assert listed(api, label="url:https://example.org") == [job["id"]]

    def test_model(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        assert len(listed(api, model="owner/name")) == 4
        assert listed(api, model="owner/other") == []

    def test_verdict(self, api: Api) -> None:
        ids = {}
        for verdict in VERDICTS:
            job = api.submit(GATED)
            api.succeed(api.claim(), judged(verdict))
            ids[verdict] = job["id"]
        api.succeeded()  # without gates
        for verdict in VERDICTS:
            assert listed(api, verdict=verdict) == [ids[verdict]]
        assert listed(api, verdict="fail", status="failed") == []

    def test_time(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        third = jobs[2]["created_at"]
        assert listed(api, created_after=third) == [job["id"] for job in reversed(jobs[3:])]
        assert listed(api, created_before=third) == [job["id"] for job in reversed(jobs[:2])]
        elsewhere = datetime.fromisoformat(third).astimezone(timezone(timedelta(hours=-7))).isoformat()
        assert listed(api, created_before=elsewhere) == [job["id"] for job in reversed(jobs[:2])]


class TestOrders:
    @pytest.mark.parametrize("by", ["created_at", "updated_at", "priority", "model"])
    def test_pages_cover_every_job_once_in_order(self, api: Api, by: str) -> None:
        for n in range(7):
            job = api.submit({**SPEC, "model": {"id": "bookworm-7m" if n % 2 else "owner/name"}}, priority=n % 3)
            if n % 3:
                api.post(job, "cancel")
        jobs = api.client.get("/v1/jobs").json()["data"]

        def key(job: dict[str, Any]) -> tuple[Any, ...]:
            first = {"model": job["spec"]["model"]["id"], "priority": job["priority"]}.get(by, job.get(by))
            return (first, job["id"]) if by == "updated_at" else (first, job["created_at"], job["id"])

        for sign in ("", "-"):
            seen, cursor = [], None
            while True:
                query = {"sort": sign + by, "limit": 2, **({"cursor": cursor} if cursor else {})}
                page = api.client.get("/v1/jobs", params=query).json()
                seen += page["data"]
                if (cursor := page["next_cursor"]) is None:
                    break
            assert seen == sorted(jobs, key=key, reverse=sign == "-")

    def test_with_several_statuses(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        for n in (0, 3, 6):
            api.post(jobs[n], "cancel")
        assert listed(api, status="queued,cancelled", sort="created_at") == [job["id"] for job in jobs]

    def test_a_cursor_is_bound_to_its_order(self, api: Api, jobs: list[dict[str, Any]]) -> None:
        cursor = api.client.get("/v1/jobs?limit=1&sort=priority").json()["next_cursor"]
        response = api.client.get("/v1/jobs", params={"limit": 1, "sort": "-priority", "cursor": cursor})
        assert (response.status_code, response.json()["code"]) == (400, "cursor_mismatch")

    def test_no_other(self, api: Api) -> None:
        problem = api.client.get("/v1/jobs?sort=spec").json()
        assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "?sort")
        assert "-created_at" in problem["errors"][0]["allowed"]


class TestTotals:
    def test_count_what_passes_the_filters_on_all_pages(
        self, api: Api, jobs: list[dict[str, Any]], foreign: httpx2.Headers
    ) -> None:
        api.post(jobs[2], "cancel")

        def total(headers: httpx2.Headers | None = None, **query: Any) -> int:
            found: int = api.client.get(
                "/v1/jobs", params={"count": "true", "limit": 1, **query}, headers=headers
            ).json()["total"]
            return found

        assert total() == 7
        assert total(status="queued") == 6
        assert total(status="queued,cancelled", label="team:a") == 4
        assert total(model="owner/other") == 0
        assert total(foreign) == 0
        assert api.client.get("/v1/jobs").json()["total"] is None

    def test_end_somewhere(self, api: Api, jobs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(repository, "TOTAL_MOST", 3)
        assert api.client.get("/v1/jobs?count=true").json()["total"] == 3


class TestCursors:
    def cursor(self, api: Api) -> str:
        for _ in range(2):
            api.submit()
        return api.client.get("/v1/jobs", params={"limit": 1}).json()["next_cursor"]

    def refused(self, api: Api, cursor: str, **query: str) -> str:
        response = api.client.get("/v1/jobs", params={"cursor": cursor, **query})
        assert response.status_code == 400, response.text
        return response.json()["code"]

    def test_one_changed_character_is_refused(self, api: Api) -> None:
        cursor = self.cursor(api)
        for i in range(0, len(cursor), 5):
            changed = cursor[:i] + ("A" if cursor[i] != "A" else "B") + cursor[i + 1 :]
            assert self.refused(api, changed) == "invalid_cursor"
        assert self.refused(api, "not base64!") == "invalid_cursor"
        assert self.refused(api, "") == "invalid_cursor"

    def test_signed_with_another_secret_is_refused(self, api: Api) -> None:
        job = api.submit()
        assert self.refused(api, encode_cursor(b"guess", "", 0, job["id"])) == "invalid_cursor"

    def test_other_filters_are_refused(self, api: Api) -> None:
        assert self.refused(api, self.cursor(api), status="queued") == "cursor_mismatch"

    def test_another_tenants_is_refused(self, api: Api, foreign: httpx2.Headers) -> None:
        cursor = self.cursor(api)
        response = api.client.get("/v1/jobs", params={"cursor": cursor}, headers=foreign)
        assert (response.status_code, response.json()["code"]) == (400, "cursor_mismatch")


def test_pages_of_a_large_table_come_from_an_index(api: Api) -> None:
    """Of 20,000 jobs, no page is found by reading the whole table."""
    template = api.submit(labels={"team": "rare"})
    with api.database.write() as session:
        jobs = table(Job)
        counted = select(literal(0).label("n")).cte(recursive=True)
        counted = counted.union_all(select(counted.c.n + 1).where(counted.c.n < 19_999))
        changed = {
            "id": literal(f"job_{'0' * 25}") + cast(1_000_000 + counted.c.n, Text),
            "created_at": jobs.c.created_at - counted.c.n,
            "status": literal("succeeded"),
        }
        copies = select(*({**jobs.c, **changed}.values())).select_from(join(jobs, counted, true()))
        copies = copies.where(jobs.c.id == template["id"])
        session.execute(insert(jobs).from_select(list(jobs.c), copies))
        created_at = session.execute(select(jobs.c.created_at).where(jobs.c.id == template["id"])).scalar_one()
    with api.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("analyze"))
    newer = (created_at + 1, "job_")
    for order, behind, index in (
        (Order("updated_at"), newer, "ix_jobs_list_updated"),
        (Order("updated_at", descending=False), (0, ""), "ix_jobs_list_updated"),
        (Order("priority"), (7, *newer), "ix_jobs_list_priority"),
        (Order("model", descending=False), ("a", 0, ""), "ix_jobs_list_model"),
    ):
        assert index in (plan := explained(api, Page(Filters(), 51, behind, order))), (order, plan)
        assert "SCAN jobs" not in plan and "Seq Scan on jobs" not in plan, (order, plan)  # noqa: PT018
    for filters, index in (
        (Filters(), "ix_jobs_list"),
        (Filters(statuses=("failed",)), "ix_jobs_list_status"),
        (Filters(statuses=("failed", "queued")), "ix_jobs_list_status"),
        (Filters(model_id="rare/model"), "ix_jobs_list_model"),
        (Filters(verdict="fail"), "ix_jobs_list_verdict"),
        (Filters(labels=(("team", "rare"),)), "job_labels"),
    ):
        plan = explained(api, Page(filters, 51, newer))
        assert index in plan, (filters, plan)
        assert "SCAN jobs" not in plan, (filters, plan)
        assert "Seq Scan on jobs" not in plan, (filters, plan)


def explained(api: Api, asked: Page) -> str:
    """The database's plan for a page of 50."""
    engine, statements = api.database.engine, []

    def note(connection: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        statements.append((sql, parameters))

    event.listen(engine, "before_cursor_execute", note)
    with api.database.read() as session:
        repository.whole_page(session.connection(), api.tenant_id, asked)
    event.remove(engine, "before_cursor_execute", note)
    # The relay's thread looks into its outbox meanwhile.
    [(sql, parameters)] = [s for s in statements if "ORDER BY" in s[0] and "outbox" not in s[0]]
    explain = "explain query plan" if engine.dialect.name == "sqlite" else "explain"
    with engine.connect() as connection:
        return "\n".join(str(line) for line in connection.exec_driver_sql(f"{explain} {sql}", parameters).all())


class TestKeptBodies:
    """A page is made of bodies rendered before, where nothing has changed since."""

    def test_every_change_is_shown(self, api: Api) -> None:
        job = api.submit()

        def shown() -> None:
            assert api.client.get("/v1/jobs").json()["data"] == [api.get(job).json()]

        shown()
        for change in (
            lambda: api.client.patch(f"/v1/jobs/{job['id']}", json={"labels": {"a": "b"}}),
            lambda: api.fail(api.claim()),
            lambda: api.post(job, "retry"),
            lambda: api.post(job, "cancel"),
            lambda: api.post(job, "retry"),
        ):
            before = api.client.get("/v1/jobs").json()
            change()
            shown()
            assert api.client.get("/v1/jobs").json() != before
        held = api.claim()
        shown()
        api.record(held, ("stage", {"stage": "prune"}))
        shown()
        api.succeed(held)
        shown()
        api.client.delete(f"/v1/jobs/{job['id']}")
        assert api.client.get("/v1/jobs").json()["data"] == []

    def test_a_new_place_in_the_queue_is_shown(self, api: Api) -> None:
        """It changes without the job."""
        api.submit()
        second = api.submit()
        assert api.client.get("/v1/jobs").json()["data"][0]["queue"] == {"position": 2, "waiting_for": None}
        api.claim()
        assert api.client.get("/v1/jobs").json()["data"][0] == api.get(second).json() | {
            "queue": {"position": 1, "waiting_for": None}
        }

    def test_what_has_not_changed_is_not_read_again(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(3):
            api.submit()
        first = api.client.get("/v1/jobs")
        monkeypatch.setattr(repository, "whole_page", lambda *args, **kw: pytest.fail("all was read again"))
        assert api.client.get("/v1/jobs").content == first.content
        assert len(listed(api, status="queued")) == 3

    def test_they_take_no_more_than_they_may(self, api: Api) -> None:
        for _ in range(3):
            api.submit()
        size = len(api.client.get("/v1/jobs?limit=1").content)
        bodies = Bodies(most_bytes=2 * size)
        with api.database.rows() as connection:
            for _ in range(2):
                _, found = bodies.page(connection, api.tenant_id, Page(Filters(), 10))
                assert len(found) == 3
        assert 0 < bodies._bytes <= 2 * size
        assert bodies._bytes == sum(map(len, bodies._bodies.values()))

"""Retention: policies of jobs, sweeps and tenants, the service's bound, pins, and what is said of what is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, text, update
from typer.testing import CliRunner

from app.cli import cli
from app.db import clock
from app.jobs import retention
from app.jobs.models import Event, FileRemoval, Job
from app.publications.models import Publication
from app.settings import Settings
from tests.helpers.api import FILES, REPORT, SPEC, Api, make_key, others, pointers, with_manifest
from workers.engine.report import Report, Verdict
from workers.reconciler import OVERLAP_MS, Reconciler

DAY = 86_400_000
STAYS = {"manifest.json", "report.html", "README.md"}


@pytest.fixture
def reconciler(api: Api, settings: Settings) -> Iterator[Reconciler]:
    made = Reconciler(settings)
    made.store = api.services.store
    yield made
    made.database.dispose()


def made(api: Api, **fields: Any) -> dict[str, Any]:
    """A job that has succeeded, with a manifest."""
    return api.succeeded(with_manifest(others()), **fields)


def shift(api: Api, job: dict[str, Any], milliseconds: int) -> None:
    """Let its end have been so much earlier."""
    with api.database.write() as session:
        session.execute(
            update(Job)
            .where(Job.id == job["id"])
            .values(finished_at=Job.finished_at - milliseconds, files_due_at=Job.files_due_at - milliseconds)
        )


def paths(api: Api, job: dict[str, Any]) -> set[str]:
    return {file["path"] for file in api.get(job, "/artifacts").json()["data"]} - {"manifest.jws"}


def files(api: Api, job: dict[str, Any]) -> list[str]:
    """Of the job, in the store."""
    return [key for key in api.services.store.job_keys(api.tenant_id, job["id"]) if "/files/" in key]


class TestPolicy:
    def test_is_the_jobs_or_the_tenants_as_it_was(self, api: Api) -> None:
        assert api.submit()["retention"]["keep"] == "all"
        tenant = f"/v1/tenants/{api.tenant_id}"
        body = {"retention": {"keep": "report", "days": 7}}
        assert api.client.patch(tenant, json=body).json()["retention"] == body["retention"]
        first, own = api.submit(), api.submit(retention={"keep": "all"})
        assert (first["retention"]["keep"], first["retention"]["days"]) == ("report", 7)
        assert own["retention"]["keep"] == "all"
        sweep = api.client.post("/v1/sweeps", json={"spec": SPEC, "grid": {"/seed": [1, 2]}}).json()
        child = api.get({"id": sweep["children"][0]["job_id"]}).json()
        assert (sweep["retention"], child["retention"]["keep"], child["retention"]["days"]) == (None, "report", 7)
        api.client.patch(tenant, json={"retention": {"keep": "all"}})
        assert api.get(first).json()["retention"]["days"] == 7
        me = api.client.get("/v1/me").json()
        assert (me["retention"], me["limits"]["keep_days"]) == ({"keep": "all", "days": 0}, None)

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"keep": "all", "days": 3}, "/retention"),
            ({"keep": "front"}, "/retention/keep"),
            ({"keep": "report", "days": -1}, "/retention/days"),
            ({"keep": "report", "days": 36_501}, "/retention/days"),
            ({"days": 3}, "/retention/keep"),
            ({"keep": "report", "for": 3}, "/retention/for"),
        ],
    )
    def test_nonsense_is_refused(self, api: Api, body: dict[str, Any], pointer: str) -> None:
        answer = api.client.post("/v1/jobs", json={"spec": SPEC, "retention": body})
        assert (answer.status_code, pointers(answer.json())) == (422, [pointer])
        if body.get("keep") != "front":
            answer = api.client.post("/v1/sweeps", json={"spec": SPEC, "grid": {"/seed": [1]}, "retention": body})
            assert (answer.status_code, pointers(answer.json())) == (422, [pointer])

    @pytest.mark.parametrize(
        ("kept", "pointer"),
        [
            ({"keep": "report", "quality": "sparsity"}, "/retention"),
            ({"keep": "front", "quality": "perplexity/no.txt"}, "/retention/quality"),
            ({"keep": "front", "cost": "size"}, "/retention/cost"),
        ],
    )
    def test_axes_are_measured_by_every_child(self, api: Api, kept: dict[str, Any], pointer: str) -> None:
        spec = {**SPEC, "evaluate": [{"method": "size"}]}
        answer = api.client.post("/v1/sweeps", json={"spec": spec, "grid": {"/seed": [1]}, "retention": kept})
        assert (answer.status_code, pointers(answer.json())) == (422, [pointer]), answer.text

    def test_the_services_bound(self, api: Api) -> None:
        object.__setattr__(api.services.settings, "keep_days", 30)
        answer = api.client.post("/v1/jobs", json={"spec": SPEC, "retention": {"keep": "report", "days": 31}})
        assert (answer.status_code, pointers(answer.json())) == (422, ["/retention/days"])
        job = made(api, retention={"keep": "all"})
        assert job["retention"]["limit_days"] == 30
        with api.database.read() as session:
            found = session.get_one(Job, job["id"])
            assert found.files_due_at == (found.finished_at or 0) + 30 * DAY
        assert api.client.get("/v1/me").json()["limits"]["keep_days"] == 30


class TestRemoval:
    def test_only_the_report_stays_and_all_say_so(self, api: Api, reconciler: Reconciler, foreign: Any) -> None:
        job = made(api, retention={"keep": "report"})
        before, etag = api.client.get("/v1/me").json()["usage"], api.get(job).headers["ETag"]
        reconciler.apply_retention()
        now = api.get(job, If_None_Match=etag)
        assert now.status_code == 200
        kept = now.json()["retention"]
        assert (kept["removed"]["because"], kept["files_until"]) == ("report", None)
        assert paths(api, job) == STAYS
        assert {key.rpartition("/")[2] for key in files(api, job)} == STAYS
        listed = api.get(job, "/artifacts").json()["removed"]
        size = len(FILES["model.safetensors"]) + 16
        assert listed == {**kept["removed"], "paths": ["model.safetensors"], "bytes": size}
        for method in ("GET", "HEAD"):
            gone = api.client.request(method, f"/v1/jobs/{job['id']}/artifacts/model.safetensors")
            assert gone.status_code == 410
        problem = api.get(job, "/artifacts/model.safetensors").json()
        assert (problem["code"], problem["because"]) == ("artifact_removed", "report")
        assert problem["removed_at"] == kept["removed"]["at"]
        assert api.get(job, "/artifacts/never.bin").status_code == 404
        assert api.get(job, "/report").json()["sparsity"] == 0.5
        assert api.get(job, "/report", Accept="text/html").status_code == 200
        after = api.client.get("/v1/me").json()["usage"]
        assert (after["stored_bytes"], after["removed_bytes"]) == (before["stored_bytes"] - size, size)
        assert now.json()["stored_bytes"] == job["stored_bytes"] - size
        event = api.get(job, "/events").json()["data"][-1]
        assert (event["type"], event["data"]) == ("files_removed", {"because": "report", "files": 1, "bytes": size})
        assert api.client.get("/v1/models?source=job").json()["data"] == []
        for path in ("", "/artifacts", "/artifacts/model.safetensors"):
            assert api.client.get(f"/v1/jobs/{job['id']}{path}", headers=foreign).status_code == 404

    def test_not_a_moment_before_it_is_due(self, api: Api, reconciler: Reconciler) -> None:
        """However the clock was moved: days are counted from the end as it was written down."""
        job = made(api, retention={"keep": "report", "days": 30})
        until = api.get(job).json()["retention"]["files_until"]
        assert until[:10] > job["finished_at"][:10]
        reconciler.apply_retention()
        shift(api, job, 30 * DAY - 60_000)
        reconciler.apply_retention()
        assert "model.safetensors" in paths(api, job)
        with api.database.write() as session:  # due at this very moment
            session.execute(update(Job).where(Job.id == job["id"]).values(files_due_at=clock(session)))
            assert retention.remove_next(session) == job["id"]
        assert paths(api, job) == STAYS

    def test_much_is_done_in_several_turns(self, api: Api, reconciler: Reconciler, monkeypatch: Any) -> None:
        """Leases that expire do not wait for the last file."""
        monkeypatch.setattr("workers.reconciler.TURN_S", 0)
        jobs = [made(api, retention={"keep": "report"}) for _ in range(2)]
        left = []
        for _ in range(3):
            reconciler.apply_retention()
            left.append(sum("model.safetensors" in paths(api, job) for job in jobs))
        assert left == [1, 0, 0]

    def test_the_bound_takes_what_all_kept(self, api: Api, reconciler: Reconciler) -> None:
        object.__setattr__(api.services.settings, "keep_days", 30)
        jobs = [made(api), made(api, retention={"keep": "report", "days": 3})]
        for job in jobs:
            shift(api, job, 30 * DAY)
        reconciler.apply_retention()
        assert [api.get(job).json()["retention"]["removed"]["because"] for job in jobs] == ["limit", "report"]

    def test_a_pinned_job_keeps_all_until_it_is_pinned_no_more(self, api: Api, reconciler: Reconciler) -> None:
        job = made(api, retention={"keep": "report"})
        url = f"/v1/jobs/{job['id']}"
        pinned = api.client.patch(url, json={"pinned": True}).json()
        assert (pinned["retention"]["pinned"], pinned["retention"]["files_until"]) == (True, None)
        assert pinned["labels"] == job["labels"]
        reconciler.apply_retention()
        assert "model.safetensors" in paths(api, job)
        assert api.client.patch(url, json={"labels": {"a": "1"}}).json()["retention"]["pinned"] is True
        api.client.patch(url, json={"pinned": False})
        reconciler.apply_retention()
        assert paths(api, job) == STAYS
        refused = api.client.patch(url, json={"pinned": True})
        assert (refused.status_code, refused.json()["code"]) == (409, "files_removed")

    def test_only_who_may_write_pins(self, api: Api, foreign: httpx2.Headers) -> None:
        job = made(api)
        reader = {"Authorization": f"Bearer {make_key(api.services, 'ours', ('jobs:read',))[0]}"}
        for headers, status in ((reader, 403), (foreign, 404)):
            answer = api.client.patch(f"/v1/jobs/{job['id']}", json={"pinned": True}, headers=headers)
            assert answer.status_code == status

    @pytest.mark.parametrize("state", ["waiting", "pending", "running"])
    def test_what_is_being_published_is_not_touched(self, api: Api, reconciler: Reconciler, state: str) -> None:
        job, other = made(api, retention={"keep": "report"}), made(api, retention={"keep": "report"})
        with api.database.write() as session:
            session.add(
                Publication(
                    id="pub_1", job_id=job["id"], tenant_id=api.tenant_id, params={}, state=state,
                    due_at=clock(session), created_at=clock(session),
                )
            )  # fmt: skip
        reconciler.apply_retention()
        assert "model.safetensors" in paths(api, job)
        assert paths(api, other) == STAYS
        with api.database.write() as session:
            session.execute(update(Publication).values(state="published"))
        reconciler.apply_retention()
        assert paths(api, job) == STAYS

    def test_what_is_gone_is_not_published(self, api: Api, reconciler: Reconciler) -> None:
        job = made(api, retention={"keep": "report"})
        reconciler.apply_retention()
        with api.database.write() as session:
            session.add(
                Publication(
                    id="pub_1", job_id=job["id"], tenant_id=api.tenant_id, params={}, state="failed",
                    due_at=clock(session), created_at=clock(session),
                )
            )  # fmt: skip
        answer = api.client.post(f"/v1/jobs/{job['id']}/publications/pub_1/retry")
        assert (answer.status_code, answer.json()["code"]) == (409, "files_removed")

    def test_whoever_is_killed_meanwhile_leaves_the_rest_to_the_next(self, api: Api, reconciler: Reconciler) -> None:
        """Between the commit and the deletion, nothing of it is offered any more, and then it goes."""
        job = made(api, retention={"keep": "report"})
        with api.database.write() as session:
            assert retention.remove_next(session) == job["id"]
        assert paths(api, job) == STAYS
        assert api.get(job, "/artifacts/model.safetensors").status_code == 410
        assert any("model.safetensors" in key for key in files(api, job))
        reconciler.remove_files()
        assert {key.rpartition("/")[2] for key in files(api, job)} == STAYS
        with api.database.read() as session:
            assert session.scalars(select(FileRemoval.done_at)).all() != [None]

    def test_a_file_that_another_job_has_stays_for_it(self, api: Api, reconciler: Reconciler) -> None:
        content = with_manifest(others())
        job, other = api.succeeded(content, retention={"keep": "report"}), api.succeeded(content)
        reconciler.apply_retention()
        assert api.get(job, "/artifacts/model.safetensors").status_code == 410
        assert api.get(other, "/artifacts/model.safetensors").content == content["model.safetensors"]
        api.client.delete(f"/v1/jobs/{other['id']}")
        reconciler.remove_files()
        assert not any("model.safetensors" in key for each in (job, other) for key in files(api, each))
        api.client.delete(f"/v1/jobs/{job['id']}")
        assert api.client.get("/v1/me").json()["usage"]["stored_bytes"] == 0


class TestCommands:
    def run(self, *arguments: str) -> Any:
        done = CliRunner().invoke(cli, [*arguments, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def test_submit_pin_and_status(self, server: httpx2.Client, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setenv("ESPALIER_URL", str(server.base_url))
        monkeypatch.setenv("ESPALIER_API_KEY", server.headers["Authorization"].removeprefix("Bearer "))
        spec = tmp_path / "spec.json"
        spec.write_text(json.dumps(SPEC))
        job = self.run("submit", str(spec), "--keep", "report", "--keep-days", "3")
        assert (job["retention"]["keep"], job["retention"]["days"]) == ("report", 3)
        assert self.run("pin", job["id"])["retention"]["pinned"] is True
        assert self.run("unpin", job["id"])["retention"]["pinned"] is False
        refused = CliRunner().invoke(cli, ["submit", str(spec), "--keep-days", "3"])
        assert refused.exit_code == 2

    def test_a_tenants_default(self, api: Api, settings: Settings, monkeypatch: Any) -> None:
        monkeypatch.setattr("app.settings.get_settings", lambda: settings)
        [found] = self.run("tenants", "set", "ours", "--keep", "report", "--keep-days", "3")
        assert found["retention"] == {"keep": "report", "days": 3} == api.client.get("/v1/me").json()["retention"]
        assert CliRunner().invoke(cli, ["tenants", "set", "ours", "--keep-days", "3"]).exit_code == 2
        shown = CliRunner().invoke(cli, ["tenants", "list"], env={"COLUMNS": "200"}).stdout
        assert "report after 3 d" in shown


def measured(perplexity: float, seconds: float, sparsity: float) -> Report:
    """A report with two measurements and the sparsity."""
    metric = REPORT.metrics[0]
    return REPORT.model_copy(
        update={
            "sparsity": sparsity,
            "metrics": [
                metric.model_copy(update={"pruned": perplexity}),
                metric.model_copy(update={"name": "latency/x", "unit": "s", "pruned": seconds, "pruned_stderr": 0.1}),
            ],
        }
    )


class TestFront:
    def submit(self, api: Api, count: int, **kept: Any) -> dict[str, Any]:
        body = {"spec": SPEC, "grid": {"/seed": list(range(count))}, "retention": {"keep": "front", **kept}}
        answer = api.client.post("/v1/sweeps", json=body)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def end(self, api: Api, *value: float, verdict: Verdict | None = None) -> None:
        report = measured(*value).model_copy(update={"verdict": verdict})
        api.succeed(api.claim(), report, with_manifest(others()))

    def whole(self, api: Api, sweep: dict[str, Any]) -> list[int]:
        """Numbers of the children that have their files."""
        return [
            child["number"] for child in sweep["children"] if "model.safetensors" in paths(api, {"id": child["job_id"]})
        ]

    def test_a_child_is_cleaned_as_soon_as_it_is_certainly_beaten(self, api: Api, reconciler: Reconciler) -> None:
        sweep = self.submit(api, 6)
        self.end(api, 10, 5, 0.5)
        self.end(api, 12, 6, 0.5)  # worse in all
        reconciler.apply_retention()
        assert self.whole(api, sweep) == [0]
        self.end(api, 11, 4, 0.5)  # faster
        self.end(api, 10, 5, 0.5)  # equal to the first
        self.end(api, 10, 7, 0.5)  # only slower, and the time need not become an axis
        reconciler.apply_retention()
        assert self.whole(api, sweep) == [0, 2, 3, 4]
        self.end(api, 9, 3, 0.6)  # better than all
        reconciler.apply_retention()
        assert self.whole(api, sweep) == [5]
        front = api.client.get(f"/v1/sweeps/{sweep['id']}/pareto").json()["points"]
        assert [point["number"] for point in front if point["on_front"]] == [5]
        job = api.get({"id": sweep["children"][1]["job_id"]}).json()
        assert job["retention"]["removed"]["because"] == "front"

    def test_near_misses_go_when_all_have_ended_and_the_front_is_what_pareto_says(
        self, api: Api, reconciler: Reconciler
    ) -> None:
        sweep = self.submit(api, 4)
        self.end(api, 10, 5, 0.5)
        self.end(api, 11, 4, 0.501)  # sparser by rounding only, of the two axes
        api.fail(api.claim())
        reconciler.apply_retention()
        assert self.whole(api, sweep) == [0, 1]
        self.end(api, 20, 9, 0.9)
        reconciler.apply_retention()
        points = api.client.get(f"/v1/sweeps/{sweep['id']}/pareto").json()["points"]
        assert self.whole(api, sweep) == [point["number"] for point in points if point["on_front"]]
        failed = next(child for child in sweep["children"] if child["number"] == 2)
        api.post({"id": failed["job_id"]}, "retry")
        self.end(api, 8, 3, 0.95)  # a later one, and better
        reconciler.apply_retention()
        assert self.whole(api, sweep) == [2]

    def test_a_pinned_child_stays_and_days_are_waited_for(self, api: Api, reconciler: Reconciler) -> None:
        sweep = self.submit(api, 3, days=2)
        for value in ((10, 5, 0.5), (11, 6, 0.5), (12, 7, 0.5)):
            self.end(api, *value)
        reconciler.apply_retention()
        assert self.whole(api, sweep) == [0, 1, 2]
        api.client.patch(f"/v1/jobs/{sweep['children'][1]['job_id']}", json={"pinned": True})
        for child in sweep["children"]:
            shift(api, {"id": child["job_id"]}, 2 * DAY)
        reconciler.apply_retention()
        assert self.whole(api, sweep) == [0, 1]

    def test_one_that_could_not_be_looked_at_is_looked_at_again(
        self, api: Api, reconciler: Reconciler, monkeypatch: Any
    ) -> None:
        sweep = self.submit(api, 2)
        for value in ((10, 5, 0.5), (12, 6, 0.5)):
            self.end(api, *value)
        with monkeypatch.context() as patch:
            patch.setattr("app.sweeps.front.mark", lambda session, sweep_id: 1 / 0)
            reconciler.apply_retention()
        reconciler.fronts_seen_at += 2 * OVERLAP_MS
        reconciler.apply_retention()
        assert self.whole(api, sweep) == [0]

    def test_one_whose_gates_fail_is_not_kept_and_costs_no_other_its_files(
        self, api: Api, reconciler: Reconciler
    ) -> None:
        sweep = self.submit(api, 3)
        self.end(api, 10, 5, 0.5, verdict="pass")
        self.end(api, 9, 4, 0.6, verdict="fail")  # better in all that is compared
        reconciler.apply_retention()
        assert self.whole(api, sweep) == [0]
        self.end(api, 9.5, 6, 0.5, verdict="inconclusive")
        reconciler.apply_retention()
        assert self.whole(api, sweep) == [0, 2]

    def test_a_measurement_that_is_not_finite_is_none(self, api: Api, reconciler: Reconciler) -> None:
        sweep = self.submit(api, 2)
        self.end(api, 10, 5, 0.5)
        self.end(api, float("nan"), 6, 0.5)
        assert api.client.get(f"/v1/sweeps/{sweep['id']}/pareto").status_code == 200
        reconciler.apply_retention()
        with api.database.read() as session:
            assert session.scalars(select(Event.type).where(Event.type == "files_removed")).all()
            assert session.execute(text("select count(*) from jobs where files_removed_at is null")).scalar_one() == 1

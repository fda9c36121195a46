"""Sweeps: children that are ordinary jobs, all or none of them; how they are seen, compared, stopped and removed."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select

from app.failure import Failure
from app.jobs.models import Job, Outbox
from app.jobs.upkeep_repository import statuses
from app.settings import Settings
from app.sweeps import figure, repository, service
from app.sweeps.labels import RADIUS, Box, place
from app.sweeps.models import Sweep, SweepChild
from app.sweeps.pareto import pareto as compare
from app.sweeps.repository import ChildRow, Measured
from app.sweeps.schemas import Pareto, SweepPage, SweepPlan, SweepRead
from tests.helpers.api import GATED, REPORT, SPEC, WANDA, Api, judged, pointers
from workers.engine.report import Metric, Report, Verdict
from workers.reconciler import Reconciler

SPARSITY = "/prune/sparsity"
GRID = {"spec": SPEC, "grid": {SPARSITY: [0.3, 0.4, 0.5]}}
ASCENDING = {"spec": GATED, "grid": {SPARSITY: [0.3, 0.4, 0.5]}, "stop": {"ascending": SPARSITY}}
POISON = Failure(code="dataset_too_short", message="too short", hint="more text", retryable=False)


def submit(api: Api, body: dict[str, Any] = GRID, **fields: Any) -> dict[str, Any]:
    response = api.client.post("/v1/sweeps", json={**body, **fields})
    assert response.status_code == 202, response.text
    return dict(response.json())


def look(api: Api, sweep: dict[str, Any]) -> dict[str, Any]:
    found = api.client.get(f"/v1/sweeps/{sweep['id']}")
    assert found.status_code == 200, found.text
    SweepRead.model_validate(found.json())
    return dict(found.json())


def statuses_of(api: Api, sweep: dict[str, Any]) -> list[str]:
    return [child["status"] for child in look(api, sweep)["children"]]


def enforce(api: Api, sweep: dict[str, Any]) -> list[str]:
    with api.database.write() as session:
        return service.enforce_stop(session, sweep["id"])


def refused(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    for query in ("", "?dry_run=true"):
        response = api.client.post(f"/v1/sweeps{query}", json=body)
        assert response.status_code == 422, response.text
        assert response.headers["Content-Type"] == "application/problem+json"
    with api.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0
        assert session.scalar(select(func.count()).select_from(Sweep)) == 0
    return dict(response.json())


class TestCreate:
    def test_children_are_jobs_in_the_order_of_the_grid(self, api: Api) -> None:
        grid = {"/score": [{"method": "magnitude"}, {"method": "wanda"}], SPARSITY: [0.3, 0.4]}
        response = api.client.post("/v1/sweeps", json={"spec": WANDA, "grid": grid, "labels": {"a": "b"}, "name": "n"})
        sweep = response.json()
        assert (response.status_code, response.headers["Location"]) == (202, f"/v1/sweeps/{sweep['id']}")
        assert (sweep["status"], sweep["counts"], sweep["name"]) == ("running", {"queued": 4}, "n")
        assert sweep["parameters"] == ["/score", SPARSITY]
        expected = [("magnitude", 0.3), ("magnitude", 0.4), ("wanda", 0.3), ("wanda", 0.4)]
        for child, (score, sparsity) in zip(sweep["children"], expected, strict=True):
            assert child["values"] == {"/score": {"method": score}, SPARSITY: sparsity}
            job = api.client.get(f"/v1/jobs/{child['job_id']}").json()
            assert (job["spec"]["score"]["method"], job["spec"]["prune"]["sparsity"]) == (score, sparsity)
            assert job["labels"] == {"a": "b", "sweep": sweep["id"]}
        assert [api.claim().job_id for _ in range(4)] == [child["job_id"] for child in sweep["children"]]
        assert look(api, sweep)["counts"] == {"running": 4}

    def test_a_list_may_add_what_the_base_lacks(self, api: Api) -> None:
        changes = [{"/package/dtype": "bfloat16"}, {"/evaluate": [{"method": "size"}]}, {"/prune/pattern": "2:4"}]
        sweep = submit(api, {"spec": SPEC, "list": changes})
        specs = [api.client.get(f"/v1/jobs/{c['job_id']}").json()["spec"] for c in sweep["children"]]
        assert [spec["package"]["dtype"] for spec in specs] == ["bfloat16", "source", "source"]
        assert specs[1]["evaluate"] == [{"method": "size"}]
        assert specs[2]["prune"]["pattern"] == "2:4"

    def test_a_pointer_may_lead_into_a_list(self, api: Api) -> None:
        spec = {**SPEC, "evaluate": [{"method": "size"}, {"method": "perplexity", "dataset": "heldout.txt"}]}
        sweep = submit(api, {"spec": spec, "grid": {"/evaluate/1/sequence_length": [64, 128]}})
        job = api.client.get(f"/v1/jobs/{sweep['children'][1]['job_id']}").json()
        assert [e["method"] for e in job["spec"]["evaluate"]] == ["size", "perplexity"]
        assert job["spec"]["evaluate"][1]["sequence_length"] == 128

    def test_every_child_is_announced(self, api: Api) -> None:
        api.services.relay.stop()
        sweep = submit(api)
        with api.database.read() as session:
            pending = session.scalars(select(Outbox.job_id).order_by(Outbox.id)).all()
        assert pending == [child["job_id"] for child in sweep["children"]]

    def test_a_dry_run_plans_each_child_and_makes_none(self, api: Api) -> None:
        response = api.client.post("/v1/sweeps?dry_run=true", json=GRID)
        plan = SweepPlan.model_validate(response.json())
        assert response.status_code == 200
        zeros = [child.zeros_after for child in plan.children]
        assert zeros == sorted(zeros, key=lambda z: z or 0)
        assert zeros[0] == pytest.approx(0.3 * 5_898_240, rel=1e-3)
        assert plan.elapsed_s == pytest.approx(sum(child.elapsed_s for child in plan.children))
        assert api.client.get("/v1/sweeps").json()["data"] == api.client.get("/v1/jobs").json()["data"] == []

    def test_the_same_key_makes_one_sweep(self, api: Api) -> None:
        first, again = (api.client.post("/v1/sweeps", json=GRID, headers={"Idempotency-Key": "k"}) for _ in range(2))
        assert (again.status_code, again.content) == (202, first.content)
        assert (again.headers["Idempotency-Replayed"], again.headers["Location"]) == ("true", first.headers["Location"])
        other = {**GRID, "grid": {SPARSITY: [0.3, 0.4]}}
        response = api.client.post("/v1/sweeps", json=other, headers={"Idempotency-Key": "k"})
        assert (response.status_code, response.json()["code"]) == (422, "idempotency_conflict")
        # A job may have the same key: they are answers of different paths.
        response = api.client.post("/v1/jobs", json={"spec": SPEC}, headers={"Idempotency-Key": "k"})
        assert response.json()["id"].startswith("job_")
        assert len(api.client.get("/v1/jobs").json()["data"]) == 4


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("neither", {"spec": SPEC}, "", "grid_or_list"),
    ("both", {**GRID, "list": [{SPARSITY: 0.3}]}, "", "grid_or_list"),
    ("no values", {"spec": SPEC, "grid": {SPARSITY: []}}, f"/grid/{SPARSITY.replace('/', '~1')}", "too_short"),
    ("nothing varied", {"spec": SPEC, "grid": {}}, "/grid", "too_short"),
    ("no pointer", {"spec": SPEC, "grid": {"sparsity": [0.3]}}, "/grid/sparsity", "string_pattern_mismatch"),
    (
        "257 children",
        {"spec": SPEC, "grid": {SPARSITY: [n / 300 for n in range(257)]}},
        "/grid/~1prune~1sparsity",
        "too_long",
    ),
    (
        "17 x 17 children",
        {"spec": SPEC, "grid": {SPARSITY: [n / 20 for n in range(17)], "/seed": [*range(17)]}},
        "/grid",
        "too_many_children",
    ),
    ("twins", {"spec": SPEC, "grid": {SPARSITY: [0.3, 0.4, 0.3]}}, "/grid", "duplicate_child"),
    (
        "a field that is not there",
        {"spec": SPEC, "list": [{"/prune/ratio": 1}]},
        "/spec/prune/ratio",
        "extra_forbidden",
    ),
    ("a pointer through a number", {"spec": SPEC, "list": [{"/seed/x": 1}]}, "/spec/seed", "int_type"),
    ("a pointer behind a list", {"spec": GATED, "list": [{"/evaluate/1": {}}]}, "/spec/evaluate", "list_type"),
    (
        "a number JSON cannot say",
        {"spec": GATED, "list": [{"/gates/0/max": 10**30}]},
        "/list/0/~1gates~10~1max",
        "finite_number",
    ),
    ("infinity", {"spec": SPEC, "list": [{SPARSITY: float("inf")}]}, "/list/0/~1prune~1sparsity", "finite_number"),
    ("a surrogate", {"spec": SPEC, "list": [{"/model/id": "\ud800"}]}, "/list/0/~1model~1id", "string_unicode"),
    (
        "a field that is no text",
        {"spec": {**SPEC, "\ud800": 1}, "list": [{SPARSITY: 0.3}]},
        "/spec",
        "string_unicode",
    ),
    ("deep nonsense", {"spec": {**SPEC, "x": nested(120)}, "grid": {SPARSITY: [0.3]}}, "/spec/x", "too_deep"),
    ("NUL in the name", {**GRID, "name": "\0"}, "/name", "string_unicode"),
    ("our label", {**GRID, "labels": {"sweep": "x"}}, "/labels/sweep", "reserved_label"),
    ("more attempts than allowed", {**GRID, "max_attempts": 11}, "/max_attempts", "less_than_equal"),
    ("an empty rule", {**GRID, "stop": {}}, "/stop", "rule_required"),
    ("a rule without gates", {**GRID, "stop": {"ascending": SPARSITY}}, "/stop/ascending", "cannot_stop"),
    ("a rule along words", {**ASCENDING, "stop": {"ascending": "/score/method"}}, "/stop/ascending", "cannot_stop"),
]


class TestBadInput:
    def test_names_the_field(self, api: Api) -> None:
        for what, body, pointer, code in BAD:
            content = json.dumps(body)
            response = api.client.post("/v1/sweeps", content=content, headers={"Content-Type": "application/json"})
            assert response.status_code == 422, (what, response.text)
            error = response.json()["errors"][0]
            assert (error["pointer"], error["code"]) == (pointer, code), (what, response.json())
        assert api.client.get("/v1/sweeps").json()["data"] == api.client.get("/v1/jobs").json()["data"] == []

    def test_names_the_children(self, api: Api) -> None:
        problem = refused(api, {"spec": SPEC, "grid": {"/seed": [1, 2], SPARSITY: [0.3, 1.5]}})
        assert pointers(problem) == ["/spec/prune/sparsity"]
        assert problem["errors"][0]["children"] == [1, 3]
        assert problem["detail"].startswith("child 1, 3: /spec/prune/sparsity: ")
        problem = refused(api, {"spec": WANDA, "grid": {"/calibrate/dataset": ["calibration.txt", "none.txt"]}})
        assert problem["code"] == "dataset_not_found"
        assert [(e["pointer"], e["children"]) for e in problem["errors"]] == [("/spec/calibrate/dataset", [1])]

    def test_a_foreign_or_missing_sweep_is_404(self, api: Api, foreign: httpx2.Headers) -> None:
        mine = submit(api)["id"]
        for sweep_id, headers in ((mine, foreign), ("swp_" + "0" * 32, None), ("swp_1", None), ("%00", None)):
            for method, path in (("GET", ""), ("GET", "/pareto"), ("POST", "/cancel"), ("DELETE", "")):
                response = api.client.request(method, f"/v1/sweeps/{sweep_id}{path}", headers=headers)
                assert (response.status_code, response.json()["code"]) == (404, "not_found"), (sweep_id, path)
        assert api.client.get("/v1/sweeps", headers=foreign).json()["data"] == []


class TestLook:
    def test_a_failed_child_does_not_hide_the_others(self, api: Api) -> None:
        sweep = submit(api)
        api.succeed(api.claim())
        api.fail(api.claim(), POISON)
        api.succeed(api.claim())
        found = look(api, sweep)
        assert (found["status"], found["counts"]) == ("completed", {"failed": 1, "succeeded": 2})
        assert [child["status"] for child in found["children"]] == ["succeeded", "failed", "succeeded"]
        assert found["children"][1]["error"]["code"] == "dataset_too_short"
        assert found["children"][2]["metrics"]["perplexity/a.txt"]["ratio"] == 1.1

    def test_the_etag_names_the_body(self, api: Api) -> None:
        sweep = submit(api)
        url, seen = f"/v1/sweeps/{sweep['id']}", set()
        for change in (lambda: None, api.claim, lambda: api.post({"id": sweep["children"][1]["job_id"]}, "cancel")):
            change()
            response = api.client.get(url)
            seen.add(response.headers["ETag"])
            again = api.client.get(url, headers={"If-None-Match": response.headers["ETag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert len(seen) == 3

    def test_the_list_pages(self, api: Api) -> None:
        ids = [submit(api, name=str(n))["id"] for n in range(3)]
        first = api.client.get("/v1/sweeps", params={"limit": 2})
        page = SweepPage.model_validate(first.json())
        assert 'rel="next"' in first.headers["Link"]
        rest = api.client.get("/v1/sweeps", params={"limit": 2, "cursor": page.next_cursor}).json()
        assert [s.id for s in page.data] + [s["id"] for s in rest["data"]] == ids[::-1]
        assert page.data[0].counts == {"queued": 3}
        # A cursor of jobs is none of sweeps.
        cursor = api.client.get("/v1/jobs", params={"limit": 2}).json()["next_cursor"]
        assert api.client.get("/v1/sweeps", params={"cursor": cursor}).json()["code"] == "cursor_mismatch"

    def test_its_links_lead_somewhere(self, api: Api) -> None:
        sweep = submit(api)
        assert all(api.client.get(link).status_code == 200 for link in sweep["links"].values())
        assert len(api.client.get(sweep["links"]["jobs"]).json()["data"]) == 3


class TestEnd:
    def test_cancel_stops_what_has_not_ended(self, api: Api) -> None:
        sweep = submit(api)
        api.succeed(api.claim())
        api.claim()
        for _ in range(2):
            response = api.client.post(f"/v1/sweeps/{sweep['id']}/cancel")
            assert response.status_code == 200
            assert [c["status"] for c in response.json()["children"]] == ["succeeded", "cancelling", "cancelled"]

    def test_delete_takes_the_jobs_and_their_files(self, api: Api) -> None:
        sweep, other = submit(api), api.submit()
        response = api.client.delete(f"/v1/sweeps/{sweep['id']}")
        assert (response.status_code, response.json()["allowed"]) == (409, ["cancel"])
        api.succeed(api.claim())
        api.client.post(f"/v1/sweeps/{sweep['id']}/cancel")
        assert api.client.delete(f"/v1/sweeps/{sweep['id']}").status_code == 204
        assert api.client.get(f"/v1/sweeps/{sweep['id']}").status_code == 404
        assert [job["id"] for job in api.client.get("/v1/jobs").json()["data"]] == [other["id"]]
        assert list(api.services.store.list_jobs()) == []
        with api.database.read() as session:
            assert session.scalar(select(func.count()).select_from(SweepChild)) == 0

    def test_a_deleted_job_leaves_a_gap(self, api: Api) -> None:
        sweep = submit(api)
        api.client.post(f"/v1/sweeps/{sweep['id']}/cancel")
        api.client.delete(f"/v1/jobs/{sweep['children'][0]['job_id']}")
        found = look(api, sweep)
        assert found["counts"] == {"cancelled": 2, "deleted": 1}
        assert (found["children"][0]["job_id"], found["children"][0]["status"]) == (None, "deleted")
        assert api.client.delete(f"/v1/sweeps/{sweep['id']}").status_code == 204


class TestStopRule:
    def test_beyond_a_failed_gate_what_is_larger_is_cancelled(self, api: Api) -> None:
        grid = {"/seed": [1, 2], SPARSITY: [0.3, 0.5, 0.4]}  # in no order
        sweep = submit(api, {**ASCENDING, "grid": grid})
        api.succeed(api.claim(), judged("pass"))
        assert enforce(api, sweep) == []
        held = [api.claim(), api.claim()]  # seed 1: 0.5 runs, 0.4 runs
        api.succeed(held[1], judged("fail"))
        assert len(enforce(api, sweep)) == 1
        assert statuses_of(api, sweep) == ["succeeded", "cancelling", "succeeded", "queued", "queued", "queued"]
        assert [c["stopped_by"] for c in look(api, sweep)["children"]] == [None, 2, None, None, None, None]
        assert enforce(api, sweep) == []
        events = api.client.get(f"/v1/jobs/{held[0].job_id}/events").json()["data"]
        assert events[-1]["data"] == {"reason": "sweep_stopped", "stopped_by": 2}

    def test_a_verdict_that_is_not_fail_stops_nothing(self, api: Api) -> None:
        sweep = submit(api, ASCENDING)
        api.succeed(api.claim(), judged("inconclusive"))
        api.fail(api.claim(), POISON)
        assert enforce(api, sweep) == []

    def test_after_so_many_failures_the_rest_is_cancelled(self, api: Api) -> None:
        sweep = submit(api, {**GRID, "grid": {SPARSITY: [0.1, 0.2, 0.3, 0.4]}}, stop={"after_failures": 2})
        api.fail(api.claim(), POISON)
        assert enforce(api, sweep) == []
        api.fail(api.claim(), POISON)
        assert len(enforce(api, sweep)) == 2
        assert statuses_of(api, sweep) == ["failed", "failed", "cancelled", "cancelled"]

    def test_what_was_stopped_and_is_retried_is_left_alone(self, api: Api) -> None:
        sweep = submit(api, ASCENDING)
        api.succeed(api.claim(), judged("fail"))
        enforce(api, sweep)
        api.post({"id": look(api, sweep)["children"][1]["job_id"]}, "retry")
        assert enforce(api, sweep) == []
        assert statuses_of(api, sweep) == ["succeeded", "queued", "cancelled"]

    def test_the_reconciler_does_what_a_worker_did_not_live_to_do(self, api: Api, settings: Settings) -> None:
        stops, plain = submit(api, ASCENDING), submit(api)
        api.succeed(api.claim(), judged("fail"))
        reconciler = Reconciler(settings)
        with api.database.read() as session:
            assert repository.with_stop_rule_and_active_jobs(session) == [stops["id"]]
        reconciler.stop_sweeps()
        assert statuses_of(api, stops) == ["succeeded", "cancelled", "cancelled"]
        assert statuses_of(api, plain) == ["queued"] * 3
        with api.database.read() as session:
            assert repository.with_stop_rule_and_active_jobs(session) == []
            assert set(statuses(session, [plain["children"][0]["job_id"]]).values()) == {"queued"}
        reconciler.database.dispose()


def metric(name: str, value: float, higher: bool | None = False, stderr: float | None = None) -> Metric:
    return Metric(
        name=name, unit="u", higher_is_better=higher, dense=1.0, pruned=value, ratio=value, pruned_stderr=stderr
    )


def measured(*metrics: Metric, sparsity: float = 0.5) -> Report:
    return REPORT.model_copy(update={"metrics": list(metrics), "sparsity": sparsity})


def front(sizes_and_losses: list[tuple[float, float]], higher: bool = False, stderr: float | None = None) -> list[bool]:
    children = [ChildRow(n, {}, None, f"job_{n}", "succeeded", None, None, None, 1) for n in range(99)]
    reports = {
        n: Measured([metric("loss", loss, higher, stderr).model_dump(), metric("size", size).model_dump()], 0.5, SPEC)
        for n, (size, loss) in enumerate(sizes_and_losses)
    }
    return [point.on_front for point in compare("swp", children, reports, "loss", "size").points]


class TestPareto:
    def test_the_front_is_what_nothing_beats(self) -> None:
        assert front([(1, 3), (2, 2), (3, 1)]) == [True, True, True]
        assert front([(1, 3), (2, 3), (3, 1), (3, 2)]) == [True, False, True, False]
        assert front([(1, 1), (1, 1), (2, 2)]) == [True, True, False]  # equals do not beat each other
        assert front([(1, 3), (2, 2), (3, 1)], higher=True) == [True, False, False]  # more of it is better
        assert front([(1, 1)]) == [True]

    def test_a_child_whose_gates_fail_is_on_no_front_and_beats_no_other(self, api: Api) -> None:
        verdicts: list[Verdict | None] = ["fail", "pass", "inconclusive", None]
        sweep = submit(api, {**GRID, "grid": {SPARSITY: [0.1, 0.2, 0.3, 0.4]}})
        for verdict, loss in zip(verdicts, (1.0, 4.0, 3.0, 2.0), strict=True):
            report = measured(metric("perplexity/a.txt", loss), sparsity=0.5 + loss / 10)
            api.succeed(api.claim(), report.model_copy(update={"verdict": verdict}))
        url = f"/v1/sweeps/{sweep['id']}/pareto"
        points = api.client.get(url).json()["points"]
        assert [(point["verdict"], point["on_front"]) for point in points] == [
            ("fail", False),
            ("pass", True),
            ("inconclusive", True),
            (None, True),
        ]
        page = api.client.get(url, headers={"Accept": "text/html"}).text
        assert (page.count("no: gates fail"), page.count('class="struck"')) == (1, 1)

    def test_a_front_may_be_empty(self, api: Api) -> None:
        sweep = submit(api, {**GRID, "grid": {SPARSITY: [0.1]}})
        api.succeed(api.claim(), measured(metric("loss", 1.0)).model_copy(update={"verdict": "fail"}))
        url = f"/v1/sweeps/{sweep['id']}/pareto"
        assert [point["on_front"] for point in api.client.get(url).json()["points"]] == [False]
        assert "gates fail" in api.client.get(url, headers={"Accept": "text/html"}).text

    def test_counts_that_differ_by_rounding_are_equal(self, api: Api) -> None:
        # Magnitude removes 60.0 % of a matrix, Wanda 59.8 % of each of its rows.
        assert front([(1000, 46.5), (1002, 39.7)], stderr=1.0) == [False, True]
        assert front([(1000, 46.5), (1010, 39.7)], stderr=1.0) == [True, True]
        # Many small steps are no equality of their ends: each is compared with what is on the front already.
        steps = [(1000 + 2 * n, 50.0 - n) for n in range(11)]
        assert front(steps) == [n in (10, 7, 4, 1) for n in range(11)]
        sweep = submit(api, {**GRID, "grid": {"/score/method": ["magnitude", "wanda"]}, "spec": WANDA})
        for sparsity, loss in ((0.6, 46.47), (0.598, 39.67)):
            api.succeed(api.claim(), measured(metric("perplexity/a.txt", loss, stderr=1.0), sparsity=sparsity))
        found = api.client.get(f"/v1/sweeps/{sweep['id']}/pareto").json()
        assert [point["on_front"] for point in found["points"]] == [False, True]
        assert (found["quality"]["tolerance"], found["cost"]["tolerance"]) == (0, 0.005)
        assert (found["quality"]["dense"], found["cost"]["dense"]) == (1.0, None)

    def test_one_window_is_no_exact_count(self) -> None:
        """It has no standard error, and that says nothing of how far off it is."""
        reports = {}
        for n, (loss, size) in enumerate(((10.0, 1000), (9.99, 1002))):
            found = [metric(f"perplexity/{text}", loss).model_copy(update={"interval_over": "text"}) for text in "ab"]
            reports[n] = Measured([m.model_dump() for m in [*found, metric("size", size)]], 0.5, SPEC)
        children = [ChildRow(n, {}, None, f"job_{n}", "succeeded", None, None, None, 1) for n in range(2)]
        chosen = compare("swp", children, reports, None, None)
        assert chosen.quality is not None
        assert chosen.cost is not None
        assert (chosen.quality.metric, chosen.quality.tolerance) == ("perplexity/a", 0)
        assert (chosen.cost.metric, chosen.cost.tolerance) == ("size", 0.005)

    def test_of_what_the_children_measured(self, api: Api) -> None:
        sweep = submit(api, {**GRID, "grid": {SPARSITY: [0.1, 0.2, 0.3, 0.4]}})
        speed = [metric("speed/decode", 100 + n, True, stderr=5.0) for n in range(3)]
        for n, loss in enumerate((10.0, 12.0, 11.0)):
            size = metric("size/zeros", 1000.0, None)
            held = api.claim()
            api.succeed(held, measured(speed[n], metric("perplexity/a.txt", loss), size, sparsity=0.1 * (n + 1)))
        api.fail(api.claim(), POISON)
        url = f"/v1/sweeps/{sweep['id']}/pareto"
        found = Pareto.model_validate(api.client.get(url, params={"quality": "perplexity/a.txt"}).json())
        # What is exact and differs comes before what is noisy: sparsity, of which more is better.
        assert found.cost is not None
        assert (found.cost.metric, found.cost.higher_is_better) == ("sparsity", True)
        assert [point.on_front for point in found.points] == [True, False, True]
        assert [(left.number, "dataset_too_short" in left.reason) for left in found.left_out] == [(3, True)]
        assert found.metrics == ["speed/decode", "perplexity/a.txt", "size/zeros", "sparsity"]
        # Without a direction of its own, less is better as a cost and more as a quality.
        found = Pareto.model_validate(
            api.client.get(url, params={"quality": "speed/decode", "cost": "size/zeros"}).json()
        )
        assert found.cost is not None
        assert (found.cost.higher_is_better, [p.on_front for p in found.points]) == (False, [False, False, True])
        assert found.points[0].quality_stderr == 5.0
        refusal = api.client.get(url, params={"cost": "nonsense"})
        assert (refusal.status_code, pointers(refusal.json())) == (422, ["?cost"])
        assert refusal.json()["errors"][0]["allowed"] == found.metrics

    def test_what_only_some_measured_leaves_the_others_out(self, api: Api) -> None:
        sweep = submit(api)
        api.succeed(api.claim(), measured(metric("perplexity/a.txt", 10), metric("size/zeros", 5)))
        api.succeed(api.claim(), measured(metric("perplexity/a.txt", 10)))
        found = api.client.get(f"/v1/sweeps/{sweep['id']}/pareto", params={"cost": "size/zeros"}).json()
        assert [point["number"] for point in found["points"]] == [0]
        assert [left["reason"] for left in found["left_out"]] == [
            "did not measure size/zeros",
            "queued: not finished yet",
        ]

    def test_before_anything_has_succeeded_there_is_nothing(self, api: Api) -> None:
        url = f"/v1/sweeps/{submit(api)['id']}/pareto"
        found = Pareto.model_validate(api.client.get(url, params={"quality": "any"}).json())
        assert (found.quality, found.cost, found.points, len(found.left_out)) == (None, None, [], 3)
        page = api.client.get(url, headers={"Accept": "text/html"})
        assert "Nothing to compare yet" in page.text

    def test_the_page_draws_every_point_and_shows_hostile_text_as_text(self, api: Api) -> None:
        body = {**GRID, "spec": GATED, "name": "<script>alert(1)</script>"}
        sweep = submit(api, body)
        for loss in (10.0, 12.0, 13.0):
            found = measured(metric("perplexity/<b>.txt", loss), sparsity=loss / 20)
            api.succeed(api.claim(), found.model_copy(update={"verdict": "pass"}))
        response = api.client.get(f"/v1/sweeps/{sweep['id']}/pareto", headers={"Accept": "text/html"})
        assert response.headers["Content-Type"].startswith("text/html")
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        page = response.text
        assert len(re.findall(r'<circle class="dot', page)) == 3
        assert "<script" not in page
        assert "<b>" not in page
        assert not re.search(r"(src|href)=", page)
        assert page.count('badge pass">✓ pass') == 3
        assert api.client.get(response.url.path, headers={"Accept": "image/png"}).status_code == 406

    def test_ticks_are_round_and_lie_around_the_values(self) -> None:
        for values in ([0.3, 0.4, 0.5], [35.1, 39.5], [7.0], [0.0], [-3.0, 4e9], [1e-9, 2e-9], [100, 100.0001]):
            found = figure.ticks(values)
            assert found[0] < min(values) <= max(values) < found[-1]
            assert 3 <= len(found) <= 9
            texts = [figure.number(value, found) for value in found]
            assert len(set(texts)) == len(texts), texts
        assert figure.ticks([48.0, 1290.0])[0] == 0  # no perplexity is negative

    @pytest.mark.parametrize("value", [20.0, 0.1 + 0.2, 1e9, -3.0, 1e-12])
    def test_of_values_that_rounding_tells_apart_there_are_ticks(self, value: float) -> None:
        found = figure.ticks([value, math.nextafter(value, math.inf)])
        assert found[0] < value < found[-1]
        assert len({figure.number(tick, found) for tick in found}) == len(found)

    def test_numbers_have_the_decimals_that_tell_ticks_apart(self) -> None:
        assert [figure.number(v, figure.ticks([0.3, 0.7])) for v in figure.ticks([0.3, 0.7])] == [
            "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8"
        ]  # fmt: skip

    def test_labels_stand_beside_their_points_and_over_nothing(self) -> None:
        plot = Box(0, 0, 900, 400)
        crowd = [(100.0 + 7 * (n % 9), 100.0 + 5 * (n % 7)) for n in range(40)] + [(895.0, 395.0), (2.0, 2.0)]
        texts = [(f"{n} magnitude uniform ✗", f"{n} ✗") for n in range(len(crowd))]
        taken = [Box(0, 380, 80, 400)]
        found = [label for label in place(texts, crowd, taken, plot) if label is not None]
        dots = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in crowd]
        assert len(found) >= 20
        for label in found:
            assert label.box.within(plot)
            assert not any(label.box.overlaps(box) for box in [*dots, *taken])
            assert sum(label.box.overlaps(other.box) for other in found) == 1  # itself
        (alone,) = place([("0 wanda ✓", "0 ✓")], [(450.0, 200.0)], [], plot)
        assert alone is not None
        assert alone.text == "0 wanda ✓"

    def test_the_figure_shows_methods_verdicts_errors_and_the_dense_model(self, api: Api) -> None:
        grid = {"/score/method": ["magnitude", "wanda"], SPARSITY: [0.3, 0.6]}
        sweep = submit(api, {**GRID, "spec": WANDA, "grid": grid})
        for n in range(4):
            held = api.claim()
            report = measured(metric("perplexity/a.txt", 10.0 + 5 * n, stderr=0.5), sparsity=0.3 + 0.1 * n)
            spec = {**report.spec, "score": held.spec["score"]}
            api.succeed(held, report.model_copy(update={"spec": spec, "verdict": ("pass", "fail")[n % 2]}))
        page = api.client.get(f"/v1/sweeps/{sweep['id']}/pareto", headers={"Accept": "text/html"}).text
        labels = re.findall(r'<text class="label"[^>]*>([^<]+)<', page)
        assert labels == ["0 magnitude ✓", "1 magnitude ✗", "2 wanda ✓", "3 wanda ✗"]
        assert len(re.findall(r'<line class="error"', page)) == 4
        assert len(re.findall(r'<line class="dense"', page)) == 1


def test_a_table_of_the_children(api: Api) -> None:
    score = {"method": "magnitude"}
    body = {"spec": SPEC, "grid": {"/prune/sparsity": [0.4, 0.5], "/seed": [1], "/score": [score]}}
    sweep = api.client.post("/v1/sweeps", json=body).json()
    api.succeed(api.claim())
    answer = api.client.get(f"/v1/sweeps/{sweep['id']}", headers={"Accept": "text/csv"})
    assert answer.headers["Content-Type"].startswith("text/csv")
    first, second = csv.DictReader(io.StringIO(answer.text))
    assert (first["number"], first["/prune/sparsity"], first["status"]) == ("0", "0.4", "succeeded")
    assert (first["perplexity/a.txt dense"], first["perplexity/a.txt ratio"]) == ("10.0", "1.1")
    assert (second["/prune/sparsity"], second["status"], second["perplexity/a.txt ratio"]) == ("0.5", "queued", "")
    assert json.loads(first["/score"]) == score
    assert second["job_id"] == sweep["children"][1]["job_id"]

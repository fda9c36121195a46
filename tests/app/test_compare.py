"""Finished jobs beside one another: their specs, what they measured, and which jobs may be asked for."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from app.compare.specs import differences
from app.ids import new_id
from tests.helpers.api import GATED, REPORT, SPEC, WANDA, WEIGHTS, Api, judged, make_key, tuned
from workers.engine.report import LayerReport, Report, TunePoint
from workers.engine.spec import CompressionSpec

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def whole(spec: dict[str, Any]) -> dict[str, Any]:
    return CompressionSpec.model_validate(spec).model_dump(mode="json")


def shown(*specs: dict[str, Any]) -> dict[str, list[Any]]:
    """Path -> values, `...` where absent; without what only has defaults."""
    found = differences([whole(spec) for spec in specs])
    return {
        each.path: [... if value.absent else value.value for value in each.values]
        for each in found
        if not each.only_defaults
    }


class TestSpecs:
    def test_that_are_the_same_differ_nowhere(self) -> None:
        assert differences([whole(SPEC), whole(SPEC), whole(SPEC)]) == []

    def test_values_and_parts_that_some_lack(self) -> None:
        other = {**WANDA, "prune": {"method": "mask", "sparsity": 0.5, "pattern": "2:4"}, "seed": 3}
        assert shown(SPEC, WANDA, other) == {
            "calibrate.dataset": [..., "calibration.txt", "calibration.txt"],
            "calibrate.samples": [..., 4, 4],
            "calibrate.sequence_length": [..., 64, 64],
            "score.method": ["magnitude", "wanda", "wanda"],
            "prune.pattern": ["unstructured", "unstructured", "2:4"],
            "seed": [0, 0, 3],
        }

    def test_lists_item_by_item(self) -> None:
        text = {"method": "perplexity", "dataset": "a.txt"}
        one, two = {**SPEC, "evaluate": [text]}, {**SPEC, "evaluate": [text, {"method": "size"}]}
        assert shown(one, two) == {"evaluate.1.method": [..., "size"]}
        assert shown(SPEC, one) == {"evaluate.0.method": [..., "perplexity"], "evaluate.0.dataset": [..., "a.txt"]}

    def test_a_null_beside_an_object_is_told_by_the_objects_fields(self) -> None:
        [where] = [each for each in differences([whole(SPEC), whole(WANDA)]) if each.path.endswith("dataset")]
        assert (where.values[0].absent, where.values[0].value) == (True, None)
        assert "calibrate" not in {each.path for each in differences([whole(SPEC), whole(WANDA)])}

    def test_defaults_of_methods_that_others_lack_say_so(self) -> None:
        pruned = {"model": SPEC["model"], "calibrate": WANDA["calibrate"], "prune": {"method": "sparsegpt"}}
        pruned["prune"] = {"method": "sparsegpt", "sparsity": 0.5, "block_size": 64}
        by_path = {each.path: each for each in differences([whole(WANDA), whole(pruned)])}
        assert not by_path["prune.block_size"].only_defaults
        assert not by_path["prune.method"].only_defaults
        defaults = [path for path, each in by_path.items() if each.only_defaults]
        assert {path.partition(".")[0] for path in defaults} == {"score", "prune"}

    def test_of_another_version_compare_too(self) -> None:
        old = {**whole(SPEC), "of_old": {"knob": 1}}
        assert [each.path for each in differences([whole(SPEC), old])] == ["of_old.knob"]


def a_report(shift: float, **changes: Any) -> Report:
    metric = REPORT.metrics[0].model_copy(
        update={
            "pruned": 11.0 + shift,
            "ratio": 1.1 + shift / 10,
            "ratio_stderr": 0.01,
            "degrees_of_freedom": 4,
            "interval_over": "documents",
        }
    )
    size = REPORT.metrics[0].model_copy(update={"name": "size/weight_bytes", "unit": "bytes", "pruned": 5.0})
    layer = LayerReport(
        name="model.layers.0.mlp.up_proj", block=0, shape=(8, 4), parameters=32, zeros=16,
        target_sparsity=0.5, sparsity=0.5 + shift,
    )  # fmt: skip
    return REPORT.model_copy(update={"metrics": [metric, size], "layers": [layer], **changes})


def ask(api: Api, *job_ids: str, **headers: Any) -> httpx2.Response:
    return api.client.get("/v1/compare", params=[("job", job_id) for job_id in job_ids], **headers)


def test_what_two_jobs_measured(api: Api) -> None:
    gated = judged("fail")
    first, second = api.submit(), api.submit(spec=GATED)
    api.succeed(api.claim(), a_report(0.0))
    api.succeed(api.claim(), a_report(0.25, gates=gated.gates, verdict="fail"))
    found = ask(api, second["id"], first["id"]).json()
    assert [job["id"] for job in found["jobs"]] == [second["id"], first["id"]]
    one, other = found["jobs"]
    assert (one["verdict"], one["gates"][0]["reason"], other["verdict"], other["gates"]) == (
        "fail",
        "because",
        None,
        [],
    )
    assert (one["parameters"], one["sparsity"], one["weight_bytes"]) == (4, 0.5, len(WEIGHTS))
    assert one["spec"] == api.get(second).json()["spec"]
    perplexity, size = found["metrics"]
    assert (perplexity["name"], perplexity["same_dense"]) == ("perplexity/a.txt", True)
    low, high = perplexity["values"][0]["ratio_interval"]
    assert (low + high) / 2 == pytest.approx(1.125)
    assert high - low == pytest.approx(2 * 2.776 * 0.01, rel=1e-3)  # Student's t of 4 degrees of freedom
    assert perplexity["values"][0]["pruned_interval"] is None, "sampled, and its error is not known"
    assert size["values"][1]["pruned_interval"] == [5.0, 5.0], "exact"
    [layer] = found["layers"]
    assert (layer["sparsity"], layer["outputs"], layer["inputs"]) == ([0.75, 0.5], [8, 8], [4, 4])
    assert {each["path"] for each in found["spec"]} >= {"evaluate.0.method", "gates.0.metric", "gates.0.max"}
    assert found["curves"] == []


@on_sqlite
class TestJobs:
    def test_that_measured_something_else(self, api: Api) -> None:
        jobs = [api.submit(), api.submit()]
        api.succeed(api.claim(), a_report(0.0))
        elsewhere = a_report(0.0).metrics[0].model_copy(update={"dense": 12.0})
        api.succeed(api.claim(), a_report(0.0, metrics=[elsewhere]))
        perplexity, size = ask(api, *(job["id"] for job in jobs)).json()["metrics"]
        assert not perplexity["same_dense"]
        assert size["values"][1] is None
        assert size["same_dense"]

    def test_that_failed_have_a_spec(self, api: Api) -> None:
        good, bad = api.succeeded(), api.submit()
        api.fail(api.claim())
        found = ask(api, good["id"], bad["id"]).json()
        assert found["jobs"][1]["error"]["code"] == "runner_died"
        assert (found["jobs"][1]["sparsity"], found["jobs"][1]["weight_bytes"]) == (None, None)
        assert found["metrics"][0]["values"][1] is None

    def test_that_learnt_something(self, api: Api) -> None:
        jobs = [api.submit(), api.submit()]
        curve = [TunePoint(step=n, holdout_loss=3.0 - 0.1 * n, train_loss=None) for n in range(3)]
        api.succeed(api.claim(), REPORT.model_copy(update={"tune": tuned(curve)}))
        api.succeed(api.claim())
        [tune] = ask(api, *(job["id"] for job in jobs)).json()["curves"]
        assert tune["stage"] == "tune"
        assert [point["holdout_loss"] for point in tune["curves"][0]] == [3.0, 2.9, 2.8]
        assert tune["curves"][1] is None


@on_sqlite
class TestRefusals:
    @pytest.mark.parametrize("count", [0, 1, 9])
    def test_of_too_few_or_too_many(self, api: Api, count: int) -> None:
        problem = ask(api, *(new_id("job") for _ in range(count)))
        assert problem.status_code == 422
        assert problem.json()["errors"][0]["pointer"] == "?job"

    def test_of_one_job_twice(self, api: Api) -> None:
        job = api.succeeded()
        problem = ask(api, job["id"], job["id"])
        assert (problem.status_code, problem.json()["errors"][0]["code"]) == (422, "duplicate_job")

    def test_of_jobs_that_run(self, api: Api) -> None:
        done, queued = api.succeeded(), api.submit()
        problem = ask(api, done["id"], queued["id"])
        assert (problem.status_code, problem.json()["code"], problem.json()["current"]) == (
            409,
            "not_finished",
            "queued",
        )
        assert queued["id"] in problem.json()["detail"]
        assert done["id"] not in problem.json()["detail"]

    @pytest.mark.parametrize("job_id", [f"job_{0:032x}", "no id", "nul\0", ""])
    def test_of_jobs_that_are_not_there(self, api: Api, job_id: str) -> None:
        assert ask(api, api.succeeded()["id"], job_id).status_code == 404

    def test_of_keys_that_may_not_read(self, api: Api) -> None:
        text, _, _ = make_key(api.services, "ours", scopes=("jobs:write",))
        problem = ask(api, new_id("job"), new_id("job"), headers={"Authorization": f"Bearer {text}"})
        assert (problem.status_code, problem.json()["code"]) == (403, "missing_scope")

    def test_of_another_tenants_jobs_as_of_missing_ones(self, api: Api, foreign: httpx2.Headers) -> None:
        jobs = [api.succeeded()["id"], api.succeeded()["id"]]
        assert ask(api, *jobs).status_code == 200
        theirs = ask(api, *jobs, headers=foreign)
        missing = ask(api, new_id("job"), new_id("job"), headers=foreign)
        assert theirs.status_code == missing.status_code == 404
        assert theirs.json()["detail"] == missing.json()["detail"]

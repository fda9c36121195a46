"""Bad input, one line each: every answer is a problem with a stable code, the field, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.http.problems import Problem
from app.main import create_app
from app.settings import Settings
from tests.helpers.api import ROOT, SPEC, WANDA, Api, make_key, tiny_model
from tests.helpers.conformity import conforming


def spec(**changes: Any) -> dict[str, Any]:
    return {**SPEC, **changes}


def prune(**changes: Any) -> dict[str, Any]:
    return spec(prune={"method": "mask", "sparsity": 0.5, **changes})


def pattern(text: Any) -> dict[str, Any]:
    return spec(prune={"method": "mask", "pattern": text})


def sparsegpt(**changes: Any) -> dict[str, Any]:
    return spec(prune={"method": "sparsegpt", "sparsity": 0.5}, **changes)


def grow(**changes: Any) -> dict[str, Any]:
    return {"model": SPEC["model"], "grow": {"method": "lesa", "layers": 1}, **changes}


def calibrate(**changes: Any) -> dict[str, Any]:
    return {**WANDA, "calibrate": {**WANDA["calibrate"], **changes}}


def perplexity(**changes: Any) -> dict[str, Any]:
    return spec(evaluate=[{"method": "size"}, {"method": "perplexity", "dataset": "heldout.txt", **changes}])


def gated(*gates: dict[str, Any]) -> dict[str, Any]:
    return {"spec": spec(evaluate=[{"method": "size"}], gates=list(gates))}


def tune(**changes: Any) -> dict[str, Any]:
    return spec(tune={"method": "lora", "dataset": "heldout.txt", **changes})


LOOKED = {
    "invalid_spec",
    "model_not_found",
    "unsafe_weights",
    "unsupported_model",
    "dataset_not_found",
    "sequence_too_long",
    "memory_budget_too_small",
}
"""Codes of what is found by looking at the model's and the data's files; the others are `invalid_request`."""
# (what, body, pointer, code of the field)
BODIES: list[tuple[str, Any, str, str]] = [
    # shape
    ("no body fields", {}, "/spec", "missing"),
    ("a list", [], "", "model_attributes_type"),
    ("null", None, "", "model_attributes_type"),
    ("unknown field of the request", {"spec": SPEC, "colour": "red"}, "/colour", "extra_forbidden"),
    ("unknown field of the spec", {"spec": spec(quantize={})}, "/spec/quantize", "extra_forbidden"),
    ("unknown field of a method", {"spec": prune(ratio=0.5)}, "/spec/prune/ratio", "extra_forbidden"),
    (
        "unknown field of a method in a union",
        {"spec": spec(score={"method": "magnitude", "p": 2})},
        "/spec/score/p",
        "extra_forbidden",
    ),
    ("field name with a slash", {"spec": SPEC, "a/b~c": 1}, "/a~1b~0c", "extra_forbidden"),
    ("a stage of the wrong type", {"spec": spec(score="wanda")}, "/spec/score", "model_attributes_type"),
    ("no model", {"spec": {k: v for k, v in SPEC.items() if k != "model"}}, "/spec/model", "missing"),
    # numbers
    ("sparsity -1", {"spec": prune(sparsity=-1)}, "/spec/prune/sparsity", "greater_than_equal"),
    ("sparsity 1", {"spec": prune(sparsity=1)}, "/spec/prune/sparsity", "less_than"),
    ("sparsity NaN", {"spec": prune(sparsity=float("nan"))}, "/spec/prune/sparsity", "finite_number"),
    ("sparsity infinite", {"spec": prune(sparsity=float("inf"))}, "/spec/prune/sparsity", "finite_number"),
    ("sparsity as words", {"spec": prune(sparsity="half")}, "/spec/prune/sparsity", "float_type"),
    ("sparsity as a list", {"spec": prune(sparsity=[0.5])}, "/spec/prune/sparsity", "float_type"),
    ("half a sample", {"spec": calibrate(samples=1.5)}, "/spec/calibrate/samples", "int_type"),
    ("no samples", {"spec": calibrate(samples=0)}, "/spec/calibrate/samples", "greater_than_equal"),
    ("seed below zero", {"spec": spec(seed=-1)}, "/spec/seed", "greater_than_equal"),
    ("seed of 400 digits", {"spec": spec(seed=10**400)}, "/spec/seed", "finite_number"),
    ("priority 101", {"spec": SPEC, "priority": 101}, "/priority", "less_than_equal"),
    ("no attempts", {"spec": SPEC, "max_attempts": 0}, "/max_attempts", "greater_than_equal"),
    ("more attempts than allowed", {"spec": SPEC, "max_attempts": 9}, "/max_attempts", "over_limit"),
    ("deadline 0", {"spec": SPEC, "deadline_s": 0}, "/deadline_s", "greater_than_equal"),
    # methods and patterns
    ("unknown score", {"spec": spec(score={"method": "magic"})}, "/spec/score/method", "union_tag_invalid"),
    ("no method", {"spec": spec(score={})}, "/spec/score/method", "union_tag_not_found"),
    ("unknown pruner", {"spec": spec(prune={"method": "magic"})}, "/spec/prune/method", "union_tag_invalid"),
    ("unknown device", {"spec": spec(compute={"device": "tpu"})}, "/spec/compute/device", "literal_error"),
    (
        "unknown measurement",
        {"spec": spec(evaluate=[{"method": "size"}, {"method": "x"}])},
        "/spec/evaluate/1/method",
        "union_tag_invalid",
    ),
    ("pattern 3:2", {"spec": pattern("3:2")}, "/spec/prune", "invalid_pattern"),
    ("pattern 0:4", {"spec": pattern("0:4")}, "/spec/prune", "invalid_pattern"),
    ("pattern as words", {"spec": pattern("two of four")}, "/spec/prune/pattern", "string_pattern_mismatch"),
    (
        "2:4 with another sparsity",
        {"spec": prune(pattern="2:4", sparsity=0.7)},
        "/spec/prune",
        "sparsity_mismatch",
    ),
    ("no sparsity", {"spec": spec(prune={"method": "mask"})}, "/spec/prune", "sparsity_required"),
    ("two targets", {"spec": prune(sparsity=0.5, perplexity_ratio=1.1)}, "/spec/prune", "two_targets"),
    (
        "a ratio of 1",
        {"spec": prune(sparsity=None, perplexity_ratio=1)},
        "/spec/prune/perplexity_ratio",
        "greater_than",
    ),
    (
        "a ratio of nothing measured",
        {"spec": prune(sparsity=None, perplexity_ratio=1.1)},
        "/spec/evaluate",
        "perplexity_required",
    ),
    ("a shape without sizes", {"spec": spec(prune={"method": "shape"})}, "/spec/prune", "no_size"),
    (
        "a shape of no layers",
        {"spec": spec(prune={"method": "shape", "layers": 0})},
        "/spec/prune/layers",
        "greater_than_equal",
    ),
    (
        "a shape with a score of some of its kinds",
        {"spec": spec(prune={"method": "shape", "layers": 4}, score={"method": "wanda"})},
        "/spec/score",
        "score_of_other_units",
    ),
    ("mask without score", {"spec": spec(score=None)}, "/spec/score", "score_required"),
    ("sparsegpt with score", {"spec": sparsegpt()}, "/spec/score", "score_unused"),
    ("neither prune nor grow", {"spec": spec(prune=None)}, "/spec/prune", "prune_or_grow"),
    ("prune and grow", {"spec": spec(grow={"method": "lesa", "layers": 1})}, "/spec/grow", "prune_or_grow"),
    ("grow with score", {"spec": grow(score={"method": "wanda"})}, "/spec/score", "score_unused"),
    ("grow with an allocation", {"spec": grow(allocate={"method": "owl"})}, "/spec/allocate", "nothing_to_allocate"),
    ("grow with refine", {"spec": grow(refine={"method": "dsnot"})}, "/spec/refine", "nothing_to_refine"),
    (
        "growing by nothing",
        {"spec": grow(grow={"method": "lesa", "layers": 0})},
        "/spec/grow/layers",
        "greater_than_equal",
    ),
    (
        "growing beyond the gaps",
        {"spec": grow(grow={"method": "lesa", "layers": 8})},
        "/spec/grow/layers",
        "invalid_spec",
    ),
    (
        "growing after the last",
        {"spec": grow(grow={"method": "lesa", "after": [7]})},
        "/spec/grow/after",
        "invalid_spec",
    ),
    ("training blocks that are not added", {"spec": tune(train="new_blocks")}, "/spec/tune", "no_new_blocks"),
    ("sparsegpt without text", {"spec": sparsegpt(score=None)}, "/spec/calibrate", "calibration_required"),
    (
        "refined sparsegpt",
        {"spec": sparsegpt(score=None, refine={"method": "dsnot"})},
        "/spec/refine",
        "refine_after_update",
    ),
    (
        "groups that do not fit the solver's blocks",
        {"spec": spec(score=None, prune={"method": "sparsegpt", "pattern": "2:4", "block_size": 6})},
        "/spec/prune",
        "block_size_mismatch",
    ),
    ("owl without text", {"spec": spec(allocate={"method": "owl"})}, "/spec/calibrate", "calibration_required"),
    (
        "less memory than Python takes",
        {"spec": spec(compute={"memory_budget": 2**20})},
        "/spec/compute/memory_budget",
        "greater_than_equal",
    ),
    (
        "less memory than the job takes",
        {"spec": spec(compute={"memory_budget": 2**28})},
        "/spec/compute/memory_budget",
        "memory_budget_too_small",
    ),
    (
        "fewer windows than devices",
        {
            "spec": spec(
                score={"method": "wanda"},
                calibrate={"dataset": "calibration.txt", "samples": 4},
                compute={"devices": 5},
            )
        },
        "/spec/calibrate/samples",
        "fewer_samples_than_devices",
    ),
    ("wanda without text", {"spec": spec(score={"method": "wanda"})}, "/spec/calibrate", "calibration_required"),
    (
        "a measurement twice",
        {"spec": spec(evaluate=[{"method": "size"}] * 2)},
        "/spec/evaluate/1",
        "duplicate_evaluation",
    ),
    (
        "5:7 on a width it does not divide",
        {"spec": pattern("5:7")},
        "/spec/prune/pattern",
        "invalid_spec",
    ),
    # gates
    ("a gate without a bound", gated({"metric": "size/zeros"}), "/spec/gates/0", "bound_required"),
    ("a gate nothing passes", gated({"metric": "size/zeros", "min": 2, "max": 1}), "/spec/gates/0", "empty_bounds"),
    ("a gate of NaN", gated({"metric": "size/zeros", "max": float("nan")}), "/spec/gates/0/max", "finite_number"),
    (
        "a gate quite certain",
        gated({"metric": "x", "max": 1, "confidence": 1}),
        "/spec/gates/0/confidence",
        "less_than",
    ),
    ("a gate of the dense model", gated({"metric": "x", "max": 1, "of": "dense"}), "/spec/gates/0/of", "literal_error"),
    ("a gate on NUL", gated({"metric": "\0", "max": 1}), "/spec/gates/0/metric", "string_unicode"),
    (
        "a gate on what is not measured",
        gated({"metric": "size/zeros", "max": 1}, {"metric": "perplexity/a.txt", "max": 1}),
        "/spec/gates/1/metric",
        "not_measured",
    ),
    (
        "a gate on nothing measured",
        {"spec": spec(gates=[{"metric": "size/zeros", "max": 1}])},
        "/spec/gates/0/metric",
        "not_measured",
    ),
    # tuning
    ("no steps of tuning", {"spec": tune(steps=0)}, "/spec/tune/steps", "greater_than_equal"),
    ("tuning without text", {"spec": spec(tune={"method": "lora"})}, "/spec/tune/dataset", "missing"),
    ("tuning on a missing text", {"spec": tune(dataset="none.txt")}, "/spec/tune/dataset", "dataset_not_found"),
    ("nothing but warm-up", {"spec": tune(steps=5, warmup_steps=5)}, "/spec/tune", "warmup_too_long"),
    ("half a bit", {"spec": tune(method="group", bits=5)}, "/spec/tune", "no_such_bits"),
    (
        "groups wider than a layer",
        {"spec": tune(method="group", group_size=1024)},
        "/spec/tune/group_size",
        "invalid_spec",
    ),
    (
        "more blocks than there are",
        {"spec": tune(method="last_layers", blocks=99)},
        "/spec/tune/blocks",
        "invalid_spec",
    ),
    ("unknown tuner", {"spec": tune(method="magic")}, "/spec/tune/method", "union_tag_invalid"),
    ("no share of the dense model", {"spec": tune(distill={"weight": 0})}, "/spec/tune/distill/weight", "greater_than"),
    # models
    ("missing model", {"spec": spec(model={"id": "none"})}, "/spec/model/id", "model_not_found"),
    ("pickle only", {"spec": spec(model={"id": "pickle"})}, "/spec/model/id", "unsafe_weights"),
    (
        "another architecture",
        {"spec": spec(model={"id": "neox"})},
        "/spec/model/id",
        "unsupported_model",
    ),
    ("no config", {"spec": spec(model={"id": "bare"})}, "/spec/model/id", "model_not_found"),
    (
        "broken weights",
        {"spec": spec(model={"id": "broken"})},
        "/spec/model/id",
        "unsupported_model",
    ),
    (
        "revision of a local model",
        {"spec": spec(model={"id": "bookworm-7m", "revision": "v2"})},
        "/spec/model",
        "no_revision",
    ),
    # path tricks
    *(
        (f"model {name!r}", {"spec": spec(model={"id": name})}, "/spec/model/id", "string_pattern_mismatch")
        for name in ("..", "../bookworm-7m", "/etc", "a/b/c", "a\\b", "~root", "a b", "", "bookworm-7m\n")
    ),
    ("model NUL", {"spec": spec(model={"id": "a\x00b"})}, "/spec/model/id", "string_unicode"),
    *(
        (
            f"text {name!r}",
            {"spec": calibrate(dataset=name)},
            "/spec/calibrate/dataset",
            "string_pattern_mismatch",
        )
        for name in ("../secret.txt", "/etc/passwd", ".hidden", "a/../b.txt")
    ),
    (
        "a link out of the models",
        {"spec": spec(model={"id": "link"})},
        "/spec/model/id",
        "unsupported_model",
    ),
    # data
    (
        "missing text",
        {"spec": calibrate(dataset="none.txt")},
        "/spec/calibrate/dataset",
        "dataset_not_found",
    ),
    (
        "text of an unknown kind",
        {"spec": perplexity(dataset="heldout.pdf")},
        "/spec/evaluate/1/dataset",
        "dataset_not_found",
    ),
    (
        "calibration longer than the context",
        {"spec": calibrate(sequence_length=4096)},
        "/spec/calibrate/sequence_length",
        "sequence_too_long",
    ),
    (
        "evaluation longer than the context",
        {"spec": perplexity(sequence_length=100_000)},
        "/spec/evaluate/1/sequence_length",
        "sequence_too_long",
    ),
    ("split of a local text", {"spec": calibrate(split="test")}, "/spec/calibrate", "no_split"),
    (
        "split of a local text in a union",
        {"spec": perplexity(split="test")},
        "/spec/evaluate/1",
        "no_split",
    ),
    # labels
    ("label key", {"spec": SPEC, "labels": {"Team A": "x"}}, "/labels/Team A", "string_pattern_mismatch"),
    ("label NUL", {"spec": SPEC, "labels": {"a": "x\x00"}}, "/labels/a", "string_unicode"),
    ("label surrogate", {"spec": SPEC, "labels": {"a": "\ud800"}}, "/labels/a", "string_unicode"),
    ("label of 201", {"spec": SPEC, "labels": {"a": "x" * 201}}, "/labels/a", "string_pattern_mismatch"),
    ("label number", {"spec": SPEC, "labels": {"a": 1}}, "/labels/a", "string_type"),
    ("51 labels", {"spec": SPEC, "labels": {f"k{n}": "" for n in range(51)}}, "/labels", "too_long"),
]
# (path, pointer, code of the field)
QUERIES = [
    ("/v1/jobs?limit=0", "?limit", "greater_than_equal"),
    ("/v1/jobs?limit=201", "?limit", "less_than_equal"),
    ("/v1/jobs?limit=many", "?limit", "int_parsing"),
    ("/v1/jobs?status=done", "?status", "unknown_status"),
    ("/v1/jobs?status=queued,", "?status", "unknown_status"),
    ("/v1/jobs?verdict=passed", "?verdict", "literal_error"),
    ("/v1/jobs?label=team", "?label/0", "string_pattern_mismatch"),
    ("/v1/jobs?label=team:%00", "?label/0", "string_pattern_mismatch"),
    ("/v1/jobs?model=../x", "?model", "string_pattern_mismatch"),
    ("/v1/jobs?created_after=yesterday", "?created_after", "datetime_parsing"),
    ("/v1/jobs?created_after=2026-11-22T00:00:00", "?created_after", "datetime_parsing"),
    ("/v1/jobs/{id}/events?after=-1", "?after", "greater_than_equal"),
    ("/v1/jobs/{id}/events?after=99999999999999", "?after", "less_than_equal"),
    ("/v1/jobs/{id}/logs?tail=0", "?tail", "greater_than_equal"),
    ("/v1/jobs/{id}/logs?attempt=9999999999", "?attempt", "less_than_equal"),
]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """bookworm-7m, and folders that look like models until somebody looks."""
    folder = tmp_path / "models"
    tiny_model(folder / "pickle", {"model_type": "llama"}, ("pytorch_model.bin",))
    tiny_model(folder / "neox", {"model_type": "gpt_neox"})
    tiny_model(folder / "bare", None, ("model.safetensors",))
    tiny_model(folder / "broken", {"model_type": "llama"}, ("model.safetensors",))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "neox/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    real = ROOT / "examples/models/bookworm-7m"
    (folder / "bookworm-7m").symlink_to(real)
    linked = tiny_model(folder / "link")
    for file in real.iterdir():
        (linked / file.name).symlink_to(file)
    return folder


@pytest.fixture
def api(settings: Settings, models: Path) -> Iterator[Api]:
    app = create_app(settings.model_copy(update={"models_dir": models}))
    with TestClient(app) as client:
        text, key_id, tenant_id = make_key(app.state.services, "ours")
        client.headers["Authorization"] = f"Bearer {text}"
        client.event_hooks["response"].append(conforming)
        yield Api(client, app.state.services, text, key_id, tenant_id)


def problem_of(response: Any, status: int) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = Problem.model_validate(response.json())
    assert problem.status == status
    assert len(problem.detail) > 10
    return problem


def test_bodies(api: Api) -> None:
    for what, body, pointer, code in BODIES:
        for query in ("", "?dry_run=true"):
            if query and code == "over_limit":
                continue  # a dry run runs nothing
            text = json.dumps(body)
            response = api.client.post(f"/v1/jobs{query}", content=text, headers={"Content-Type": "application/json"})
            problem = problem_of(response, 422)
            assert problem.code == (code if code in LOOKED else "invalid_request"), (what, problem)
            assert problem.errors, (what, problem)
            assert (problem.errors[0].pointer, problem.errors[0].code) == (pointer, code), (what, problem)
            assert len(problem.errors[0].detail) > 10, what
    assert api.client.get("/v1/jobs").json()["data"] == []


def test_what_could_have_been_chosen_is_listed(api: Api) -> None:
    for body, allowed in (
        (spec(score={"method": "magic"}), "wanda"),
        (spec(prune={"method": "magic"}), "mask"),
        (spec(compute={"device": "tpu"}), "cuda"),
    ):
        problem = problem_of(api.client.post("/v1/jobs", json={"spec": body}), 422)
        assert problem.errors is not None
        assert allowed in (problem.errors[0].allowed or [])
        assert allowed in problem.detail


def test_nothing_sent_is_repeated(api: Api) -> None:
    secret = "hf_abcdefgh"
    for body in (
        {"spec": spec(score={"method": secret})},
        {"spec": prune(sparsity=secret)},
        {"spec": spec(model={"id": f"{secret}/../x"})},
        {"spec": pattern(secret)},
        {"spec": SPEC, "labels": {"a": f"{secret}\x00"}},
        {"spec": SPEC, "priority": secret},
        secret,
    ):
        response = api.client.post("/v1/jobs", json=body)
        assert response.status_code == 422
        assert secret not in response.text, body
    assert secret not in api.client.get(f"/v1/jobs?status={secret}&limit={secret}").text


def test_all_mistakes_are_told_at_once(api: Api) -> None:
    body = {"spec": {**prune(sparsity=2), "seed": -1, "x": 1}, "priority": 1000}
    problem = problem_of(api.client.post("/v1/jobs", json=body), 422)
    assert problem.errors is not None
    assert {e.pointer for e in problem.errors} == {"/spec/prune/sparsity", "/spec/seed", "/spec/x", "/priority"}


def test_queries(api: Api) -> None:
    job = api.submit()
    for path, pointer, code in QUERIES:
        problem = problem_of(api.client.get(path.format(id=job["id"])), 422)
        assert problem.errors is not None
        assert (problem.errors[0].pointer, problem.errors[0].code) == (pointer, code), (path, problem)


def test_bodies_that_are_no_json(api: Api) -> None:
    for content, content_type, status, code in (
        (b'{"spec": ', "application/json", 400, "malformed_json"),
        (b"", "application/json", 422, "invalid_request"),
        (b'{"spec": "\xff\xfe"}', "application/json", 400, "malformed_body"),
        (b"[" * 100_000, "application/json", 400, "malformed_body"),
        (b'{"spec": {}}', "text/plain", 415, "unsupported_media_type"),
        (b"spec=1", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    ):
        response = api.client.post("/v1/jobs", content=content, headers={"Content-Type": content_type})
        assert problem_of(response, status).code == code, content[:20]


def test_a_body_of_10_mb(api: Api) -> None:
    """Refused by its length, and where it has none, as soon as it is too long."""
    body = b'{"spec": "' + b"x" * 10_000_000 + b'"}'
    headers = {"Content-Type": "application/json"}
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for start in range(0, len(body), 65536):
            sent += 1
            yield body[start : start + 65536]

    for method, path in (("POST", "/v1/jobs"), ("PATCH", "/v1/jobs/job_" + "0" * 32)):
        assert problem_of(api.client.request(method, path, content=body, headers=headers), 413).code == "body_too_large"
        response = api.client.request(method, path, content=pieces(), headers=headers)
        assert problem_of(response, 413).code == "body_too_large"


def test_idempotency_keys(api: Api) -> None:
    for key in ("", '""', "a b", '"open', "x" * 256, "é".encode()):
        response = api.client.post("/v1/jobs", json={"spec": SPEC}, headers={"Idempotency-Key": key})
        problem = problem_of(response, 422)
        assert problem.errors is not None
        assert problem.errors[0].pointer == "#Idempotency-Key"
    assert api.client.get("/v1/jobs").json()["data"] == []


def test_paths_and_methods_that_do_not_exist(api: Api) -> None:
    assert problem_of(api.client.get("/v2/jobs"), 404).code == "not_found"
    response = api.client.put("/v1/jobs", json={})
    assert problem_of(response, 405).code == "method_not_allowed"
    assert response.headers["Allow"] == "GET, OPTIONS, POST"


def test_allow_names_every_method_of_a_path(api: Api) -> None:
    for path, allowed in (
        ("/v1/jobs/job_1", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("/v1/jobs/job_1/artifacts/a", "GET, HEAD, OPTIONS"),
        ("/livez", "GET, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
    ):
        response = api.client.post(path)
        assert problem_of(response, 405).code == "method_not_allowed"
        options = api.client.options(path)
        assert (options.status_code, options.headers["Allow"]) == (204, response.headers["Allow"]) == (204, allowed)


def test_nothing_is_made_of_the_host_header(api: Api) -> None:
    for host in ("evil.example", "[::1", "a b", ""):
        headers = {"Host": host, "X-Forwarded-Host": "evil.example"}
        response = api.client.get("/v1/jobs/", headers=headers, follow_redirects=False)
        assert problem_of(response, 404).instance == "/v1/jobs/"
        made = api.client.post("/v1/jobs", json={"spec": SPEC}, headers=headers)
        assert made.headers["Location"].startswith("/v1/jobs/job_")


def test_queries_that_no_parameter_is_for(api: Api) -> None:
    job = api.submit()
    for path, pointer, code in (
        ("/v1/jobs?stauts=queued", "?stauts", "unknown_parameter"),
        ("/v1/jobs?limit=1&limit=2", "?limit", "repeated_parameter"),
        (f"/v1/jobs/{job['id']}?wait=5", "?wait", "unknown_parameter"),
        ("/livez?x", "?x", "unknown_parameter"),
        ("/metrics?x=1", "?x", "unknown_parameter"),
        ("/v1/capabilities?x=1", "?x", "unknown_parameter"),
        ("/v1/jobs?created_before=0.5", "?created_before", "datetime_parsing"),
        ("/v1/jobs?limit=5.0", "?limit", "int_parsing"),
    ):
        problem = problem_of(api.client.get(path), 422)
        assert problem.errors is not None
        assert (problem.errors[0].pointer, problem.errors[0].code) == (pointer, code), path
    assert problem_of(api.client.post("/v1/jobs?dry_run=1", json={"spec": SPEC}), 422).code == "invalid_request"
    assert problem_of(api.client.get("/v1/jobs?model=%zz"), 400).code == "malformed_query"

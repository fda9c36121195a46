"""The OpenAPI document: what SDKs are made from must not change by accident, and must be true."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.account.schemas import TenantPatch
from app.jobs.schemas import JobPatch, JobRead, JobSubmit
from app.main import create_app
from app.settings import Settings
from app.sweeps.schemas import SweepRead, SweepSubmit
from app.webhooks.schemas import RotateRequest, WebhookPatch, WebhookSubmit
from tests.helpers.api import SPEC, Api
from tests.helpers.cluster import ROOT
from tests.helpers.conformity import document

OPERATIONS = {
    "artifacts_download": "GET /v1/jobs/{job_id}/artifacts/{path}",
    "artifacts_head": "HEAD /v1/jobs/{job_id}/artifacts/{path}",
    "artifacts_list": "GET /v1/jobs/{job_id}/artifacts",
    "capabilities_get": "GET /v1/capabilities",
    "health_live": "GET /livez",
    "health_ready": "GET /readyz",
    "jobs_attempts": "GET /v1/jobs/{job_id}/attempts",
    "jobs_cancel": "POST /v1/jobs/{job_id}/cancel",
    "jobs_compare": "GET /v1/compare",
    "jobs_create": "POST /v1/jobs",
    "jobs_delete": "DELETE /v1/jobs/{job_id}",
    "jobs_events": "GET /v1/jobs/{job_id}/events",
    "jobs_get": "GET /v1/jobs/{job_id}",
    "jobs_list": "GET /v1/jobs",
    "jobs_logs": "GET /v1/jobs/{job_id}/logs",
    "jobs_pause": "POST /v1/jobs/{job_id}/pause",
    "jobs_report": "GET /v1/jobs/{job_id}/report",
    "jobs_resume": "POST /v1/jobs/{job_id}/resume",
    "jobs_retry": "POST /v1/jobs/{job_id}/retry",
    "jobs_update": "PATCH /v1/jobs/{job_id}",
    "keys_create": "POST /v1/keys",
    "keys_list": "GET /v1/keys",
    "keys_revoke": "POST /v1/keys/{key_id}/revoke",
    "me_get": "GET /v1/me",
    "metrics": "GET /metrics",
    "credentials_list": "GET /v1/credentials",
    "publications_create": "POST /v1/jobs/{job_id}/publications",
    "publications_list": "GET /v1/jobs/{job_id}/publications",
    "publications_retry": "POST /v1/jobs/{job_id}/publications/{publication_id}/retry",
    "sessions_create": "POST /v1/session",
    "sessions_delete": "DELETE /v1/session",
    "sessions_get": "GET /v1/session",
    "models_get": "GET /v1/models/{model_id}",
    "models_list": "GET /v1/models",
    "signing_keys": "GET /.well-known/espalier-keys.json",
    "sweeps_cancel": "POST /v1/sweeps/{sweep_id}/cancel",
    "sweeps_create": "POST /v1/sweeps",
    "sweeps_delete": "DELETE /v1/sweeps/{sweep_id}",
    "sweeps_get": "GET /v1/sweeps/{sweep_id}",
    "sweeps_list": "GET /v1/sweeps",
    "sweeps_pareto": "GET /v1/sweeps/{sweep_id}/pareto",
    "tenants_get": "GET /v1/tenants/{tenant_id}",
    "tenants_list": "GET /v1/tenants",
    "tenants_update": "PATCH /v1/tenants/{tenant_id}",
    "webhooks_create": "POST /v1/webhooks",
    "webhooks_delete": "DELETE /v1/webhooks/{webhook_id}",
    "webhooks_deliveries": "GET /v1/webhooks/{webhook_id}/deliveries",
    "webhooks_get": "GET /v1/webhooks/{webhook_id}",
    "webhooks_list": "GET /v1/webhooks",
    "webhooks_redeliver": "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver",
    "webhooks_rotate": "POST /v1/webhooks/{webhook_id}/rotate",
    "webhooks_test": "POST /v1/webhooks/{webhook_id}/test",
    "webhooks_update": "PATCH /v1/webhooks/{webhook_id}",
    "workers_list": "GET /v1/workers",
}


@pytest.fixture(name="document", scope="module")
def _document() -> dict[str, Any]:
    return document()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    paths = document["paths"].items()
    return [(method, path, operation) for path, methods in paths for method, operation in methods.items()]


def test_operation_ids_and_paths_are_stable(document: dict[str, Any]) -> None:
    found = {op["operationId"]: f"{method.upper()} {path}" for method, path, op in operations(document)}
    assert found == OPERATIONS


def test_every_operation_says_what_it_does_and_how_it_fails(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert operation["tags"], path
        assert operation["description"], path
        problems = {
            status
            for status, response in operation["responses"].items()
            if "application/problem+json" in response.get("content", {})
        }
        wrong = {status for status in operation["responses"] if status >= "400"} - problems
        assert not wrong, (method, path, wrong)
        assert "422" in problems, f"{path} is no StrictRoute"
        if path.startswith("/v1"):
            assert operation["security"] == [{"ApiKey": []}]
            assert problems >= {"401", "403", "500", "503"}, (method, path)
        for name in ("job_id", "sweep_id"):
            if f"{{{name}}}" in path:
                assert "404" in problems
                assert name in [parameter["name"] for parameter in operation["parameters"]]


def test_specs_are_typed_wherever_they_stand(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("JobSubmit", "JobRead", "Report"):
        assert schemas[name]["properties"]["spec"]["$ref"] == "#/components/schemas/CompressionSpec", name
    partial = {"$ref": "#/components/schemas/PartialSpec"}
    assert partial in schemas["AbilityRead"]["properties"]["spec"]["anyOf"]
    assert partial in schemas["SweepSubmit"]["properties"]["spec"]["anyOf"]
    assert "required" not in schemas["PartialSpec"]


def test_what_may_be_left_out_of_a_request_says_its_default_in_words(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name in ("JobSubmit", "SweepSubmit", "CompressionSpec", "MaskParams", "Calibrate"):
        assert not [prop for prop in schemas[name]["properties"].values() if "default" in prop], name
    assert schemas["CompressionSpec"]["properties"]["seed"]["description"].endswith("Default: `0`.")
    assert schemas["MaskParams"]["required"] == ["method"]


def test_asked_for_twice_the_document_is_the_same(document: dict[str, Any]) -> None:
    app = create_app(Settings(home=ROOT / ".espalier", log_level="error"))
    app.openapi()
    assert app.openapi() == document


def test_values_of_free_names_are_typed(document: dict[str, Any]) -> None:
    labels = document["components"]["schemas"]["JobSubmit"]["properties"]["labels"]
    assert labels["additionalProperties"]["type"] == "string"
    assert labels["propertyNames"] == {"pattern": "^[a-z0-9._/-]{1,40}$"}
    assert "patternProperties" not in str(document)
    for name, schema in document["components"]["schemas"].items():
        if name != "JsonValue":
            assert "'additionalProperties': True" not in str(schema), f"{name}: say dict[str, JsonValue]"


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            reference = node.get("$ref")
            if reference is not None:
                assert reference.rpartition("/")[2] in document["components"]["schemas"]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)


@pytest.mark.parametrize(
    "model", [JobSubmit, JobPatch, SweepSubmit, TenantPatch, WebhookSubmit, WebhookPatch, RotateRequest]
)
def test_examples_are_valid(document: dict[str, Any], model: type[Any]) -> None:
    examples = document["components"]["schemas"][model.__name__]["examples"]
    assert examples
    for example in examples:
        TypeAdapter(model).validate_python(example)


def test_the_example_can_be_submitted(api: Api, document: dict[str, Any]) -> None:
    [example] = document["components"]["schemas"]["JobSubmit"]["examples"]
    assert JobRead.model_validate(api.client.post("/v1/jobs", json=example).json())
    [example] = document["components"]["schemas"]["SweepSubmit"]["examples"]
    assert SweepRead.model_validate(api.client.post("/v1/sweeps", json=example).json())


def test_no_generated_request_breaks_the_service(server: httpx2.Client) -> None:
    """schemathesis over the whole document: never a 5xx, never an answer or a type that is not declared."""
    job = server.post("/v1/jobs", json={"spec": SPEC}).json()
    server.post(f"/v1/jobs/{job['id']}/cancel")  # so that event streams end
    sweep = server.post("/v1/sweeps", json={"spec": SPEC, "grid": {"/seed": [1, 2]}}).json()
    answers: dict[str, set[int]] = {}

    def fuzz(operation: Any) -> None:
        seen = answers[operation.definition.raw["operationId"]] = set()

        @given(case=operation.as_strategy(), real=st.booleans())
        @settings(max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck)
        def check(case: schemathesis.Case, real: bool) -> None:
            if real and case.method != "DELETE" and "job_id" in case.path_parameters:
                case.path_parameters["job_id"] = job["id"]
            if real and case.method != "DELETE" and "sweep_id" in case.path_parameters:
                case.path_parameters["sweep_id"] = sweep["id"]
            case.headers.pop("Prefer", None)  # to wait for a minute would be a right answer
            case.headers["Authorization"] = server.headers["Authorization"]
            response = case.call(base_url=str(server.base_url))
            seen.add(response.status_code)
            case.validate_response(
                response,
                checks=[
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ],
            )

        check()

    for result in schemathesis.openapi.from_dict(deepcopy(document())).get_all_operations():
        fuzz(result.ok())
    assert set(answers) == set(OPERATIONS)
    assert answers["jobs_get"] >= {200, 404}
    assert 200 in answers["jobs_list"]
    assert answers["jobs_create"] >= {422}
    assert answers["sweeps_get"] >= {200, 404}

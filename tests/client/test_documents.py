"""The client's documents beside the OpenAPI document of the service: every field is there, and of a type it reads."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from espalier import documents
from espalier.queries import JobFilters, JobOptions
from tests.helpers.conformity import document

SCHEMAS: dict[type[documents.Document], str] = {
    documents.JobDocument: "JobRead",
    documents.Event: "EventRead",
    documents.Attempt: "AttemptRead",
    documents.Artifact: "ArtifactRead",
    documents.Report: "Report",
    documents.Plan: "PlanRead",
    documents.SweepDocument: "SweepRead",
    documents.SweepSummary: "SweepSummary",
    documents.SweepPlan: "SweepPlan",
    documents.Pareto: "Pareto",
    documents.Me: "Me",
    documents.Worker: "WorkerRead",
    documents.ModelSummary: "ModelSummary",
    documents.Model: "ModelRead",
    documents.Comparison: "Comparison",
    documents.Credentials: "CredentialsRead",
    documents.Capabilities: "Capabilities",
    documents.Webhook: "WebhookWithSecret",
    documents.Delivery: "DeliveryRead",
    documents.Publication: "PublicationRead",
}
"""Those that are answers or entries of lists; the ones within them are found from here."""


def resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    return schema


def variants(schema: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The schema without its unions; an enumeration is of its values' type."""
    schema = resolved(schema, definitions)
    found = schema.get("anyOf") or schema.get("oneOf")
    if found:
        return [inner for each in found for inner in variants(each, definitions)]
    if "const" in schema or "enum" in schema:
        schema = {"type": "string", **schema}
    return [schema]


def mismatches(mine: dict[str, Any], theirs: dict[str, Any], mine_in: Any, theirs_in: Any, at: str) -> list[str]:
    """Where the client would not read what the service may send."""
    if not resolved(mine, mine_in).keys() - {"title", "description", "default"}:
        return []  # anything
    found = []
    readers = variants(mine, mine_in)
    for sent in variants(theirs, theirs_in):
        tries = [_mismatch(reader, sent, mine_in, theirs_in, at) for reader in readers]
        if all(tries):
            found += min(tries, key=len)
    return found


def _mismatch(mine: dict[str, Any], sent: dict[str, Any], mine_in: Any, theirs_in: Any, at: str) -> list[str]:
    if mine.get("type") != sent.get("type") and (mine.get("type"), sent.get("type")) != ("number", "integer"):
        return [f"{at}: sent is {sent.get('type', sent)}, read is {mine.get('type', mine)}"]
    if mine.get("format") not in (None, sent.get("format")):
        return [f"{at}: sent is {sent.get('format')}, read is {mine['format']}"]
    found = []
    for mine_items, sent_items in zip(_items(mine), _items(sent), strict=False):
        found += mismatches(mine_items, sent_items, mine_in, theirs_in, f"{at}[]")
    if "properties" in mine:
        for name in mine.get("required", []):
            if name not in sent.get("required", []):
                found.append(f"{at}.{name}: not always sent")
        for name, field in mine["properties"].items():
            if name in sent.get("properties", {}):
                found += mismatches(field, sent["properties"][name], mine_in, theirs_in, f"{at}.{name}")
            else:
                found.append(f"{at}.{name}: not sent")
    elif isinstance(values := mine.get("additionalProperties"), dict) and values:
        rest = sent.get("additionalProperties")
        each = [*sent.get("properties", {}).values(), *([rest] if isinstance(rest, dict) else [])]
        for one in each:
            found += mismatches(values, one, mine_in, theirs_in, f"{at}{{}}")
    return found


def _items(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema.get("prefixItems") or ([schema["items"]] if "items" in schema else [])


def compared(kind: type[documents.Document], components: dict[str, Any]) -> list[str]:
    mine = kind.model_json_schema()
    return mismatches(mine, components[SCHEMAS[kind]], mine.get("$defs", {}), components, kind.__name__)


@pytest.mark.parametrize("kind", SCHEMAS, ids=lambda kind: kind.__name__)
def test_the_service_sends_what_the_client_reads(kind: type[documents.Document]) -> None:
    assert compared(kind, document()["components"]["schemas"]) == []


def test_every_document_is_compared() -> None:
    reached = set()
    for kind in SCHEMAS:
        reached |= {kind.__name__, *kind.model_json_schema().get("$defs", {})}
    assert {name for name in documents.__all__ if name not in ("Document", "Page")} == reached


def test_what_is_asked_with_is_what_the_service_takes() -> None:
    (of_list,) = [path["get"] for name, path in document()["paths"].items() if name == "/v1/jobs"]
    names = {parameter["name"] for parameter in of_list["parameters"] if parameter["in"] == "query"}
    filters = {{"labels": "label"}.get(name, name) for name in JobFilters.__annotations__}
    assert filters | {"limit", "cursor", "count"} == names
    body = document()["components"]["schemas"]["JobSubmit"]["properties"]
    assert {"spec", *JobOptions.__annotations__} == body.keys()


def test_what_an_older_service_does_not_send_is_none() -> None:
    """Whatever may be null, so that only what has always been there is missed."""
    for kind in SCHEMAS:
        schema = kind.model_json_schema()
        for name, each in {kind.__name__: schema, **schema.get("$defs", {})}.items():
            for field in each.get("required", []):
                assert {"type": "null"} not in each["properties"][field].get("anyOf", []), (name, field)


def test_a_drift_is_seen() -> None:
    schemas = copy.deepcopy(document()["components"]["schemas"])
    schemas["JobRead"]["required"].remove("labels")
    schemas["JobRead"]["properties"]["priority"] = {"type": "string"}
    schemas["Queue"]["properties"]["position"] = {"type": "integer"}  # never null: read all the same
    schemas["Progress"]["properties"]["done"] = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    del schemas["JobFailure"]["properties"]["hint"]
    schemas["MetricSummary"]["properties"]["unit"] = {"type": "array", "items": {"type": "string"}}
    schemas["JobRead"]["properties"]["created_at"] = {"type": "string"}
    found = {line.partition(":")[0] for line in compared(documents.JobDocument, schemas)}
    assert found == {
        "JobDocument.labels",
        "JobDocument.priority",
        "JobDocument.progress.done",
        "JobDocument.error.hint",
        "JobDocument.metrics{}.unit",
        "JobDocument.created_at",
    }


def test_what_a_newer_service_adds_is_kept() -> None:
    sent = {"path": "a", "bytes": 1, "sha256": "0", "media_type": "text/plain", "url": "/a", "colour": {"name": "red"}}
    read = documents.Artifact.read(sent)
    assert read.colour == {"name": "red"}  # type: ignore[attr-defined]
    assert read.raw == sent
    assert read.take({**sent, "bytes": 2, "colour": "blue"}).colour == "blue"  # type: ignore[attr-defined]
    assert (read.bytes, read.raw["bytes"]) == (2, 2)

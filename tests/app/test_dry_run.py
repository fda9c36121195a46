"""Texts in a dry run and a submission: warned of and refused before a worker reads them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.settings import Settings
from tests.helpers.api import ROOT, WANDA, Api, pointers
from tests.helpers.publishing import ON_SQLITE

pytestmark = ON_SQLITE
DRY = "/v1/jobs?dry_run=true"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """With texts of its own."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(ROOT / "examples/data/calibration.txt", data)
    (data / "empty.txt").write_text("")
    (data / "line.txt").write_text("One line is too little.\n")
    (data / "rows.jsonl").write_text('{"text": "One row is too little."}\n')
    (data / "null.jsonl").write_text('{"text": null}\n')
    (data / "zeros.txt").write_bytes(bytes(100_000))
    (data / "wide.txt").write_text("Text of another encoding. " * 1000, encoding="utf-16")
    (data / "column.jsonl").write_text('{"content": "in another column"}\n')
    (data / "lines.jsonl").write_text("One line.\nAnother line.\n")
    (data / "folder.txt").mkdir()
    return settings.model_copy(update={"data_dir": data})


def on(dataset: str, **fields: Any) -> dict[str, Any]:
    return {"spec": {**WANDA, "calibrate": {"dataset": dataset, **fields}}}


def test_the_forms_defaults_are_warned_of_and_a_suggestion_is_not(api: Api) -> None:
    plan = api.client.post(DRY, json=on("calibration.txt")).json()
    assert "128 windows of 2,048, 262,144 tokens: the job would fail" in plan["warnings"][0]
    assert api.client.post("/v1/jobs", json=on("calibration.txt")).status_code == 202, "an estimate refuses nothing"
    (text,) = plan["texts"]
    better = {pointer.rpartition("/")[2]: value for pointer, value in text["suggested"].items()}
    for name, value in better.items():
        again = api.client.post(DRY, json=on("calibration.txt", **{name: value})).json()
        assert again["texts"][0]["suggested"] == {}
        assert not any("would fail" in warning for warning in again["warnings"])
    grid = {"spec": on("calibration.txt")["spec"], "grid": {"/calibrate/samples": [8, 128]}}
    children = api.client.post("/v1/sweeps?dry_run=true", json=grid).json()["children"]
    assert ["would fail" in child["warnings"][0] for child in children] == [False, True]


@pytest.mark.parametrize(
    ("dataset", "code", "pointer"),
    [
        ("empty.txt", "dataset_too_short", "/spec/calibrate"),
        ("line.txt", "dataset_too_short", "/spec/calibrate"),
        ("wide.txt", "invalid_spec", "/spec/calibrate/dataset"),
        ("column.jsonl", "invalid_spec", "/spec/calibrate/text_field"),
        ("lines.jsonl", "invalid_spec", "/spec/calibrate/dataset"),
        ("folder.txt", "dataset_not_found", "/spec/calibrate/dataset"),
        ("none.txt", "dataset_not_found", "/spec/calibrate/dataset"),
    ],
)
def test_what_cannot_be_is_refused_before_a_job_is_made(dataset: str, code: str, pointer: str, api: Api) -> None:
    for path in (DRY, "/v1/jobs"):
        refused = api.client.post(path, json=on(dataset))
        assert (refused.status_code, refused.json()["code"], pointers(refused.json())) == (422, code, [pointer])
    grid = {"spec": on("calibration.txt", samples=8)["spec"], "grid": {"/calibrate/dataset": [dataset]}}
    assert api.client.post("/v1/sweeps", json=grid).status_code == 422


@pytest.mark.parametrize("dataset", ["rows.jsonl", "null.jsonl", "zeros.txt"])
def test_what_is_strange_is_told_of_and_breaks_nothing(dataset: str, api: Api) -> None:
    plan = api.client.post(DRY, json=on(dataset)).json()
    assert f"{dataset} has about " in plan["warnings"][0]


def test_the_bounds_of_the_numbers(api: Api) -> None:
    least = api.client.post(DRY, json=on("calibration.txt", samples=1, sequence_length=8))
    assert least.status_code == 200
    most = api.client.post(DRY, json=on("calibration.txt", samples=4096)).json()
    assert (most["code"], "set `calibrate.samples` to 66 or" in most["detail"]) == ("dataset_too_short", True)


def test_the_command_line_says_so(server: httpx2.Client, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(httpx2.Request("POST", "http://x", json=on("calibration.txt")["spec"]).content.decode())
    key = server.headers["Authorization"].removeprefix("Bearer ")
    variables = {"ESPALIER_URL": str(server.base_url), "ESPALIER_API_KEY": key}
    done = CliRunner().invoke(cli, ["submit", str(path), "--dry-run"], env=variables)
    assert done.exit_code == 0, done.output
    assert "the job would fail; set `calibrate.samples` to" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("field", "pointer"), [({"deadline_s": 100_000}, "/deadline_s"), ({"max_attempts": 10}, "/max_attempts")]
)
def test_what_the_service_does_not_allow_is_refused_as_a_submission_is(
    field: dict[str, int], pointer: str, api: Api
) -> None:
    body = on("calibration.txt", samples=8) | field
    sweep = body | {"grid": {"/seed": [1, 2]}}
    for path, asked in ((DRY, body), ("/v1/jobs", body), ("/v1/sweeps?dry_run=true", sweep), ("/v1/sweeps", sweep)):
        refused = api.client.post(path, json=asked)
        assert (refused.status_code, pointers(refused.json())) == (422, [pointer]), path

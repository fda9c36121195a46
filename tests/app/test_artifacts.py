"""The files of a result: list, download, ranges, conditions; and nothing that is not listed."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from app.jobs.schemas import ArtifactList
from tests.helpers.api import FILES, WEIGHTS, Api

SHA = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def job(api: Api) -> dict[str, Any]:
    return api.succeeded()


class TestList:
    def test_names_every_file_and_where_it_is(self, api: Api, job: dict[str, Any]) -> None:
        found = ArtifactList.model_validate(api.get(job, "/artifacts").json()).data
        assert {file.path: file.bytes for file in found} == {path: len(content) for path, content in FILES.items()}
        for file in found:
            content = api.client.get(file.url).content
            assert hashlib.sha256(content).hexdigest() == file.sha256
            assert content == FILES[file.path]
        kinds = {file.path: file.media_type for file in found}
        assert kinds == {
            "model.safetensors": "application/octet-stream",
            "README.md": "text/markdown",
            "report.html": "text/html",
        }

    def test_is_empty_until_the_job_succeeds(self, api: Api) -> None:
        job = api.submit()
        held = api.claim()
        key = api.services.store.file_key(held.tenant_id, held.job_id, held.attempt, held.fence, "model.safetensors")
        api.services.store.put_bytes(key, b"half")
        assert api.get(job, "/artifacts").json() == {"data": [], "removed": None}
        assert api.get(job, "/artifacts/model.safetensors").status_code == 404


class TestDownload:
    def test_says_what_it_is(self, api: Api, job: dict[str, Any]) -> None:
        response = api.get(job, "/artifacts/model.safetensors")
        assert (response.status_code, response.content) == (200, WEIGHTS)
        assert response.headers["Content-Length"] == str(len(WEIGHTS))
        assert response.headers["ETag"] == f'"{SHA}"'
        assert response.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(SHA)).decode()}:"
        assert response.headers["Accept-Ranges"] == "bytes"
        assert response.headers["Content-Disposition"] == "attachment; filename*=utf-8''model.safetensors"
        assert response.headers["X-Content-Type-Options"] == "nosniff"

    def test_head_says_the_same_without_the_content(self, api: Api, job: dict[str, Any]) -> None:
        url = f"/v1/jobs/{job['id']}/artifacts/model.safetensors"
        got, head = api.client.get(url), api.client.head(url)
        assert (head.status_code, head.content) == (200, b"")
        differing = {name for name in got.headers if got.headers[name] != head.headers.get(name)}
        assert differing == {"x-request-id"}

    def test_range(self, api: Api, job: dict[str, Any]) -> None:
        size = len(WEIGHTS)
        for asked, start, end in (
            ("bytes=0-0", 0, 1),
            ("bytes=10-19", 10, 20),
            ("bytes=5000-", 5000, size),
            ("bytes=5000-99999", 5000, size),
            ("bytes=-7", size - 7, size),
            ("bytes=-99999", 0, size),
        ):
            response = api.get(job, "/artifacts/model.safetensors", Range=asked)
            assert (response.status_code, response.content) == (206, WEIGHTS[start:end]), asked
            assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
            assert response.headers["Content-Length"] == str(end - start)

    def test_a_range_behind_the_end_is_416(self, api: Api, job: dict[str, Any]) -> None:
        for asked in ("bytes=5120-", "bytes=9999-10000", "bytes=-0"):
            response = api.get(job, "/artifacts/model.safetensors", Range=asked)
            assert (response.status_code, response.json()["code"]) == (416, "range_not_satisfiable"), asked
            assert response.headers["Content-Range"] == f"bytes */{len(WEIGHTS)}"

    def test_a_range_it_does_not_read_gets_the_whole(self, api: Api, job: dict[str, Any]) -> None:
        for asked in ("bytes=0-1,4-5", "bytes=9-2", "items=0-1", "bytes=a-b", "bytes=-"):
            response = api.get(job, "/artifacts/model.safetensors", Range=asked)
            assert (response.status_code, response.content) == (200, WEIGHTS), asked

    def test_if_range_continues_only_the_same_file(self, api: Api, job: dict[str, Any]) -> None:
        same = api.get(job, "/artifacts/model.safetensors", Range="bytes=5-9", If_Range=f'"{SHA}"')
        other = api.get(job, "/artifacts/model.safetensors", Range="bytes=5-9", If_Range='"0"')
        assert (same.status_code, same.content) == (206, WEIGHTS[5:10])
        assert (other.status_code, other.content) == (200, WEIGHTS)

    def test_what_the_client_has_is_304(self, api: Api, job: dict[str, Any]) -> None:
        response = api.get(job, "/artifacts/model.safetensors", If_None_Match=f'"{SHA}"')
        assert (response.status_code, response.content) == (304, b"")

    def test_nothing_else_is_served(self, api: Api, job: dict[str, Any]) -> None:
        (api.services.settings.home / "secret").write_text("secret")
        for path in (
            "nope.txt",
            "../../secret",
            "..%2f..%2fsecret",
            "%2e%2e/%2e%2e/secret",
            "/etc/passwd",
            "%2fetc%2fpasswd",
            "model.safetensors%00",
            "model.safetensors/",
            "..\\secret",
            "x" * 3000,
        ):
            response = api.get(job, f"/artifacts/{path}")
            assert (response.status_code, response.json()["code"]) == (404, "not_found"), path

    def test_an_empty_file(self, api: Api) -> None:
        FILES["empty"] = b""
        try:
            job = api.succeeded()
        finally:
            del FILES["empty"]
        response = api.get(job, "/artifacts/empty")
        assert (response.status_code, response.content, response.headers["Content-Length"]) == (200, b"", "0")
        assert api.get(job, "/artifacts/empty", Range="bytes=0-").status_code == 416


def stored(api: Api, job: dict[str, Any], path: str) -> Path:
    """Where the local store has a file of the job."""
    (found,) = (api.services.settings.home / "artifacts").rglob(f"{job['id']}/*/files/{path}")
    return found


class TestDamagedStore:
    """Somebody emptied a bucket, restored half of it, or a disk lost a sector."""

    @pytest.mark.parametrize("damage", ["gone", "cut short", "longer"])
    def test_a_file_that_is_not_there_as_it_was_stored_is_410(self, damage: str, api: Api, job: dict[str, Any]) -> None:
        file = stored(api, job, "model.safetensors")
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(WEIGHTS[:-1] if damage == "cut short" else WEIGHTS + b"x")
        url = f"/v1/jobs/{job['id']}/artifacts/model.safetensors"
        for headers in ({}, {"Range": "bytes=0-9"}):
            response = api.client.get(url, headers=headers)
            assert response.status_code == 410
            problem = response.json()
            assert (problem["code"], problem["title"]) == ("artifact_lost", "The artifact store no longer has the file")
            assert "model.safetensors" in problem["detail"]
            assert "submit the job again" in problem["detail"]
            assert response.headers["Cache-Control"] == "no-store"
        assert api.client.head(url).status_code == 410
        assert api.get(job, "/artifacts/README.md").status_code == 200

    @pytest.mark.parametrize("damage", ["gone", "turned"])
    def test_a_page_too(self, damage: str, api: Api, job: dict[str, Any]) -> None:
        file = stored(api, job, "report.html")
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(b"<h1>Retort</h1>")
        response = api.get(job, "/report", Accept="text/html")
        assert (response.status_code, response.json()["code"]) == (410, "artifact_lost")
        assert api.get(job, "/report").status_code == 200


class TestReport:
    def test_as_json_unless_asked_otherwise(self, api: Api, job: dict[str, Any]) -> None:
        for accept in ("application/json", "*/*", "", "text/plain, */*;q=0.1"):
            response = api.get(job, "/report", Accept=accept)
            assert response.headers["Content-Type"] == "application/json"
            assert response.json()["metrics"][0]["pruned"] == 11.0

    def test_as_a_page_that_may_load_nothing(self, api: Api, job: dict[str, Any]) -> None:
        for accept in ("text/html", "text/html,application/xhtml+xml,*/*;q=0.8", "text/*"):
            response = api.get(job, "/report", Accept=accept)
            assert response.content == FILES["report.html"]
            assert response.headers["Content-Type"] == "text/html; charset=utf-8"
            assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")

    def test_as_nothing_else(self, api: Api, job: dict[str, Any]) -> None:
        response = api.get(job, "/report", Accept="application/pdf")
        assert (response.status_code, response.json()["allowed"]) == (406, ["application/json", "text/html"])

    def test_of_an_unfinished_job_is_409(self, api: Api) -> None:
        job = api.submit()
        for status in ("queued", "running"):
            response = api.get(job, "/report")
            assert (response.status_code, response.json()["code"]) == (409, "not_finished")
            assert status in response.json()["detail"]
            if status == "queued":
                api.claim()

    def test_of_a_failed_job_is_404(self, api: Api) -> None:
        job = api.submit()
        api.fail(api.claim())
        response = api.get(job, "/report")
        assert (response.status_code, response.json()["code"]) == (404, "no_report")

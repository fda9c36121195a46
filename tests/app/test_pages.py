"""The pages for people: whole without the internet, strict about methods, open to everybody and holding nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urljoin

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.helpers.api import Api

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGES = ("/", "/about", "/docs")


@pytest.fixture
def anyone(api: Api) -> Api:
    api.client.headers.pop("Authorization")
    return api


def test_every_file_a_page_asks_for_comes_from_here(anyone: Api) -> None:
    for page in PAGES:
        response = anyone.client.get(page)
        assert (response.status_code, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        wanted = [link for link in re.findall(r'(?:src|href)="([^"]+)"', response.text) if link != "data:,"]
        assert wanted
        for link in wanted:
            assert not re.match(r"https?:|//", link), link
            assert anyone.client.get(urljoin(f"http://testserver{page}", link)).status_code == 200, link
    script = anyone.client.get("/docs/swagger-ui-bundle.js")
    assert script.headers["Content-Type"].startswith("text/javascript")
    assert "SwaggerUIBundle" in script.text


def test_behind_a_proxy_the_document_names_the_path(app: FastAPI) -> None:
    assert "servers" not in TestClient(app).get("/openapi.json").json()
    assert TestClient(app, root_path="/prefix").get("/openapi.json").json()["servers"] == [{"url": "/prefix"}]


def test_pages_are_strict_about_methods(anyone: Api) -> None:
    for path in (*PAGES, "/openapi.json", "/docs/start.js", "/ui/app.js"):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            response = anyone.client.request(method, path)
            assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed"), (method, path)
            assert response.headers["Allow"] == "GET, HEAD, OPTIONS"
        assert anyone.client.options(path).headers["Allow"] == "GET, HEAD, OPTIONS"
        assert anyone.client.head(path).status_code == 200
    for path in (
        "/redoc",
        "/docs/../pyproject.toml",
        "/docs/%2e%2e/index.html",
        "/docs/templates",
        "/docs/a/b",
        "/ui",
        "/ui/",
        "/ui/../endpoints.py",
        "/ui/index.html",
        "/ui/vendor",
    ):
        assert anyone.client.get(path).status_code == 404, path


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_the_api_page_is_drawn_without_the_internet(server: httpx2.Client, tmp_path: Path) -> None:
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=20000", f"{server.base_url}".rstrip("/") + "/docs"]
    drawn = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert "/v1/jobs/{job_id}" in re.sub(r"\u200b|<wbr>", "", drawn)
    assert drawn.count('class="opblock ') > 20


def test_scripts_and_styles_are_asked_for_anew_and_sent_when_they_have_changed(anyone: Api) -> None:
    for path in ("/", "/ui/app.js", "/ui/style.css", "/ui/pages/job.js"):
        first = anyone.client.get(path)
        assert first.headers["Cache-Control"] == "no-cache"
        assert anyone.client.get(path, headers={"If-None-Match": first.headers["ETag"]}).status_code == 304


def test_no_page_of_another_site_can_hold_ours_or_run_in_it(anyone: Api) -> None:
    policy = anyone.client.get("/").headers["Content-Security-Policy"]
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", anyone.client.get("/").text)

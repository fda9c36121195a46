"""Publishing to an MLflow registry: to MLflow's own server where `make mlflow` has installed it, and to ours, which
answers the same requests."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.signing.check import check
from app.signing.keys import KeyRing
from tests.helpers import registry
from tests.helpers.api import FILES, Api, with_manifest
from tests.helpers.cluster import ROOT
from tests.helpers.publishing import ON_SQLITE, all_due, deliverer, of, publish, set_up

pytestmark = ON_SQLITE
RESULT = with_manifest({**FILES, "deep/er/config.json": b"{}"})
MLFLOW = ROOT / ".venv-mlflow/bin/mlflow"
START_S = 120


@pytest.fixture(scope="module", params=["ours", pytest.param("mlflow", marks=pytest.mark.mlflow)])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server without anything in it."""
    if request.param == "ours":
        with registry.serving() as running:
            yield running
        return
    if not MLFLOW.exists():
        pytest.skip("MLflow's server is not installed: `make mlflow`")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [MLFLOW, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=folder)
        try:
            end = time.monotonic() + START_S
            while not _answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end, "it did not start in time"
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(timeout=30)


@pytest.fixture
def place(api: Api, url: str) -> str:
    KeyRing(api.services.signing.path, make=True)
    set_up(api, ("models", {"to": "mlflow", "url": url}))
    return url


def asked(model: str, **fields: Any) -> dict[str, Any]:
    return {"to": "mlflow", "credentials": "models", "model": model, **fields}


def get(url: str, method: str, **query: str) -> dict[str, Any]:
    answer = httpx2.get(f"{url}/api/2.0/mlflow/{method}", params=query, trust_env=False, timeout=60)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def test_a_version_with_all_of_the_result(api: Api, place: str, tmp_path: Path) -> None:
    name = f"half-{api.tenant_id[-6:]}"
    forged = {"espalier_manifest_sha256": "0" * 64, "espalier_tenant": "other", "mlflow.user": "other"}
    job = api.succeeded(RESULT, publish=[asked(name, alias="champion")], labels={"team": "search", **forged})
    assert deliverer(api).step()
    (found,) = of(api, job)
    assert (found["state"], found["error"]) == ("published", None)
    location = f"{place}/#/models/{name}/versions/1"
    assert found["result"] == {"location": location, "revision": "1", "changed": True}
    version = get(place, "model-versions/get", name=name, version="1")["model_version"]
    assert {"key": "espalier_job", "value": job["id"]} in version["tags"]
    run = get(place, "runs/get", run_id=version["run_id"])["run"]
    assert run["info"]["status"] == "FINISHED"
    assert {"key": "team", "value": "search"} in run["data"]["tags"]
    assert not {(each["key"], each["value"]) for each in run["data"]["tags"]} & set(forged.items())
    measured = {each["key"]: each["value"] for each in run["data"]["metrics"]}
    assert measured["perplexity/a.txt/pruned"] == 11.0
    root = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:").strip("/")
    for path in [*RESULT, "manifest.jws"]:
        (tmp_path / "there" / path).parent.mkdir(parents=True, exist_ok=True)
        answer = httpx2.get(
            f"{place}/api/2.0/mlflow-artifacts/artifacts/{root}/model/{path}", trust_env=False, timeout=60
        )
        (tmp_path / "there" / path).write_bytes(answer.content)
    verified = check(tmp_path / "there", api.services.signing.published(), job_id=job["id"])
    assert (verified.findings, verified.files) == ([], len(RESULT) - 1)
    # The same again makes no version; another alias is set.
    for fields, changed in (({}, False), ({"alias": "candidate"}, True), ({"alias": "candidate"}, False)):
        publish(api, job, asked(name, **fields))
        deliverer(api).step()
        again = of(api, job)[-1]
        assert again["result"] == {"location": location, "revision": "1", "changed": changed}, fields
    # Another result is the next version, which takes the alias over.
    job = api.succeeded(with_manifest({"README.md": name.encode()}), publish=[asked(name, alias="champion")])
    deliverer(api).step()
    assert of(api, job)[0]["result"]["revision"] == "2"
    aliases = get(place, "registered-models/get", name=name)["registered_model"]["aliases"]
    assert {each["alias"]: each["version"] for each in aliases} == {"champion": "2", "candidate": "1"}


def test_broken_off_it_sends_only_the_rest(api: Api, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.publications.to import mlflow

    files = with_manifest({**FILES, "README.md": api.tenant_id.encode()})
    job = api.succeeded(files, publish=[asked(f"broken-{api.tenant_id[-6:]}")])
    real, sent = mlflow._Server._put, list[str]()

    def broken(self: Any, path: str, *rest: Any) -> None:
        if len(sent) == 2:
            raise RuntimeError("the process is killed")
        sent.append(path)
        real(self, path, *rest)

    monkeypatch.setattr(mlflow._Server, "_put", broken)
    work = deliverer(api)
    assert work.step()
    assert of(api, job)[0]["error"]["code"] == "publisher_crashed"
    all_due(api)
    first, sent = sent, []
    monkeypatch.setattr(mlflow._Server, "_put", lambda self, path, *rest: sent.append(path) or real(self, path, *rest))
    assert work.step()
    assert of(api, job)[0]["state"] == "published"
    assert len(first + sent) == len(set(first + sent)) == len(files) + 1


def test_killed_before_it_registers_it_makes_no_second_run(
    api: Api, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.publications.to import mlflow

    name = f"unregistered-{api.tenant_id[-6:]}"
    job = api.succeeded(with_manifest({"README.md": name.encode()}), publish=[asked(name)])
    sent: list[dict[str, Any]] = []
    real = mlflow._Server.register

    def killed(_: Any, model: str, run: dict[str, Any], *rest: Any) -> str:
        sent.append(run)
        raise RuntimeError("the process is killed")

    monkeypatch.setattr(mlflow._Server, "register", killed)
    assert deliverer(api).step()
    assert of(api, job)[0]["error"]["code"] == "publisher_crashed"
    all_due(api)
    monkeypatch.setattr(mlflow._Server, "register", real)
    assert deliverer(api).step()
    version = get(place, "model-versions/get", name=name, version="1")["model_version"]
    assert version["run_id"] == sent[0]["info"]["run_id"]
    run = get(place, "runs/get", run_id=version["run_id"])["run"]
    measured = [each["key"] for each in run["data"]["metrics"]]
    assert "perplexity/a.txt/pruned" in measured
    assert len(measured) == len(set(measured))


def test_two_publications_at_once_make_one_version(api: Api, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.publications.to import mlflow

    name = f"twice-{api.tenant_id[-6:]}"
    files = with_manifest({"README.md": name.encode()})
    job = api.succeeded(files, publish=[asked(name), asked(name, alias="champion")])
    other = api.succeeded(RESULT, publish=[asked(f"other-{name}")])
    real, second = mlflow._Server.send, deliverer(api)
    found: list[bool] = []

    def meanwhile(*args: Any) -> None:
        monkeypatch.setattr(mlflow._Server, "send", real)
        found.extend([second.step(), second.step()])
        real(*args)

    monkeypatch.setattr(mlflow._Server, "send", meanwhile)
    assert deliverer(api).step()
    assert found == [True, False], "another job's goes on meanwhile, the same job's waits"
    assert of(api, other)[0]["state"] == "published"
    assert second.step()
    assert [(each["state"], each["result"]["revision"]) for each in of(api, job)] == [("published", "1")] * 2


def test_one_that_was_stopped_past_its_lease_registers_nothing(
    api: Api, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.publications.to import mlflow

    name = f"late-{api.tenant_id[-6:]}"
    files = with_manifest({"README.md": name.encode()})
    job = api.succeeded(files, publish=[asked(name)])
    real = mlflow._Server.send

    def stopped(*args: Any) -> None:
        monkeypatch.setattr(mlflow._Server, "send", real)
        real(*args)
        all_due(api)
        assert deliverer(api).step()

    monkeypatch.setattr(mlflow._Server, "send", stopped)
    assert deliverer(api).step()
    (found,) = of(api, job)
    assert (found["state"], found["tries"], found["result"]["revision"]) == ("published", 2, "1")
    digest = hashlib.sha256(files["manifest.json"]).hexdigest()
    wanted = f"name = '{name}' and tags.`espalier_manifest_sha256` = '{digest}'"
    versions = get(place, "model-versions/search", filter=wanted)["model_versions"]
    assert [each["version"] for each in versions] == ["1"]


def test_a_server_that_is_away_and_names_that_are_none(api: Api, place: str) -> None:
    away = {"to": "mlflow", "url": "http://127.0.0.1:9"}
    set_up(api, ("models", {"to": "mlflow", "url": place}), ("away", away))
    job = api.succeeded(RESULT, publish=[asked("m", credentials="away")])
    deliverer(api).step()
    (found,) = of(api, job)
    assert (found["state"], found["error"]["code"]) == ("pending", "destination_unreachable")
    for fields in ({"model": "a/b"}, {"model": "x'y"}, {"alias": "1"}, {"alias": "a b"}, {"experiment": "x'"}):
        assert publish(api, job, {**asked("m"), **fields}).status_code == 422, fields


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False, timeout=5).is_success
    except httpx2.TransportError:
        return False

"""A version of a model in an MLflow registry, by its REST API: a run that holds the files, and a version that is of it.

The server must hand artifacts on (`mlflow server --serve-artifacts`, its default): addresses of its own store mean
nothing here. A run belongs to one manifest, by a tag; what it has already is not sent again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal
from urllib.parse import quote

import httpx2
from pydantic import Field

from app.publications.contract import (
    Params,
    Published,
    Publisher,
    PublishFailure,
    Result,
    ResultFile,
    SecretRef,
    Target,
)
from app.publications.reading import pieces

FOLDER = "model"
MANIFEST_TAG = "espalier_manifest_sha256"
RESERVED = ("mlflow.", "espalier_")
"""Beginnings of tags with a meaning, which labels do not get."""
TIMEOUT = httpx2.Timeout(60, connect=10)
SCHEME = "mlflow-artifacts:"
METRICS_AT_ONCE = 500
MOST_RUNS = 100
"""Looked through for one of the same manifest."""


class MlflowParams(Params):
    """A registered model."""

    to: Literal["mlflow"]
    model: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_][A-Za-z0-9 ._-]*$")] = Field(
        description="Made where it is not there.", examples=["bookworm-half"]
    )
    experiment: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_/][A-Za-z0-9 ._/-]*$")] = Field(
        "espalier", description="Where the run is; made where it is not there."
    )
    alias: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")] | None = Field(
        None, description="Is to name this version then, such as `champion`."
    )


class MlflowTarget(Target):
    to: Literal["mlflow"]
    url: str = Field(pattern=r"^https?://\S+[^/\s]$")
    token: SecretRef | None = None
    username: SecretRef | None = None
    password: SecretRef | None = None


def publish(target: MlflowTarget, params: MlflowParams, result: Result, secrets: dict[str, str]) -> Published:
    """A version of this very manifest is left as it is; its alias is set if it is asked for."""
    with _client(target, secrets) as client:
        server = _Server(client, target.url)
        version = server.version_of(params.model, result.manifest_sha256)
        changed = version is None
        if version is None:
            run = server.run_of(params.experiment, result)
            server.send(run, result)
            result.confirm()
            version = server.register(params.model, run, result)
        if params.alias is not None and server.aliased(params.model, params.alias) != version:
            result.confirm()
            server.post("registered-models/alias", name=params.model, alias=params.alias, version=version)
            changed = True
    return Published(f"{target.url}/#/models/{quote(params.model)}/versions/{version}", version, changed)


class _Server:
    """Each method raises PublishFailure."""

    def __init__(self, client: httpx2.Client, url: str) -> None:
        self._client, self._url = client, url

    def version_of(self, model: str, manifest_sha256: str) -> str | None:
        """The number of the version that has this manifest."""
        wanted = f"name = '{model}' and tags.`{MANIFEST_TAG}` = '{manifest_sha256}'"
        found = self.get("model-versions/search", filter=wanted, max_results="10").get("model_versions", [])
        ready = [each["version"] for each in found if each.get("status", "READY") == "READY"]
        return str(ready[-1]) if ready else None

    def run_of(self, experiment: str, result: Result) -> dict[str, Any]:
        """The run that holds the files, or will: one that another try or publication has made, or a new one."""
        experiment_id = self._experiment(experiment)
        wanted = f"tags.`{MANIFEST_TAG}` = '{result.manifest_sha256}'"
        found = self.post("runs/search", experiment_ids=[experiment_id], filter=wanted, max_results=MOST_RUNS)
        for run in found.get("runs", []):
            if run["info"]["status"] in ("RUNNING", "FINISHED"):  # others were ended by somebody else
                return dict(run)
        # Ours last: by one of them a run is found again, so no label may say it.
        labels = {key: value for key, value in result.labels.items() if not key.startswith(RESERVED)}
        tags = {**labels, "mlflow.runName": result.job_id, **_tags(result)}
        result.confirm()
        made = self.post(
            "runs/create",
            experiment_id=experiment_id,
            run_name=result.job_id,
            start_time=int(time.time() * 1000),
            tags=_pairs(tags),
        )
        return dict(made["run"])

    def send(self, run: dict[str, Any], result: Result) -> None:
        """The files that are not there, and what was measured; the run ends with them."""
        run_id, uri = run["info"]["run_id"], run["info"]["artifact_uri"]
        if not uri.startswith(f"{SCHEME}/"):
            raise PublishFailure(
                "publish_refused",
                f"{self._url} hands no artifacts on",
                "The operator starts the server with --serve-artifacts, and an artifact root of mlflow-artifacts:/.",
            )
        there = dict(self._listed(run_id, FOLDER))
        for file in result.files:
            if there.get(f"{FOLDER}/{file.path}") == file.bytes:
                result.done(file.bytes)
                continue
            root = uri.removeprefix(SCHEME).split("://")[-1].strip("/")
            self._put(quote(f"{root}/{FOLDER}/{file.path}"), file, result)
        result.confirm()
        if run["info"]["status"] == "FINISHED":
            return
        now = int(time.time() * 1000)
        metrics = [
            {"key": _key(f"{metric['name']}/{side}"), "value": metric[side], "timestamp": now, "step": 0}
            for metric in result.report.get("metrics", [])
            for side in ("dense", "pruned", "ratio")
            if isinstance(metric.get(side), int | float)
        ]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self.post("runs/log-batch", run_id=run_id, metrics=metrics[start : start + METRICS_AT_ONCE])
        self.post("runs/update", run_id=run_id, status="FINISHED", end_time=now)

    def register(self, model: str, run: dict[str, Any], result: Result) -> str:
        """The number of a new version."""
        with suppress(_Exists):
            self.post("registered-models/create", name=model)
        made = self.post(
            "model-versions/create",
            name=model,
            source=f"{run['info']['artifact_uri']}/{FOLDER}",
            run_id=run["info"]["run_id"],
            tags=_pairs(_tags(result)),
            description=f"Made by espalier, {result.job_id}.",
        )
        return str(made["model_version"]["version"])

    def aliased(self, model: str, alias: str) -> str | None:
        """The number of the version that the alias names."""
        found = self.get("registered-models/get", name=model)["registered_model"].get("aliases", [])
        return next((str(each["version"]) for each in found if each["alias"] == alias), None)

    def post(self, method: str, /, **body: Any) -> dict[str, Any]:
        return self._checked(lambda: self._client.post(f"api/2.0/mlflow/{method}", json=body))

    def get(self, method: str, /, **query: str) -> dict[str, Any]:
        return self._checked(lambda: self._client.get(f"api/2.0/mlflow/{method}", params=query))

    def _experiment(self, name: str) -> str:
        try:
            return str(self.post("experiments/create", name=name)["experiment_id"])
        except _Exists:
            found = self.get("experiments/get-by-name", experiment_name=name)["experiment"]
        if found.get("lifecycle_stage") == "deleted":
            raise PublishFailure(
                "destination_missing", f"the experiment {name} was deleted", "Restore it, or name another."
            )
        return str(found["experiment_id"])

    def _listed(self, run_id: str, folder: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of the run's files below the folder."""
        token = ""
        while True:
            found = self.get("artifacts/list", run_id=run_id, path=folder, **({"page_token": token} if token else {}))
            for each in found.get("files", []):
                if each.get("is_dir"):
                    yield from self._listed(run_id, each["path"])
                else:
                    yield each["path"], int(each.get("file_size", -1))
            if not (token := found.get("next_page_token", "")):
                return

    def _put(self, path: str, file: ResultFile, result: Result) -> None:
        headers = {"Content-Length": str(file.bytes), "Content-Type": "application/octet-stream"}
        path = f"api/2.0/mlflow-artifacts/artifacts/{path}"
        self._checked(lambda: self._client.put(path, content=pieces(file, result), headers=headers))

    def _checked(self, send: Callable[[], httpx2.Response]) -> dict[str, Any]:
        try:
            answer = send()
        except httpx2.HTTPError as error:
            raise PublishFailure(
                "destination_unreachable",
                f"{self._url}: {type(error).__name__}",
                "It is tried again by itself.",
                retryable=True,
            ) from error
        try:
            body = answer.json() if answer.content else {}
        except ValueError:
            body = {}
        body = body if isinstance(body, dict) else {}
        if answer.is_success:
            return body
        if body.get("error_code") == "RESOURCE_ALREADY_EXISTS":
            raise _Exists
        said = f"{self._url} answered {answer.status_code}: {str(body.get('message', ''))[:300] or 'without a reason'}"
        if answer.status_code == 429 or answer.status_code >= 500:
            raise PublishFailure("destination_unreachable", said, "It is tried again by itself.", retryable=True)
        raise PublishFailure(
            "publish_refused", said, "Change what the server says; of 401 and 403 the operator checks the credentials."
        )


class _Exists(Exception):
    """It is there already."""


def _client(target: MlflowTarget, secrets: dict[str, str]) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {secrets['token']}"} if "token" in secrets else {}
    login = (secrets["username"], secrets.get("password", "")) if "username" in secrets else None
    return httpx2.Client(base_url=f"{target.url}/", headers=headers, auth=login, timeout=TIMEOUT)


def _tags(result: Result) -> dict[str, str]:
    return {MANIFEST_TAG: result.manifest_sha256, "espalier_job": result.job_id, "espalier_tenant": result.tenant}


def _pairs(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _key(name: str) -> str:
    """A metric's name in the letters that MLflow takes."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-. /") else "_" for letter in name)


PUBLISHER: Publisher[Any, Any] = Publisher("mlflow", MlflowTarget, MlflowParams, publish)

"""The API over real HTTP semantics on both databases, and hands to play the worker with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.jobs import fleet
from app.main import create_app
from app.settings import Settings
from tests.helpers.api import ROOT, W1, Api, make_key, served
from tests.helpers.conformity import conforming


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        secret_key="for tests only",
        models_dir=ROOT / "examples/models",
        data_dir=ROOT / "examples/data",
        log_level="error",
    )


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def api(app: FastAPI) -> Iterator[Api]:
    """The API in this process, and a key with every scope."""
    with TestClient(app) as client:
        text, key_id, tenant_id = make_key(app.state.services, "ours")
        client.headers["Authorization"] = f"Bearer {text}"
        with app.state.services.database.write() as session:
            fleet.make_known(session, W1, ttl_s=600)
        client.event_hooks["response"].append(conforming)
        yield Api(client, app.state.services, text, key_id, tenant_id)


@pytest.fixture
def foreign(api: Api) -> httpx2.Headers:
    """Credentials of another tenant."""
    return httpx2.Headers({"Authorization": f"Bearer {make_key(api.services, 'theirs')[0]}"})


@pytest.fixture
def server(app: FastAPI) -> Iterator[httpx2.Client]:
    """The same app behind a real socket: for streams, waits and requests at once."""
    with served(app) as url:
        text, _, _ = make_key(app.state.services, "ours")
        with httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {text}"},
            timeout=30,
            trust_env=False,
            event_hooks={"response": [conforming]},
        ) as client:
            yield client

"""Pages of other origins: those that the operator names may call the API with a key, and nobody with a cookie."""

from __future__ import annotations

import pytest

from app.settings import Settings
from tests.helpers.api import Api

DASH = "https://dash.example.org"
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}


class TestNamed:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"cors_origins": f"{DASH}, https://other.example"})

    def test_a_named_origin_may_call(self, api: Api) -> None:
        asked = api.client.options("/v1/jobs", headers={"Origin": DASH, **ASKED})
        assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (200, DASH)
        answer = api.client.get("/v1/jobs", headers={"Origin": DASH})
        assert answer.headers["Access-Control-Allow-Origin"] == DASH
        assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "Origin" in answer.headers["Vary"]

    def test_another_may_not(self, api: Api) -> None:
        evil = {"Origin": "https://evil.example"}
        assert api.client.options("/v1/jobs", headers={**evil, **ASKED}).status_code == 400
        assert "Access-Control-Allow-Origin" not in api.client.get("/v1/jobs", headers=evil).headers


def test_by_default_no_origin_may(api: Api) -> None:
    answer = api.client.get("/v1/jobs", headers={"Origin": DASH})
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert (
        "Access-Control-Allow-Origin" not in api.client.options("/v1/jobs", headers={"Origin": DASH, **ASKED}).headers
    )

"""The keys that verify manifests, for everybody: no key of the API is needed."""

from __future__ import annotations

from typing import Literal

import orjson
from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.http.route import StrictRoute
from app.services import ServicesDep

router = APIRouter(tags=["artifacts"], route_class=StrictRoute)


class PublishedKey(BaseModel):
    """A JSON web key (RFC 7517)."""

    model_config = ConfigDict(extra="forbid")

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    kid: str = Field(description="Its thumbprint (RFC 7638).")
    use: Literal["sig"]
    alg: Literal["Ed25519"]
    created_at: AwareDatetime
    retired_at: AwareDatetime | None = Field(description="Since then it signs no more. What it signed is still good.")


class RevokedKey(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kid: str
    revoked_at: AwareDatetime


class PublishedKeys(BaseModel):
    """A JSON web key set."""

    model_config = ConfigDict(extra="forbid")

    keys: list[PublishedKey] = Field(description="Oldest first; none where the service signs nothing.")
    revoked: list[RevokedKey] = Field(description="Keys that verify nothing any more.")


@router.get("/.well-known/espalier-keys.json", operation_id="signing_keys", response_model=PublishedKeys)
def signing_keys(has: ServicesDep) -> Response:
    """The public keys that verify `manifest.jws` of results."""
    headers = {"Cache-Control": "public, max-age=300"}
    return Response(orjson.dumps(has.signing.published()), headers=headers, media_type="application/json")

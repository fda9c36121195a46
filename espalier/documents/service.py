"""What the service says of itself and of the caller: key, workers, models, methods."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from espalier.documents.base import Document
from espalier.documents.jobs import Price


class Tenant(Document):
    """Whose jobs a key sees."""

    id: str
    name: str


class Key(Document):
    """An API key, without its text."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None


class Limits(Document):
    """Bounds of what a request may ask for."""

    max_body_bytes: int
    max_attempts: int
    deadline_s: int


class Quotas(Document):
    """Bounds of what a tenant may use; None where there is none."""

    queued: int | None = None
    running: int | None = None
    stored_bytes: int | None = None
    device_seconds: int | None = None
    requests: int | None = None


class Usage(Document):
    """How much of its quotas a tenant uses."""

    queued: int
    running: int
    stored_bytes: int
    """Equal files once."""
    removed_bytes: int
    """By retention policies, since the first job."""
    device_seconds: float
    prices: list[Price]
    """Of these device-seconds, of each currency one."""
    resets_at: datetime


class Me(Document):
    """The key of the request, and whose it is."""

    tenant: Tenant
    key: Key
    limits: Limits
    quotas: Quotas
    usage: Usage


class Device(Document):
    """A part of a worker that it hands out."""

    name: str
    model: str | None = None
    memory_bytes: int | None = None
    busy: bool
    job_id: str | None = None


class Worker(Document):
    """A process that does jobs. `kind` is cpu or gpu."""

    id: str
    name: str
    kind: str
    alive: bool
    last_seen_at: datetime | None = None
    memory_bytes: int | None = None
    devices: list[Device]
    methods: dict[str, list[str]] | None = None


class ModelSummary(Document):
    """A model that the service can see. `source` is local or job."""

    id: str
    source: str
    model_type: str | None = None
    family: str | None = None
    parameters: int | None = None
    blocks: int | None = None
    context_length: int | None = None
    weight_bytes: int | None = None
    compressible: bool
    methods: list[str]
    code: str | None = None
    reason: str | None = None


class Ability(Document):
    """Whether a method that edits models fits this one, and why not."""

    stage: str
    method: str
    fits: bool
    spec: dict[str, Any] | None = None
    code: str | None = None
    reason: str | None = None


class Model(ModelSummary):
    """A model with the planner's answer for each pruner and grower."""

    abilities: list[Ability]


class Method(Document):
    """A method; `parameters` is the JSON Schema of its fields in a spec."""

    name: str
    summary: str
    paper: str
    needs: list[str]
    units: list[str]
    patterns: list[str]
    score: str | None = None
    updates_weights: bool | None = None
    parameters: dict[str, Any]


class Stage(Document):
    """A field of the spec that takes a method."""

    stage: str
    methods: list[Method]


class SpecField(Document):
    """A field of the spec that is no stage."""

    name: str
    summary: str
    parameters: dict[str, Any]


class Capabilities(Document):
    """Stages, methods and settings that the service offers."""

    stages: list[Stage]
    fields: list[SpecField]

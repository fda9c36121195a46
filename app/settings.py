"""Configuration: one class, the only reader of the environment. README's table is generated from it."""

from __future__ import annotations

import secrets
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app import prices
from app.files import write_once


class Settings(BaseSettings):
    """Every field is read from `ESPALIER_<NAME>`, or from a file of that name under /run/secrets.

    The defaults are the embedded service: SQLite, a broker of files, artifacts in a folder, all below `home`.
    """

    model_config = SettingsConfigDict(
        env_prefix="ESPALIER_",
        frozen=True,
        extra="ignore",
        secrets_dir="/run/secrets" if Path("/run/secrets").is_dir() else None,
    )

    home: Path = Field(Path(".espalier"), description="Folder of the embedded service; the defaults below live in it.")
    database_url: str = Field("", description="SQLAlchemy URL: sqlite:///… or postgresql://…. Default: SQLite in home.")
    broker_url: str = Field("", description="redis://…, or filesystem://FOLDER on one host. Default: a folder in home.")
    artifacts_url: str = Field("", description="file:///…, s3://bucket/prefix, gs://… or az://…. Default: in home.")
    models_dir: Path = Field(Path("examples/models"), description="Folder of local models, one folder each.")
    data_dir: Path = Field(Path("examples/data"), description="Folder of local texts: .txt, .jsonl or .parquet.")
    work_dir: Path = Field(Path(), description="Scratch of running jobs and their resume points. Default: in home.")
    cache_dir: Path = Field(
        Path(), description="What workers measured of dense models, kept for later jobs. Default: in home."
    )
    secret_key: SecretStr = Field(
        SecretStr(""), description="Signs cursors and hashes API keys. Default: made once and kept in home."
    )

    signing_keys: Path = Field(
        Path(),
        description="Private keys that sign manifests, made by `espalier signing-keys rotate`. Default: in home, where "
        "the embedded service makes it; elsewhere nothing is signed without one.",
    )

    credentials: Path = Field(
        Path(),
        description="Named places to publish results to, TOML, for API and reconciler: docs/publishing.md. "
        "Default: credentials.toml in home.",
    )

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on.")
    cors_origins: str = Field(
        "",
        description="Origins whose pages may call the API with a key, with commas, such as https://dash.example.org. "
        "They get no cookie.",
    )
    webhook_allow: str = Field(
        "",
        description="Private networks that webhooks may reach, with commas, such as 10.1.0.0/16, there over http too. "
        "Else they are sent to public addresses over https only.",
    )
    method_packages: str = Field(
        "",
        description="Installed packages whose methods may be used, with commas. Of the API and of workers; read from "
        "the environment alone.",
    )
    max_body_bytes: int = Field(1_000_000, ge=1024, description="Largest request body accepted.")
    metrics_tenants: bool = Field(
        False, description="Name tenants in /metrics, which needs no key. Else their figures are summed up."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line logged.")

    worker_devices: Literal["auto", "cpu", "gpu"] = Field(
        "auto",
        description="What this worker hands out. `gpu`: the GPUs in CUDA_VISIBLE_DEVICES, or all of the host; `auto`: "
        "the same if there is a driver, and any GPU. A `cpu` worker uses none, and leaves jobs with "
        "compute.device=cuda alone.",
    )
    worker_slots: int = Field(
        1,
        ge=1,
        le=256,
        description="Devices of a worker without GPUs: equal shares of the processors. A job takes compute.devices.",
    )
    overtaking_s: float = Field(
        300,
        ge=0,
        description="How long jobs may overtake an older one that needs more devices than a worker has free.",
    )
    worker_warm: bool = Field(
        True,
        description="Keep a process with torch imported to fork jobs from: they start seconds sooner, for half a GB.",
    )
    worker_threads: int = Field(
        0, ge=0, le=1024, description="CPU threads per device of a job. 0: its share of the worker's processors."
    )
    lease_ttl_s: float = Field(60, gt=0, le=3600, description="A job whose worker is silent this long is taken over.")
    heartbeat_s: float = Field(
        1, gt=0, le=60, description="How often a worker renews its lease and checks for a cancel."
    )
    cancel_grace_s: float = Field(2, ge=0, le=60, description="Time a job has to stop by itself before it is killed.")
    resume_point_s: float = Field(
        60,
        ge=0,
        le=3600,
        description="Finished work that a kill may cost a job, or one block if that takes longer. 0 keeps every block.",
    )
    retry_backoff_s: float = Field(5, ge=0, le=3600, description="Wait before the second attempt; doubles each time.")
    reconcile_s: float = Field(5, gt=0, le=600, description="How often expired leases and lost messages are sought.")
    redispatch_s: float = Field(30, gt=0, le=3600, description="A queued job unannounced this long is announced again.")
    max_attempts: int = Field(3, ge=1, le=10, description="Attempts a job gets unless it asks for fewer.")
    deadline_s: int = Field(86_400, ge=1, le=604_800, description="Longest run of a job unless it asks for less.")
    keep_days: int | None = Field(
        None,
        ge=0,
        le=36_500,
        description="Days after a job's end for which the files of its result are kept at most; the report stays, and "
        "so do those of pinned jobs. Counts for jobs submitted from then on. Default: no bound.",
    )
    prices: str = Field(
        "",
        description="Price of a second of a device by kind (`cpu`, `gpu`) or by a GPU's model, with commas, such as "
        "`cpu=0.00002, gpu=0.0008, NVIDIA H100 80GB HBM3=0.0011`. Workers read it: an attempt has that of its start. "
        "The API reads it for dry runs.",
    )
    currency: str = Field("", max_length=8, description="Of the prices, such as EUR.")
    session_hours: float = Field(12, gt=0, le=720, description="How long a browser stays signed in.")
    idempotency_hours: float = Field(48, gt=0, le=720, description="How long an Idempotency-Key is remembered.")

    @model_validator(mode="before")
    @classmethod
    def _below_home(cls, values: dict[str, object]) -> dict[str, object]:
        home = Path(str(values.get("home") or ".espalier")).absolute()
        values["home"] = home
        for name, default in {
            "database_url": f"sqlite:///{home}/espalier.db",
            "broker_url": f"filesystem://{home}/broker",
            "artifacts_url": f"file://{home}/artifacts",
            "work_dir": home / "work",
            "cache_dir": home / "cache",
            "signing_keys": home / "signing-keys.json",
            "credentials": home / "credentials.toml",
        }.items():
            if not values.get(name):
                values[name] = default
        return values

    @model_validator(mode="after")
    def _gpus_are_counted(self) -> Settings:
        if self.worker_devices == "gpu" and self.worker_slots != 1:
            raise ValueError("worker_slots is for workers without GPUs: list a worker's GPUs in CUDA_VISIBLE_DEVICES")
        return self

    @model_validator(mode="after")
    def _prices_have_a_currency(self) -> Settings:
        if bool(prices.parsed(self.prices)) != bool(self.currency):
            raise ValueError("prices and currency belong together: set both, or none")
        return self

    @model_validator(mode="after")
    def _renew_well_before_expiry(self) -> Settings:
        if self.heartbeat_s * 3 > self.lease_ttl_s:
            raise ValueError("heartbeat_s must be at most a third of lease_ttl_s, or a slow beat loses the lease")
        return self

    @property
    def embedded(self) -> bool:
        return self.database_url.startswith("sqlite")

    def secret(self) -> bytes:
        """The secret key; made and kept in `home` (mode 600) where none is configured."""
        if self.secret_key.get_secret_value():
            return self.secret_key.get_secret_value().encode()
        path = self.home / "secret"
        if not (found := write_once(path, secrets.token_hex(32), mode=0o600)).strip():
            raise ValueError(f"{path} is empty: restore it from a backup, or delete it and make new API keys")
        return found.encode()


@cache
def get_settings() -> Settings:
    return Settings()

"""Workers, as OpenAPI shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from app.jobs.schemas import Read


class DeviceRead(Read):
    """A part of a worker that it hands out: a GPU, or where it has none a share of the processors."""

    name: str = Field(description="As CUDA_VISIBLE_DEVICES names it; of a share its number.", examples=["0"])
    model: str | None = Field(description="Of a GPU, as its driver says; null where it is not known.")
    memory_bytes: int | None = Field(description="The GPU's own; null of shares, and where it is not known.")
    busy: bool
    job_id: str | None = Field(description="The job it is at work on, where that is your tenant's.")


class UseRead(Read):
    """Use of a device now, as the worker last saw it."""

    device: str = Field(description="A GPU's name, or `host`.", examples=["host"])
    memory_bytes: int | None
    memory_used_bytes: int | None
    busy: float | None = Field(description="Share of time in which the GPU, or the processors, were at work, 0 to 1.")


class WorkerRead(Read):
    id: str
    name: str = Field(description="Host and process.", examples=["gpu-1:412"])
    kind: Literal["cpu", "gpu"]
    alive: bool = Field(description="false once it has been silent for the time of a lease; it is forgotten then.")
    last_seen_at: AwareDatetime | None
    memory_bytes: int | None = Field(description="The host's, or of it what the worker may take.")
    devices: list[DeviceRead]
    use: list[UseRead] | None = Field(description="Of the host and of its GPUs; null where nobody has looked.")
    methods: dict[str, list[str]] | None = Field(
        description="Stage -> the methods that it has; null of a worker older than this field.",
        examples=[{"score": ["magnitude", "wanda"], "prune": ["mask"]}],
    )


class WorkerList(Read):
    data: list[WorkerRead]

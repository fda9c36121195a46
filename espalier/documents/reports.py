"""Reports of finished jobs, and plans of jobs that are not there yet."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from espalier.documents.base import Document
from espalier.documents.jobs import Price


class Metric(Document):
    """A measurement on the dense and on the pruned model."""

    name: str
    unit: str
    higher_is_better: bool | None = None
    dense: float
    pruned: float
    ratio: float | None = None
    dense_stderr: float | None = None
    pruned_stderr: float | None = None
    ratio_stderr: float | None = None


class Gate(Document):
    """A bound of the spec, and whether the measurement keeps it."""

    metric: str
    of: str
    min: float | None = None
    max: float | None = None
    value: float | None = None
    interval: tuple[float, float] | None = None
    verdict: str
    reason: str


class Layer(Document):
    """A linear layer before and after. `shape` is (outputs, inputs) of the result; `sparsity` the fraction removed."""

    name: str
    block: int
    shape: tuple[int, int]
    parameters: int
    zeros: int
    target_sparsity: float
    sparsity: float


class StageTime(Document):
    """Time and memory of a stage."""

    stage: str
    elapsed_s: float
    peak_memory_bytes: int


class Runtime(Document):
    """Whether a runtime loads the result, and whether it is faster there."""

    runtime: str
    loads: bool
    faster: bool
    note: str


class Provenance(Document):
    """Where the numbers come from."""

    spec_digest: str
    model_id: str
    model_commit: str
    data_digests: dict[str, str]
    seed: int
    versions: dict[str, str]
    device: str


class Report(Document):
    """What a job did; docs/methods.md says what the numbers mean."""

    spec: dict[str, Any]
    provenance: Provenance
    parameters: int
    parameters_after: int | None = None
    prunable_parameters: int
    zeros: int
    sparsity: float
    metrics: list[Metric]
    gates: list[Gate] = Field(default_factory=list)
    verdict: str | None = None
    layers: list[Layer]
    stages: list[StageTime]
    runtimes: list[Runtime]
    warnings: list[str]


class PlannedLayer(Document):
    """A layer that a job would prune."""

    name: str
    block: int
    shape: tuple[int, int]
    target_sparsity: float | None = None


class PlannedText(Document):
    """How much a job would read of a text at least, and about how much there is."""

    field: str
    dataset: str
    windows: int
    window_tokens: int
    tokens: int | None = None
    suggested: dict[str, int]


class Plan(Document):
    """What a job would do. None where the job has to find it."""

    spec_digest: str
    model_id: str
    model_commit: str
    architecture: str
    blocks: int
    parameters: int
    blocks_after: int | None = None
    parameters_after: int | None = None
    prunable_parameters: int
    zeros_after: int | None = None
    bytes_before: int
    bytes_after: int | None = None
    layers: list[PlannedLayer]
    devices: int = 1
    peak_memory_bytes: int
    mapped_memory_bytes: int = 0
    least_memory_bytes: int | None = None
    elapsed_s: float
    price: Price | None = None
    runtimes: list[Runtime]
    texts: list[PlannedText] = Field(default_factory=list)
    warnings: list[str]

"""Requests and responses of the job endpoints, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from app.jobs.repository import TOTAL_MOST
from app.jobs.views import JOB_ID
from app.publications.request import PublishList
from app.publications.schemas import PublicationRead
from workers.engine.report import Plan, Verdict
from workers.engine.spec import CompressionSpec

JobStatus = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]

# No control characters: PostgreSQL cannot store NUL, and the others only ever come from a mistake.
LabelKey = Annotated[str, Field(pattern=r"^[a-z0-9._/-]{1,40}$")]
LabelValue = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{0,200}$")]
MAX_LABELS = 50

SPEC_EXAMPLE = CompressionSpec.model_config["json_schema_extra"]["examples"][0]  # type: ignore[index]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Scheduling(Request):
    """How jobs are found and run."""

    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="Free key-value pairs to find the job by."
    )
    priority: int = Field(
        0,
        ge=-100,
        le=100,
        description="Of your tenant's jobs, higher ones run first. More than 0 needs the scope `jobs:priority`.",
    )
    max_attempts: int | None = Field(
        None, ge=1, le=10, description="At most, and by default, what the service is configured for."
    )
    deadline_s: int | None = Field(
        None,
        ge=1,
        le=604_800,
        description="Seconds from the first start to a failure with `timeout`, waits between attempts included. "
        "At most, and by default, what the service is configured for.",
    )


Days = Annotated[int, Field(ge=0, le=36_500)]


class Retention(Request):
    """How much stays of a job's result: all, or from some days after its end on only the report: the manifest, the
    report, its page and the model card."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"keep": "report", "days": 30}]})

    keep: Literal["all", "report"]
    days: Days = Field(0, description="Days after the job's end from when on that counts; everything stays until then.")

    @model_validator(mode="after")
    def _days_have_an_effect(self) -> Retention:
        if self.keep == "all" and self.days:
            raise PydanticCustomError("days_without_effect", "`all` stays for good: leave `days` out, or keep `report`")
        return self


class JobSubmit(Scheduling):
    """A job to run."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"spec": SPEC_EXAMPLE, "labels": {"team": "search"}, "priority": 10}]}
    )

    spec: CompressionSpec
    publish: PublishList = Field(default_factory=list)
    retention: Retention | None = Field(
        None, description="What stays of its result. Default: as the tenant has it, else all."
    )


class JobPatch(Request):
    """Changes to a job; what is left out stays as it is."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"labels": {"team": "search", "experiment": None}, "pinned": True}]}
    )

    labels: dict[LabelKey, LabelValue | None] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="null removes a label; others are kept."
    )
    pinned: bool | None = Field(None, description="true: no policy and no bound of the service removes its files.")


class Read(BaseModel):
    """Base of what is only ever sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_serialization_defaults_required=True)


class Progress(Read):
    """How far the present stage is."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)  # `loss` is there while tuning

    stage: str
    done: int
    total: int
    unit: str
    rate: float | None = Field(description="Units per second; null until it is known.")
    eta_s: float | None = Field(description="Seconds to the end of the stage; null until it is known.")
    loss: float | None = Field(None, description="While tuning: the last step's training loss, in nats a token.")


class Queue(Read):
    position: int | None = Field(
        description="Place among your tenant's queued jobs, 1 is next at your turn; null beyond the first 1000. Waits "
        "before a retry are not counted in."
    )
    waiting_for: str | None = Field(
        description="What no live worker has, where none can take the job; null otherwise.",
        examples=["no live worker has 4 GPUs; the largest has 2", "no live worker has the method owl"],
    )


class JobFailure(Read):
    """Why an attempt failed."""

    code: str = Field(description="Stable: what clients switch on.", examples=["cuda_oom"])
    message: str
    hint: str = Field(description="What to change, or what happens next.")
    retryable: bool
    stage: str | None
    field: str | None = Field(description="JSON pointer into the spec, where the cause lies there.")
    attempt: int


class MetricSummary(Read):
    dense: float
    pruned: float
    ratio: float | None
    unit: str


class Durations(Read):
    queued_s: float | None = Field(description="From submission to the first start.")
    running_s: float | None = Field(description="From the first start to the end; null until then.")
    device_s: float = Field(description="Time of the attempts that have ended, times the devices that each held.")


class Price(Read):
    amount: str = Field(description="Decimal.", examples=["0.0125"])
    currency: str = Field(examples=["EUR"])


class PlanRead(Plan):
    """The plan of a job, predicted from the model's config and safetensors headers. Nothing is run."""

    price: Price | None = Field(
        description="Of the predicted run time, by the service's price of a second; null where it has none, where the "
        "job takes several devices, and where a worker with GPUs is alive, which would take another time."
    )


class FilesRemoved(Read):
    """Files that are gone; the report stays."""

    at: AwareDatetime
    because: Literal["report", "front", "limit"] = Field(
        description="The policy that kept the report only, or the front of its sweep; or the service's bound."
    )


class RetentionRead(Read):
    """How much stays of the result, and for how long."""

    keep: Literal["all", "front", "report"]
    days: int = Field(description="After the job's end from when on that counts.")
    limit_days: int | None = Field(description="The service's bound: then the report stays alone.")
    pinned: bool
    files_until: AwareDatetime | None = Field(description="When all but the report goes, where that is known.")
    removed: FilesRemoved | None


class Links(Read):
    self: str
    events: str
    attempts: str
    logs: str
    artifacts: str
    report: str


class JobRead(Read):
    """A job. The ETag names this document exactly."""

    id: str = Field(examples=[JOB_ID])
    status: JobStatus
    stage: str | None = Field(description="Stage of the present attempt, or of the last one.")
    progress: Progress | None
    queue: Queue | None = Field(description="Of a queued job.")
    attempt: int = Field(
        description="Number of the present or last attempt, 0 before the first: all that were begun, those included "
        "that a stopping worker handed back or a pause ended, and those before a retry."
    )
    max_attempts: int = Field(description="How many may count before a retryable failure is final.")
    attempts_left: int = Field(
        description="How many more may count. One handed back or paused does not; a retry gives all of them anew."
    )
    labels: dict[str, str]
    priority: int
    deadline_s: int
    spec: CompressionSpec = Field(description="The spec with all defaults filled in.")
    spec_digest: str
    metrics: dict[str, MetricSummary] | None = Field(description="The report's measurements by name.")
    verdict: Verdict | None = Field(description="Of the spec's gates; null without gates, and until it has succeeded.")
    error: JobFailure | None = Field(description="Why the last attempt failed.")
    trace_id: str | None = Field(
        description="Of the request's trace, where the service traces (OpenTelemetry). Attempts and stages are in it."
    )
    asked_by: str | None = Field(
        description="Name of the key that submitted it; null of jobs from before this was noted.", examples=["ci"]
    )
    publications: list[PublicationRead] = Field(description="Places that the result is brought to, oldest first.")
    created_at: AwareDatetime
    updated_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    durations: Durations
    price: Price | None = Field(
        description="Of that device time, by the prices at the start of each attempt; null where the service has none."
    )
    stored_bytes: int = Field(description="Of the files of its result, equal ones of other jobs counted in.")
    retention: RetentionRead
    links: Links


class JobPage(Read):
    data: list[JobRead]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page, with the same filters.")
    has_more: bool
    total: int | None = Field(
        description=f"With `count=true`: how many jobs pass the filters, on all pages; {TOTAL_MOST} is that many or "
        "more. Else null."
    )


class EventRead(Read):
    """Something that happened to a job."""

    seq: int = Field(description="1, 2, 3, … without gaps; the id of the server-sent event.")
    type: str = Field(description="A status of the job, or what its process reported.", examples=["checkpoint"])
    attempt: int
    data: dict[str, JsonValue]
    at: AwareDatetime


class EventPage(Read):
    data: list[EventRead]
    last_seq: int = Field(description="Give it as `after` for what comes next.")
    has_more: bool


class AttemptRead(Read):
    """One try at a job by one worker."""

    number: int
    worker: str
    outcome: str = Field(
        description="running, succeeded, failed, cancelled, lost (its worker fell silent), released (its worker was "
        "stopped and handed the job back) or paused; the last two do not count."
    )
    error: JobFailure | None
    started_at: AwareDatetime
    finished_at: AwareDatetime | None


class AttemptList(Read):
    data: list[AttemptRead]


class ArtifactRead(Read):
    """A file of the result."""

    path: str = Field(examples=["model.safetensors"])
    bytes: int
    sha256: str
    media_type: str
    url: str


class RemovedArtifacts(FilesRemoved):
    paths: list[str]
    bytes: int


class ArtifactList(Read):
    data: list[ArtifactRead]
    removed: RemovedArtifacts | None = Field(description="Files that a retention policy has removed.")

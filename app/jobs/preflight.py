"""Whether a spec can work at all, asked before a job is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.errors import AppError, InvalidRequest, NotReady
from app.http.field_problems import field_error
from app.jobs.local_models import local_model
from app.jobs.needs import Live, Needs, methods_of, queue_of, waiting_for
from app.jobs.schemas import PlanRead, Price, Scheduling
from app.prices import money, parsed
from app.settings import Settings
from workers.engine.errors import EngineError
from workers.engine.report import Plan
from workers.engine.spec import CompressionSpec

if TYPE_CHECKING:
    from workers.engine.sources.resolve import Sources


def dry_run(spec: CompressionSpec, settings: Settings, workers: Sequence[Live]) -> PlanRead:
    """The plan of a job, with a warning if no live worker could take it, and its price.

    Raises InvalidRequest or, if the hub does not answer, NotReady.
    """
    from workers.engine.planning.plan import plan  # brings the hub's client along: 0.2 s, not spent at start-up

    try:
        planned = plan(spec, sources(settings))
    except EngineError as error:
        raise _refusal(error) from error
    methods = methods_of(spec.model_dump(mode="json"))
    needs = Needs(queue_of(spec), spec.compute.devices, methods, planned.least_memory_bytes)
    lack = waiting_for(workers, needs)
    found = dict(planned) | {
        "warnings": [*planned.warnings, *([] if lack is None else [f"the job would wait: {lack}"])]
    }
    return PlanRead(**found, price=_price(spec, planned, settings, workers))


def _price(spec: CompressionSpec, planned: Plan, settings: Settings, workers: Sequence[Live]) -> Price | None:
    """Of the predicted run time, to two digits. None where that is not predicted, as of GPUs and of several devices,
    and where there is no price."""
    rate = parsed(settings.prices).get("cpu")
    on_cpu = queue_of(spec) == "any" and {worker.kind for worker in workers} == {"cpu"}
    if rate is None or not on_cpu or spec.compute.devices > 1:
        return None
    amount = money(int(float(f"{rate * planned.elapsed_s:.1e}")), settings.currency)
    return Price(amount=amount.amount, currency=amount.currency)


def check(spec: CompressionSpec, settings: Settings) -> int | None:
    """Refuse at the door what the files here already show to be impossible: InvalidRequest. Returns the memory
    that a worker must have for the job, bytes, where these files tell.

    Asks no hub, so a submission costs milliseconds: a spec that names hub models or data sets is checked by its job.
    So is any spec where the API does not share the workers' folders.
    """
    from workers.engine.planning.plan import feasible
    from workers.engine.planning.predictions import least_memory_bytes

    local = spec.model.local and all(ref.local for ref in spec.texts().values())
    if not (local and settings.models_dir.is_dir() and settings.data_dir.is_dir()):
        return None
    found = sources(settings)
    try:
        prospect = feasible(spec, local_model(spec.model, found), found)
        return least_memory_bytes(spec, prospect.source, prospect.architecture)
    except EngineError as error:
        raise _refusal(error) from error


def limits(submit: Scheduling, settings: Settings, keep_days: int | None = None) -> tuple[int, int]:
    """(max_attempts, deadline_s): the asked for, if the service allows that much. `keep_days` are checked too."""
    errors = [
        field_error(f"/{name}", "over_limit", f"this service allows at most {most}")
        for name, asked, most in (
            ("max_attempts", submit.max_attempts, settings.max_attempts),
            ("deadline_s", submit.deadline_s, settings.deadline_s),
            ("retention/days", keep_days, settings.keep_days),
        )
        if asked is not None and most is not None and asked > most
    ]
    if errors:
        raise InvalidRequest(f"{errors[0]['pointer']}: {errors[0]['detail']}.", errors=errors)
    return submit.max_attempts or settings.max_attempts, submit.deadline_s or settings.deadline_s


def sources(settings: Settings) -> Sources:
    from workers.engine.sources.resolve import Sources

    return Sources(models_dir=settings.models_dir, data_dir=settings.data_dir)


def _refusal(error: EngineError) -> AppError:
    detail = f"{error.message}: {error.hint}"
    if error.retryable:
        return NotReady(detail, code=error.code, retryable=True, headers={"Retry-After": "30"})
    return InvalidRequest(
        detail, code=error.code, errors=[field_error(f"/spec{error.field or ''}", error.code, detail)]
    )

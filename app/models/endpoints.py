"""GET /v1/models: what there is to compress, and what jobs have made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from app.access import Reader
from app.errors import NotFound
from app.http.pagination import decode_cursor, encode_cursor, next_link
from app.http.private import private_json
from app.http.problems import responses
from app.http.queries import WholeNumber
from app.http.route import StrictRoute
from app.ids import is_id
from app.jobs.parameters import Cursor
from app.jobs.preflight import sources
from app.models import catalogue, results
from app.models.schemas import ModelPage, ModelRead
from app.services import Services, ServicesDep

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=StrictRoute)

ModelId = Annotated[str, Path(max_length=96, examples=["bookworm-7m"], description="As the list gives it.")]


@router.get("", operation_id="models_list", response_model=ModelPage, responses=responses(400, 422))
def list_models(
    request: Request,
    principal: Reader,
    has: ServicesDep,
    source: Annotated[
        Literal["local", "job"],
        Query(
            description="`local`: folders of the models directory, by name; `job`: results of your jobs, newest first."
        ),
    ] = "local",
    limit: Annotated[WholeNumber, Query(ge=1, le=50, description="Most entries of one page.")] = 20,
    cursor: Cursor = None,
) -> Response:
    """Models, with what each is and which methods fit it. Models of the hub are not listed: a dry run looks at one."""
    binding = f"{principal.tenant_id} models {source}"
    behind = None if cursor is None else decode_cursor(has.secret, binding, cursor)
    position: tuple[int | str, ...]
    if source == "local":
        found = [name for name in catalogue.names(has.settings.models_dir) if behind is None or name > str(behind[0])]
        shown, has_more = found[:limit], len(found) > limit
        data = [_without_abilities(catalogue.described(name, sources(has.settings))) for name in shown]
        position = (shown[-1],) if shown else ()
    else:
        with has.database.read() as session:
            made = results.page(session, principal.tenant_id, behind=behind, limit=limit + 1)
        made, has_more = made[:limit], len(made) > limit
        data = [results.described(result, has.store) for result in made]
        position = (made[-1].created_at, made[-1].job_id) if made else ()
    next_cursor = encode_cursor(has.secret, binding, *position) if has_more else None
    page = {"data": data, "next_cursor": next_cursor, "has_more": has_more}
    return private_json(page, headers=next_link(request, next_cursor))


@router.get("/{model_id}", operation_id="models_get", response_model=ModelRead, responses=responses(404))
def get(model_id: ModelId, principal: Reader, has: ServicesDep) -> Response:
    """A model with the planner's answer for each pruner and grower: what fits it, and why others do not."""
    found = _result(model_id, principal.tenant_id, has) if is_id("job", model_id) else _local(model_id, has)
    return private_json(found)


def _local(name: str, has: Services) -> dict[str, Any]:
    if not catalogue.may_name(name) or not (has.settings.models_dir / name).is_dir():
        raise NotFound("There is no such model in the models directory: the list has those that are there.")
    return catalogue.described(name, sources(has.settings))


def _result(job_id: str, tenant_id: str, has: Services) -> dict[str, Any]:
    with has.database.read() as session:
        result = results.of_job(session, tenant_id, job_id)
    if result is None:
        raise NotFound("There is no such result: check the id, and that the job has succeeded.")
    return {**results.described(result, has.store), "abilities": []}


def _without_abilities(model: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name != "abilities"}

"""From a sweep to the specs of its children: the grid multiplied out, each change put into the base spec, validated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from app.errors import InvalidRequest
from app.http.field_problems import MOST_ERRORS, field_error, field_problem
from app.sweeps.pareto import SPARSITY
from app.sweeps.schemas import MAX_CHILDREN, SWEEP_LABEL, SweepSubmit
from workers.engine.gates import measured_names
from workers.engine.spec import CompressionSpec

T = TypeVar("T")
MOST_CHILDREN = 10
"""No further children are made once so many are wrong."""


@dataclass(frozen=True)
class Child:
    number: int
    values: dict[str, Any]
    """Pointer -> value."""
    spec: CompressionSpec


def children(submit: SweepSubmit) -> list[Child]:
    """The children, in their order. Raises InvalidRequest, which names the children and the fields."""
    changes = _changes(submit)
    where = "/grid" if submit.list_ is None else "/list"
    specs = checked(range(len(changes)), lambda number: _spec(submit.spec, changes[number]))
    found = [Child(number, values, spec) for number, (values, spec) in enumerate(zip(changes, specs, strict=True))]
    _check_distinct(found, where)
    _check_stop(submit, found)
    _check_axes(submit, found)
    if SWEEP_LABEL in submit.labels:
        pointer, detail = f"/labels/{SWEEP_LABEL}", "the service sets this label: leave it out"
        raise InvalidRequest(f"{pointer}: {detail}.", errors=[field_error(pointer, "reserved_label", detail)])
    return found


def parameters(found: Sequence[Child]) -> list[str]:
    """JSON pointers of the parameters in which the children differ."""
    return list(dict.fromkeys(pointer for child in found for pointer in child.values))


def checked(numbers: Sequence[int], make: Callable[[int], T]) -> list[T]:
    """The value of `make` for each child. Their errors are raised as one, in which each mistake names its children.

    Stops once MOST_CHILDREN are wrong, or MOST_ERRORS mistakes are found.
    """
    made: list[T] = []
    errors: dict[bytes, dict[str, Any]] = {}
    wrong, looked_at, more_errors = 0, 0, 0
    codes = set()
    for number in numbers:
        looked_at += 1
        try:
            made.append(make(number))
        except InvalidRequest as refusal:
            wrong += 1
            codes.add(refusal.code)
            more_errors += refusal.extra.get("more_errors") or 0
            for error in refusal.extra["errors"]:
                errors.setdefault(orjson.dumps(error), {**error, "children": []})["children"].append(number)
            if wrong == MOST_CHILDREN or len(errors) >= MOST_ERRORS:
                break
    if errors:
        found = list(errors.values())
        more_errors += max(len(found) - MOST_ERRORS, 0)
        not_checked = len(numbers) - looked_at
        first, more = found[0], len(found) - 1 + more_errors
        which = ", ".join(map(str, first["children"][:5])) + ("…" if len(first["children"]) > 5 else "")
        raise InvalidRequest(
            f"child {which}: {first['pointer']}: {first['detail']}."
            + (f" ({more} more in `errors`.)" if more else "")
            + (f" {not_checked} more children were not looked at." if not_checked else ""),
            code=codes.pop() if len(codes) == 1 else None,
            errors=found[:MOST_ERRORS],
            more_errors=more_errors or None,
            children_not_checked=not_checked or None,
        )
    return made


def _changes(submit: SweepSubmit) -> list[dict[str, Any]]:
    if submit.list_ is not None:
        return [dict(changes) for changes in submit.list_]
    assert submit.grid is not None  # one of the two, as the schema says
    size = math.prod(len(values) for values in submit.grid.values())
    if size > MAX_CHILDREN:
        detail = f"these are {size} children, and a sweep has at most {MAX_CHILDREN}: leave values out"
        raise InvalidRequest(f"/grid: {detail}.", errors=[field_error("/grid", "too_many_children", detail)])
    return [dict(zip(submit.grid, values, strict=True)) for values in itertools.product(*submit.grid.values())]


def _spec(base: dict[str, Any], changes: dict[str, Any]) -> CompressionSpec:
    spec: Any = base
    for pointer in sorted(changes, key=lambda pointer: pointer.count("/")):  # /score before /score/method
        path = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
        spec = _with(spec, path, changes[pointer])
    try:
        return CompressionSpec.model_validate(spec)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        found = [field_problem({**e, "loc": ("body", "spec", *e["loc"])}) for e in mistakes[:MOST_ERRORS]]
        more = max(len(mistakes) - MOST_ERRORS, 0) or None
        raise InvalidRequest(found[0]["detail"], errors=found, more_errors=more) from None


def _with(node: Any, path: Sequence[str], value: Any) -> Any:
    """`node` with `value` at `path`, sharing all else. Objects that are missing on the way are made.

    Where the way leads through something else the value is put in its place, for the spec's validation to refuse.
    """
    if not path:
        return value
    head, *rest = path
    if isinstance(node, list) and head.isdecimal() and int(head) < len(node):
        return [_with(item, rest, value) if index == int(head) else item for index, item in enumerate(node)]
    known = node if isinstance(node, dict) else {}
    return {**known, head: _with(known.get(head), rest, value)}


def _check_distinct(found: Sequence[Child], where: str) -> None:
    seen: dict[str, int] = {}
    for child in found:
        if (twin := seen.setdefault(child.spec.digest(), child.number)) != child.number:
            detail = "these children have the same spec: leave one out"
            error = {**field_error(where, "duplicate_child", detail), "children": [twin, child.number]}
            raise InvalidRequest(f"child {twin} and {child.number}: {detail}.", errors=[error])


def _check_stop(submit: SweepSubmit, found: Sequence[Child]) -> None:
    pointer = submit.stop.ascending if submit.stop else None
    if pointer is None:
        return
    detail = None
    if any(isinstance(v := child.values.get(pointer), bool) or not isinstance(v, int | float) for child in found):
        detail = "this must be a pointer to numbers that every child gives"
    elif not all(child.spec.gates for child in found):
        detail = "this stops at verdicts: give every child `gates`"
    if detail:
        where = "/stop/ascending"
        raise InvalidRequest(f"{where}: {detail}.", errors=[field_error(where, "cannot_stop", detail)])


def _check_axes(submit: SweepSubmit, found: Sequence[Child]) -> None:
    """Every child measures the axes of the front that is kept."""
    for name in ("quality", "cost"):
        axis = getattr(submit.retention, name, None)
        names = [[*measured_names(child.spec.evaluate), SPARSITY] for child in found]
        if axis is None or all(any(_is(axis, each) for each in of_child) for of_child in names):
            continue
        where, known = f"/retention/{name}", sorted(set.intersection(*map(set, names)))
        detail = f"not every child measures this: choose one of {', '.join(known)}"
        raise InvalidRequest(f"{where}: {detail}.", errors=[field_error(where, "not_measured", detail, known)])


def _is(axis: str, name: str) -> bool:
    """`name` may be a prefix, as `measured_names` has them."""
    return axis.startswith(name) if name.endswith("/") else axis == name

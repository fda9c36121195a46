"""Where specs differ, field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from app.compare.schemas import SpecDifference, SpecValue
from workers.engine.spec import CompressionSpec

ABSENT = SpecValue(absent=True, value=None)
_ORDER = {name: place for place, name in enumerate(CompressionSpec.model_fields)}


def differences(specs: Sequence[dict[str, Any]]) -> list[SpecDifference]:
    """The fields that are not the same in all specs, in the order of the stages."""
    leaves = [dict(_leaves(spec)) for spec in specs]
    given = [_given(spec) for spec in specs]
    paths = sorted(dict.fromkeys(path for each in leaves for path in each), key=_place)
    # What is null in one spec and an object in another differs in the object's fields.
    objects = {parent for path in paths for parent in _parents(path)}
    return [
        SpecDifference(
            path=path,
            only_defaults=any(path not in each for each in leaves) and not any(path in each for each in given),
            values=[SpecValue(absent=False, value=each[path]) if path in each else ABSENT for each in leaves],
        )
        for path in paths
        if path not in objects and len({_text(each, path) for each in leaves}) > 1
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of all that is neither object nor list. An empty one has none."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _given(spec: dict[str, Any]) -> set[str]:
    """Paths of what is not at its default, methods included."""
    try:
        sparse = CompressionSpec.model_validate(spec).model_dump(mode="json", exclude_defaults=True)
    except ValidationError:  # of another version
        sparse = spec
    return {path for path, _ in _leaves(sparse)} | {path for path, _ in _leaves(spec) if path.endswith("method")}


def _place(path: str) -> int:
    return _ORDER.get(path.partition(".")[0], len(_ORDER))


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition(".")[0]:
        yield path


def _text(leaves: Mapping[str, Any], path: str) -> bytes | None:
    return orjson.dumps(leaves[path]) if path in leaves else None

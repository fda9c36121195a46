"""Places that a request may publish to: one of the publishers' parameters, told apart by `to`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, TypeAdapter

from app.publications.contract import Params
from app.publications.registry import publishers

if TYPE_CHECKING:
    Publish = Params
else:
    _kinds = tuple(each.params for each in publishers().values())
    Publish = Annotated[Union[_kinds], Field(discriminator="to")] if len(_kinds) > 1 else _kinds[0]  # noqa: UP007

MOST = 10
"""Publications that a job is submitted with."""
PublishList = Annotated[
    list[Publish],
    Field(max_length=MOST, description="Where the result is published once the gates have passed."),
]
_publish: TypeAdapter[Params] = TypeAdapter(Publish)


def read(document: dict[str, Any]) -> Params:
    """As it was stored."""
    return _publish.validate_python(document)

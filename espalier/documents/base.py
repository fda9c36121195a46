"""The base of what the service answers with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from espalier.errors import UnexpectedAnswer

Entry = TypeVar("Entry")


class Document(BaseModel):
    """A JSON document of the service. Fields that this version does not know are kept: `document.new_field` works. What
    may be null is None where an older service does not send it."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    _raw: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def raw(self) -> dict[str, Any]:
        """The document as the service sent it."""
        return self._raw

    @classmethod
    def read(cls, raw: Any) -> Self:
        """The document in an answer. Raises UnexpectedAnswer where that is not such a document."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise UnexpectedAnswer(f"not a {cls.__name__}: {error}") from error

    def take(self, raw: Any) -> Self:
        """Become what a later answer says."""
        fresh = self.read(raw)
        for name in type(fresh).model_fields:
            setattr(self, name, getattr(fresh, name))
        # Not one by one: what a newer service adds may be called as a method is.
        self.__pydantic_extra__ = fresh.__pydantic_extra__
        self._raw = fresh._raw
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        made = handler(value)
        made._raw = value if isinstance(value, dict) else {}
        return made


@dataclass(frozen=True)
class Page(Generic[Entry]):
    """A part of a list."""

    data: list[Entry]
    next_cursor: str | None
    """Names the page behind this one; None on the last."""
    total: int | None
    """Entries of all pages, where that was asked for."""
    raw: dict[str, Any]
    """The page as the service sent it."""

    @classmethod
    def of(cls, raw: Any, read: Callable[[Any], Entry]) -> Page[Entry]:
        """The page in an answer. Raises UnexpectedAnswer where that is no list."""
        if not isinstance(raw, dict) or not isinstance(raw.get("data"), list):
            raise UnexpectedAnswer("not a list of the service's: it has no `data`")
        return cls([read(each) for each in raw["data"]], raw.get("next_cursor"), raw.get("total"), raw)

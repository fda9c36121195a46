"""The base of what has an id and is asked for over a connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import PrivateAttr

from espalier.aio.connection import AsyncConnection
from espalier.documents.base import Document


class AsyncReference(Document):
    """A job or a sweep by its id. Nothing is asked before a method is called; those that return it ask for it."""

    id: str
    _connection: AsyncConnection = PrivateAttr()

    @classmethod
    def of(cls, connection: AsyncConnection, raw: Mapping[str, Any]) -> Self:
        """The one in an answer of the service."""
        made = cls.read(raw)
        made._connection = connection
        return made

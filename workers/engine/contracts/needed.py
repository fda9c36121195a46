"""Values that exist only where something declares or checks that it needs them. Import-light."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


class NotProvided(RuntimeError):
    """A value is read that nothing asked for: a fault of the code, e.g. a method whose `needs` lack it."""


def needed(value: T | None, name: str) -> T:
    """`value`. Raises NotProvided, with its `name`, if it is None."""
    if value is None:
        raise NotProvided(f"{name} is not there: declare it in `needs`, or check the spec before it is read")
    return value

"""Parts of espalier that the base install leaves out, and the commands that need them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal, ParamSpec, TypeVar

from app.cli.exits import Usage
from workers.engine import DISTRIBUTION

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Extra = Literal["api", "worker", "verify"]

BRINGS: dict[Extra, tuple[str, ...]] = {
    "api": ("pydantic_settings", "fastapi", "sqlalchemy", "alembic", "celery", "obstore"),
    "worker": ("fastapi", "sqlalchemy", "celery", "torch", "transformers"),
    "verify": ("cryptography", "structlog"),
}
"""Extra -> modules by which it is told whether it is installed."""


def needs(extra: Extra) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Of a command: it says how to install the extra, where that is missing. Its heavy imports are within it."""

    def wrap(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(command)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            require(extra)
            return command(*args, **kwargs)

        return run

    return wrap


def has(extra: Extra) -> bool:
    """Whether the extra is installed."""
    return not _missing(extra)


def require(extra: Extra) -> None:
    """Raises Usage where the extra is not installed."""
    if missing := _missing(extra):
        raise Usage(
            f"this needs {', '.join(missing)}, which the extra [{extra}] brings: "
            f"pip install '{DISTRIBUTION}[{extra}]' (from a wheel: pip install 'WHEEL[{extra}]')"
        )


def _missing(extra: Extra) -> list[str]:
    return [module for module in BRINGS[extra] if find_spec(module) is None]

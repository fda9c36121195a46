"""Layouts: one table a file, each found by its being here. Import-light."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from workers.engine.architectures.architecture import Layout


@cache
def layouts() -> tuple[Layout, ...]:
    """The `LAYOUT` of every file in this folder, by the files' names."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}").LAYOUT for name in names)

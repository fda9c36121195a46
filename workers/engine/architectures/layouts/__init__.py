"""Layouts: one table a file, each found by its being here. Import-light."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from workers.engine.architectures.architecture import Layout


@cache
def layouts() -> tuple[Layout, ...]:
    """The `LAYOUT` of every file in this folder. Those made of fewer parts come first: a model of several counts as one
    of the first."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}").LAYOUT for name in names]
    return tuple(sorted(found, key=lambda layout: len(layout.parts)))

"""Figures of a report's page that are laid out and not drawn, once for everything alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import pytest
from pydantic import BaseModel

from workers.engine.reporting import figures, page

NAMES = ("loss_figure", "metrics_figure", "sparsity_figure", "stages_figure", "widths_figure")
EXACT = 100
"""Whole numbers below count blocks, steps and sizes: what a figure looks up."""
_laid_out: dict[object, str] = {}


def lay_out(patch: pytest.MonkeyPatch) -> None:
    """Drawing takes as long as a job of a small model, and laying out half as long. Figures of the same parts whose
    numbers alone differ are laid out alike."""
    patch.setattr(figures, "_svg", lambda figure, label: f'<svg role="img" aria-label="{label}"></svg>')
    for name in NAMES:
        patch.setattr(page, name, _once(getattr(figures, name)))


def _once(figure: Callable[..., str]) -> Callable[..., str]:
    @wraps(figure)
    def found(*arguments: Any) -> str:
        key = (figure.__name__, *map(_parts, arguments))
        if key not in _laid_out:
            _laid_out[key] = figure(*arguments)
        return _laid_out[key]

    return found


def _parts(value: Any) -> object:
    """The argument without the values of its numbers."""
    match value:
        case BaseModel():
            return tuple((name, _parts(entry)) for name, entry in value)
        case Mapping():
            return tuple((name, _parts(entry)) for name, entry in value.items())
        case list() | tuple():
            return tuple(map(_parts, value))
        case bool() | str() | None:
            return value
        case int() if abs(value) < EXACT:
            return value
        case int() | float():
            return (math.isfinite(value), (value > 0) - (value < 0))
    raise TypeError(f"{type(value).__name__} is in no report")

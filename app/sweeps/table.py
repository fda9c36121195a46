"""A sweep as a table: a row for each child, with what it varies and what it measured."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from app.sweeps.repository import ChildRow
from workers.engine.reporting.short import no_formula

SIDES = ("dense", "pruned", "ratio")


def as_csv(parameters: Sequence[str], children: Sequence[ChildRow]) -> str:
    """RFC 4180, with a head. A metric has a column for each of SIDES; what is not known or not varied is empty."""
    metrics = list(dict.fromkeys(name for child in children for name in child.metrics or {}))
    text = io.StringIO()
    rows = csv.writer(text)
    sides = [f"{name} {side}" for name in metrics for side in SIDES]
    rows.writerow(["number", *parameters, "job_id", "status", "verdict", *sides])
    for child in children:
        known = child.metrics or {}
        measured = [known.get(name, {}).get(side) for name in metrics for side in SIDES]
        values = [_text(child.values[name]) if name in child.values else None for name in parameters]
        line = [child.number, *values, child.job_id, child.status or "deleted", child.verdict, *measured]
        rows.writerow(map(no_formula, line))
    return text.getvalue()


def _text(value: Any) -> Any:
    """Objects, lists and truth values as JSON; numbers and text as they are."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) or value is None else value

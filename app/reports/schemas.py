"""The report as OpenAPI shows it."""

from __future__ import annotations

from workers.engine import report
from workers.engine.spec import CompressionSpec


class Report(report.Report):
    __doc__ = report.Report.__doc__

    spec: CompressionSpec  # type: ignore[assignment]  # the engine writes it as JSON

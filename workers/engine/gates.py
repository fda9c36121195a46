"""Gates: bounds on measurements, judged with their standard errors. They say whether to ship. Import-light."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.params import MethodParams
from workers.engine.contracts.refs import SpecModel
from workers.engine.maths.standard_errors import half_width
from workers.engine.report import GateResult, Metric, Verdict


class Gate(SpecModel):
    """A bound that a measurement must keep."""

    metric: str = Field(
        pattern=r"^[^\x00-\x1f\x7f]{1,300}$",
        description="Name of a measurement, as the report's `metrics` give it.",
        examples=["perplexity/heldout.txt"],
    )
    of: Literal["ratio", "difference", "pruned"] = Field(
        "ratio", description="What is bounded: pruned / dense, pruned - dense, or the pruned model's value."
    )
    min: float | None = Field(None, description="The least allowed, itself included.")
    max: float | None = Field(None, description="The most allowed, itself included.", examples=[1.1])
    confidence: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Two-sided: how sure a verdict must be. The verdict is `inconclusive` where the interval "
        "that holds the true value so surely holds the bound too.",
    )

    @model_validator(mode="after")
    def _some_interval(self) -> Gate:
        if self.min is None and self.max is None:
            raise PydanticCustomError("bound_required", "say what is allowed: `min`, `max` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise PydanticCustomError("empty_bounds", "`min` is above `max`: nothing could pass")
        return self


def measured_names(evaluations: Sequence[MethodParams]) -> list[str]:
    """Names of the metrics of these evaluations, `name#2` for a repetition; one that ends in `/` is a prefix."""
    seen: Counter[str] = Counter()
    names = []
    for params in evaluations:
        for name in params.measures:
            seen[name] += 1
            names.append(name if seen[name] == 1 or name.endswith("/") else f"{name}#{seen[name]}")
    return names


def judge(gates: Sequence[Gate], metrics: Sequence[Metric]) -> list[GateResult]:
    """Each gate's verdict, in their order.

    The interval is value ± q * standard error, q the two-sided quantile for the gate's confidence: of Student's t with
    the metric's degrees of freedom, or of the normal distribution where it has none. `pass` if all of it keeps the
    bounds, `fail` if none of it does, else `inconclusive`. A value without a standard error is judged as it is where
    it is exact. Where samples made it, it is `inconclusive`, as is what was not measured, and a ratio to a dense value
    of zero.
    """
    by_name = {metric.name: metric for metric in metrics}
    return [_judged(gate, by_name) for gate in gates]


def overall(results: Sequence[GateResult]) -> Verdict | None:
    """The worst verdict; None without gates."""
    found = {result.verdict for result in results}
    return next((verdict for verdict in ("fail", "inconclusive", "pass") if verdict in found), None)


def _judged(gate: Gate, metrics: dict[str, Metric]) -> GateResult:
    metric = metrics.get(gate.metric)
    if metric is None:
        names = ", ".join(metrics) or "nothing"
        return _result(gate, None, None, "inconclusive", f"not measured; what was measured: {names}")
    value, stderr = _value(gate, metric)
    if value is None:
        return _result(gate, None, None, "inconclusive", "the dense value is zero, so there is no ratio to it")
    if stderr is None and metric.interval_over is not None:
        reason = (
            "nothing says how far off it is: it is of one sample, or of a metric that has no error: measure on more"
        )
        return _result(gate, value, None, "inconclusive", reason)
    margin = half_width(stderr, _freedom(gate, metric), gate.confidence) if stderr else 0.0
    low, high = value - margin, value + margin
    least, most = (-math.inf if gate.min is None else gate.min), (math.inf if gate.max is None else gate.max)
    verdict: Verdict
    if least <= low and high <= most:
        verdict, reason = "pass", "within the bounds"
    elif high < least or low > most:
        verdict, reason = "fail", "above the bound" if low > most else "below the bound"
    else:
        verdict = "inconclusive"
        reason = "a bound lies within the interval: measure on more text, or move the bound"
    if stderr is None:
        reason += "; it has no standard error and was taken as exact"
    elif stderr == 0 and metric.interval_over is not None:
        reason += "; all samples agree, so a rare difference may have been missed"
    elif metric.interval_over == "text":
        reason += "; the interval is about this text alone: it is one document, or where its documents end is not known"
    return _result(gate, value, (low, high), verdict, reason)


def _value(gate: Gate, metric: Metric) -> tuple[float | None, float | None]:
    """(value, standard error) of the bounded metric; None where it has none."""
    match gate.of:
        case "ratio":
            return metric.ratio, metric.ratio_stderr
        case "difference":
            return metric.pruned - metric.dense, metric.difference_stderr
        case "pruned":
            return metric.pruned, metric.pruned_stderr


def _freedom(gate: Gate, metric: Metric) -> float | None:
    return metric.pruned_degrees_of_freedom if gate.of == "pruned" else metric.degrees_of_freedom


def _result(
    gate: Gate, value: float | None, interval: tuple[float, float] | None, verdict: Verdict, reason: str
) -> GateResult:
    return GateResult(**gate.model_dump(), value=value, interval=interval, verdict=verdict, reason=reason)

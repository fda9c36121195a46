"""Quality against cost: which children nothing else beats. Pure; works on the metrics of their reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest
from app.http.problems import field_error
from app.sweeps.repository import ChildRow
from app.sweeps.schemas import Axis, LeftOut, Pareto, ParetoPoint

SPARSITY = "sparsity"
"""The report's own: the fraction of the prunable weights removed. Of every report, and higher is better."""


@dataclass(frozen=True)
class Measured:
    value: float
    stderr: float | None
    unit: str
    higher_is_better: bool | None


def pareto(
    sweep_id: str,
    children: Sequence[ChildRow],
    reports: Mapping[int, tuple[list[dict[str, Any]], float]],
    quality: str | None,
    cost: str | None,
) -> Pareto:
    """The children that have succeeded as points. `reports`: number -> (the report's metrics, its sparsity).

    Values are those of the pruned models. What is better the report's `higher_is_better` says; of a measurement that
    has no direction less is better as a cost, more as a quality. Without `quality` it is the first measurement with a
    direction; without `cost` the first exact one that differs between the children, then the sparsity, then any other.
    Raises InvalidRequest where one is asked for that no child has measured.
    """
    measured = {number: _measured(metrics, sparsity) for number, (metrics, sparsity) in reports.items()}
    common = [name for name in next(iter(measured.values()), {}) if all(name in found for found in measured.values())]
    for parameter, name in (("quality", quality), ("cost", cost)):
        if name is not None and measured and not any(name in found for found in measured.values()):
            detail = f"no child has measured this: choose one of {', '.join(common)}"
            raise InvalidRequest(
                f"?{parameter}: {detail}.", errors=[field_error(f"?{parameter}", "not_measured", detail, common)]
            )
    quality = quality or _default_quality(measured, common)
    cost = cost or _default_cost(measured, common, quality)
    quality_axis = _axis(measured, quality, otherwise=True)
    cost_axis = _axis(measured, cost, otherwise=False)
    points: list[tuple[ChildRow, Measured, Measured]] = []
    left_out: list[LeftOut] = []
    for child in children:
        found = measured.get(child.number)
        if found is None:
            left_out.append(LeftOut(number=child.number, reason=_why_not(child)))
            continue
        assert quality is not None  # there is always the sparsity
        assert cost is not None
        if missing := [name for name in (quality, cost) if name not in found]:
            left_out.append(LeftOut(number=child.number, reason=f"did not measure {' and '.join(missing)}"))
        else:
            points.append((child, found[quality], found[cost]))
    goals = [(_goal(q.value, quality_axis), _goal(c.value, cost_axis)) for _, q, c in points]
    return Pareto(
        sweep_id=sweep_id,
        quality=quality_axis,
        cost=cost_axis,
        points=[
            ParetoPoint(
                number=child.number,
                job_id=str(child.job_id),
                values=child.values,
                quality=q.value,
                cost=c.value,
                quality_stderr=q.stderr,
                cost_stderr=c.stderr,
                verdict=child.verdict,
                on_front=not any(_beats(other, goal) for other in goals),
            )
            for (child, q, c), goal in zip(points, goals, strict=True)
        ],
        left_out=left_out,
        metrics=common,
    )


def _measured(metrics: Sequence[Mapping[str, Any]], sparsity: float) -> dict[str, Measured]:
    found = {
        metric["name"]: Measured(metric["pruned"], metric["pruned_stderr"], metric["unit"], metric["higher_is_better"])
        for metric in metrics
    }
    return found | {SPARSITY: Measured(sparsity, None, "fraction", True)}


def _default_quality(measured: Mapping[int, Mapping[str, Measured]], common: Sequence[str]) -> str | None:
    directed = [name for name in common if _direction(measured, name) is not None]  # the sparsity is the last
    return next(iter(directed), None)


def _default_cost(
    measured: Mapping[int, Mapping[str, Measured]], common: Sequence[str], quality: str | None
) -> str | None:
    directed = [name for name in common if _direction(measured, name) is not None]
    others = [name for name in directed if name != quality] or directed
    differing = [name for name in others if len({found[name].value for found in measured.values()}) > 1]
    exact = [name for name in differing if all(found[name].stderr is None for found in measured.values())]
    return next(iter([*exact, *differing, *others]), None)


def _direction(measured: Mapping[int, Mapping[str, Measured]], name: str) -> bool | None:
    return next(found[name].higher_is_better for found in measured.values() if name in found)


def _axis(measured: Mapping[int, Mapping[str, Measured]], name: str | None, *, otherwise: bool) -> Axis | None:
    known = next((found[name] for found in measured.values() if name in found), None) if name else None
    if name is None or known is None:
        return None
    higher = otherwise if known.higher_is_better is None else known.higher_is_better
    return Axis(metric=name, unit=known.unit, higher_is_better=higher)


def _goal(value: float, axis: Axis | None) -> float:
    """The value so that more is better."""
    return value if axis is None or axis.higher_is_better else -value


def _beats(other: tuple[float, float], goal: tuple[float, float]) -> bool:
    return other != goal and other[0] >= goal[0] and other[1] >= goal[1]


def _why_not(child: ChildRow) -> str:
    if child.status is None:
        return "its job has been deleted"
    if child.status == "failed" and child.error:
        return f"failed: {child.error['message']} ({child.error['code']})"
    return {"cancelled": "cancelled", "failed": "failed"}.get(child.status, f"{child.status}: not finished yet")

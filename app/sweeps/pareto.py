"""The Pareto front of a sweep: children that no other beats in quality and cost. Works on the metrics of their
reports. A child whose gates fail is a point, but nobody will use it: it is on no front, and beats no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest
from app.http.field_problems import field_error
from app.sweeps.repository import ChildRow, Measured
from app.sweeps.schemas import Axis, LeftOut, Pareto, ParetoPoint
from workers.engine.contracts.params import EDITS
from workers.engine.report import Verdict

SPARSITY = "sparsity"
"""The report's own: the fraction of the prunable weights removed. Of every report, and higher is better."""


FAIL: Verdict = "fail"
ROUNDING = 0.005
"""Counts of weights are rounded in every row, of channels and heads in every block: 60 % of a row of 256 is 59.8 %."""
DECIDING = ("score", "allocate", "train", *EDITS, "refine", "tune")
"""The stages whose methods make one result differ from another."""


@dataclass(frozen=True)
class Value:
    pruned: float
    stderr: float | None
    exact: bool
    """Not sampled. One window of a text has no standard error either, and is not exact."""
    dense: float | None
    unit: str
    higher_is_better: bool | None


def pareto(
    sweep_id: str,
    children: Sequence[ChildRow],
    reports: Mapping[int, Measured],
    quality: str | None,
    cost: str | None,
) -> Pareto:
    """The children that have succeeded as points. `reports`: number -> what the child's report says.

    Values are those of the pruned models. What is better the report's `higher_is_better` says; of a measurement that
    has no direction less is better as a cost, more as a quality. Without `quality` it is the first measurement with a
    direction; without `cost` the first exact one that differs between the children, then the sparsity, then any other;
    both of those whose gates do not fail, where these are several.
    Raises InvalidRequest where one is asked for that no child has measured.
    """
    measured = {number: values(report) for number, report in reports.items()}
    failing = {child.number for child in children if child.verdict == FAIL}
    usable = {number: found for number, found in measured.items() if number not in failing}
    telling = usable if len(usable) > 1 else measured
    _refuse_unmeasured(measured, quality=quality, cost=cost)
    quality = quality or _default_quality(telling, _common(telling))
    cost = cost or _default_cost(telling, _common(telling), quality)
    quality_axis = _axis(measured, quality, otherwise=True)
    cost_axis = _axis(measured, cost, otherwise=False)
    points, left_out = _points(children, measured, quality, cost)
    pairs = [(q.pruned, c.pruned) for child, q, c in points if child.number not in failing]
    front = iter(_front(pairs, quality_axis, cost_axis))
    return Pareto(
        sweep_id=sweep_id,
        quality=quality_axis,
        cost=cost_axis,
        points=[
            ParetoPoint(
                number=child.number,
                job_id=str(child.job_id),
                values=child.values,
                methods=_methods(reports[child.number].spec),
                quality=q.pruned,
                cost=c.pruned,
                quality_stderr=q.stderr,
                cost_stderr=c.stderr,
                verdict=child.verdict,
                on_front=child.number not in failing and next(front),
            )
            for child, q, c in points
        ],
        left_out=left_out,
        metrics=_common(measured),
    )


def _refuse_unmeasured(measured: Mapping[int, Mapping[str, Value]], **asked: str | None) -> None:
    """Raise InvalidRequest for a measurement that is asked for and no child has made."""
    for parameter, name in asked.items():
        if name is not None and measured and not any(name in found for found in measured.values()):
            common = _common(measured)
            detail = f"no child has measured this: choose one of {', '.join(common)}"
            raise InvalidRequest(
                f"?{parameter}: {detail}.", errors=[field_error(f"?{parameter}", "not_measured", detail, common)]
            )


def _points(
    children: Sequence[ChildRow], measured: Mapping[int, Mapping[str, Value]], quality: str | None, cost: str | None
) -> tuple[list[tuple[ChildRow, Value, Value]], list[LeftOut]]:
    """(children with their quality and cost, the others with the reason)."""
    points: list[tuple[ChildRow, Value, Value]] = []
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
    return points, left_out


def values(report: Measured) -> dict[str, Value]:
    """By name, the sparsity last. One that is not finite, which reports hold as null, is none."""
    found = {
        metric["name"]: Value(
            pruned=metric["pruned"],
            stderr=metric["pruned_stderr"],
            exact=metric["pruned_stderr"] is None and metric.get("interval_over") is None,
            dense=metric["dense"],
            unit=metric["unit"],
            higher_is_better=metric["higher_is_better"],
        )
        for metric in report.metrics
        if metric["pruned"] is not None
    }
    return found | {
        SPARSITY: Value(report.sparsity, None, exact=True, dense=None, unit="fraction", higher_is_better=True)
    }


def _common(measured: Mapping[int, Mapping[str, Value]]) -> list[str]:
    """Names of measurements that all have."""
    return [name for name in next(iter(measured.values()), {}) if all(name in found for found in measured.values())]


def _methods(spec: Mapping[str, Any]) -> dict[str, str]:
    return {stage: spec[stage]["method"] for stage in DECIDING if spec.get(stage)}


def _default_quality(measured: Mapping[int, Mapping[str, Value]], common: Sequence[str]) -> str | None:
    directed = [name for name in common if _direction(measured, name) is not None]  # the sparsity is the last
    return next(iter(directed), None)


def _default_cost(
    measured: Mapping[int, Mapping[str, Value]], common: Sequence[str], quality: str | None
) -> str | None:
    directed = [name for name in common if _direction(measured, name) is not None]
    others = [name for name in directed if name != quality] or directed
    differing = [name for name in others if len({found[name].pruned for found in measured.values()}) > 1]
    exact = [name for name in differing if all(found[name].exact for found in measured.values())]
    return next(iter([*exact, *differing, *others]), None)


def _direction(measured: Mapping[int, Mapping[str, Value]], name: str) -> bool | None:
    return next(found[name].higher_is_better for found in measured.values() if name in found)


def _axis(measured: Mapping[int, Mapping[str, Value]], name: str | None, *, otherwise: bool) -> Axis | None:
    known = next((found[name] for found in measured.values() if name in found), None) if name else None
    if name is None or known is None:
        return None
    higher = higher_is_better(known, otherwise=otherwise)
    exact = all(found[name].exact for found in measured.values() if name in found)
    return Axis(
        metric=name,
        unit=known.unit,
        higher_is_better=higher,
        dense=known.dense,
        tolerance=ROUNDING if exact else 0,
    )


def higher_is_better(value: Value, *, otherwise: bool) -> bool:
    return otherwise if value.higher_is_better is None else value.higher_is_better


def _front(pairs: Sequence[tuple[float, float]], quality: Axis | None, cost: Axis | None) -> list[bool]:
    """Whether each (quality, cost) is on the front: from the best of what has no tolerance down, every value that
    improves on the other axis by more than that one's tolerance. Tolerance on both axes would be no order: the cost's
    counts then."""
    if quality is None or cost is None:
        return [True] * len(pairs)
    strict, loose = (1, 0) if quality.tolerance and not cost.tolerance else (0, 1)
    axes = (quality, cost)
    goals = [
        tuple(upward(value, axis.higher_is_better) for value, axis in zip(pair, axes, strict=True)) for pair in pairs
    ]
    kept: list[tuple[float, ...]] = []
    for goal in sorted(set(goals), key=lambda goal: (goal[strict], goal[loose]), reverse=True):
        if not kept or goal[loose] - kept[-1][loose] > _apart(goal[loose], kept[-1][loose], axes[loose]):
            kept.append(goal)
    return [goal in kept for goal in goals]


def _apart(one: float, other: float, axis: Axis) -> float:
    """How far apart two values count as equal."""
    return axis.tolerance * (1 if axis.unit == "fraction" else max(abs(one), abs(other)))


def upward(value: float, higher_is_better: bool) -> float:
    """The value so that more is better."""
    return value if higher_is_better else -value


def _why_not(child: ChildRow) -> str:
    if child.status is None:
        return "its job has been deleted"
    if child.status == "failed" and child.error:
        return f"failed: {child.error['message']} ({child.error['code']})"
    return {"cancelled": "cancelled", "failed": "failed"}.get(child.status, f"{child.status}: not finished yet")

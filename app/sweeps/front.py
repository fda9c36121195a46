"""Sweeps that keep the files of their Pareto front only (`keep: front`): which children are not on it.

Those that are not lose their files when that is certain. While children may still end, a child is certain not to be on
the front if another is as good in everything that may become an axis and better in one that must be: whatever comes
later, it stays behind that one. Near misses and rounding (`Axis.tolerance`) are settled when all children have ended,
by the front as GET /v1/sweeps/{id}/pareto has it then. Equal ones are all on it, or none. A child without these
measurements is on no front; one that did not succeed has no files. Nor is one whose gates fail, however good: nobody
will use it, and it must not cost another its files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.errors import InvalidRequest
from app.jobs import retention
from app.jobs.models import ACTIVE
from app.sweeps import repository
from app.sweeps.models import Sweep
from app.sweeps.pareto import FAIL, higher_is_better, pareto, upward, values
from app.sweeps.repository import ChildRow, Measured

EVALUATE = "/evaluate"


def mark(session: Session, sweep_id: str) -> list[str]:
    """Note of the children that are certain not to be on the front when their files may go; returns their jobs."""
    sweep = repository.lock_sweep(session, sweep_id)
    if sweep is None or sweep.retention is None or sweep.retention["keep"] != "front":
        return []
    children, reports = repository.children(session, sweep_id), repository.measurements(session, sweep_id)
    if any(child.status in ACTIVE for child in children):
        failing = {child.number for child in children if child.verdict == FAIL}
        usable = {number: report for number, report in reports.items() if number not in failing}
        beaten = failing | certainly_beaten(sweep, usable)
    else:
        beaten = not_on_front(sweep, children, reports)
    marked = []
    for child, job in repository.lock_jobs(session, sweep_id, ["succeeded"]):
        if child.number in beaten and job.keep == "front":
            before = job.files_due_at
            retention.note_not_on_front(job)
            marked += [job.id] if job.files_due_at != before else []
    session.flush()
    return marked


def not_on_front(sweep: Sweep, children: Sequence[ChildRow], reports: Mapping[int, Measured]) -> set[int]:
    """Numbers of the children that have succeeded and are not on the front."""
    assert sweep.retention is not None
    failing = {child.number for child in children if child.verdict == FAIL}
    try:
        found = pareto(sweep.id, children, reports, sweep.retention["quality"], sweep.retention["cost"])
    except InvalidRequest:  # the axes are none that a child has measured
        return failing
    return set(reports) - {point.number for point in found.points if point.on_front}


def certainly_beaten(sweep: Sweep, reports: Mapping[int, Measured]) -> set[int]:
    """Numbers of the children that no later one can bring to the front."""
    assert sweep.retention is not None
    quality, cost = sweep.retention["quality"], sweep.retention["cost"]
    if (quality is None or cost is None) and any(each.startswith(EVALUATE) for each in sweep.parameters):
        return set()  # later children may measure something else, which changes the axes
    found = {n: each for n, report in reports.items() if (each := _standing(report, quality, cost)) is not None}
    return {
        number for number, mine in found.items() if any(rival.beats(mine) for n, rival in found.items() if n != number)
    }


class _Standing(NamedTuple):
    """Values that a child is compared by."""

    goals: dict[str, float]
    """Measurement -> its value so that more is better, of all that may become axes."""
    certain: frozenset[str]
    """Those that are axes whatever later children measure."""

    def beats(self, other: _Standing) -> bool:
        if self.goals.keys() != other.goals.keys():
            return False
        as_good = all(value >= other.goals[name] for name, value in self.goals.items())
        return as_good and any(self.goals[name] > other.goals[name] for name in self.certain & other.certain)


def _standing(report: Measured, quality: str | None, cost: str | None) -> _Standing | None:
    """None of a child that has not measured an axis that is asked for."""
    measured = values(report)
    directed = [name for name, value in measured.items() if value.higher_is_better is not None]
    quality = quality or directed[0]  # the sparsity has a direction
    names = {quality, cost} if cost else {quality, *directed}
    if not names <= measured.keys():
        return None
    goals = {
        name: upward(measured[name].pruned, higher_is_better(measured[name], otherwise=name == quality))
        for name in names
    }
    return _Standing(goals, frozenset({quality, cost} if cost else {quality}))

"""Progress on stderr: a live bar on a terminal, one line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from app.cli.output import duration, seen, stderr

PLAIN_INTERVAL_S = 2.0


class Display(Protocol):
    def show(
        self, stage: str, done: int, total: int, unit: str, rate: float | None = None, eta_s: float | None = None
    ) -> None:
        """`done` of `total` units of the stage are finished, at `rate` units/s, `eta_s` seconds before its end."""

    def say(self, line: str) -> None:
        """Something worth keeping on the screen."""


@contextmanager
def display() -> Iterator[Display]:
    if not stderr.is_terminal:
        yield _Plain()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(32),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, transient=True) as progress:
        yield _Live(progress)


class _Live:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, detail="")

    def show(
        self, stage: str, done: int, total: int, unit: str, rate: float | None = None, eta_s: float | None = None
    ) -> None:
        self._progress.update(
            self._task,
            description=seen(stage),
            completed=done,
            total=total or None,
            detail=seen(_detail(done, total, unit, rate, eta_s)),
        )

    def say(self, line: str) -> None:
        self._progress.console.print(line)


class _Plain:
    def __init__(self) -> None:
        self._stage = ""
        self._printed_at = 0.0

    def show(
        self, stage: str, done: int, total: int, unit: str, rate: float | None = None, eta_s: float | None = None
    ) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._printed_at < PLAIN_INTERVAL_S:
            return
        self._stage, self._printed_at = stage, now
        self.say(f"{stage:<10} {_detail(done, total, unit, rate, eta_s)}".rstrip())

    def say(self, line: str) -> None:
        stderr.print(line)


def resumed(event: Mapping[str, Any]) -> str:
    """A line for a `resume` event, of an edit at a block or of a training at a step."""
    unit = "step" if "step" in event else "block"
    return f"resumed at {unit} {event[unit]}: the {unit}s before it were done earlier"


def _detail(done: int, total: int, unit: str, rate: float | None, eta_s: float | None) -> str:
    if not total:
        return unit
    parts = [f"{done}/{total} {unit}"]
    if rate:
        parts.append(f"{rate:.3g}/s")
    if eta_s:
        parts.append(f"{duration(eta_s)} left")
    return ", ".join(parts)

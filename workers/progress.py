"""From the runner's events to a job's progress (rate and remaining time) and its event rows."""

from __future__ import annotations

from typing import Any, NamedTuple


class Finished(NamedTuple):
    """A stage that is over."""

    stage: str
    seconds: float
    at: float
    """When it ended, of the clock of events."""


class Progress:
    """Follows one attempt. `digest` turns a batch of runner events into (event rows, progress to show or None)."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = 0.0
        self._done_at_start = 0
        self._finished: list[Finished] = []

    def finish_stage(self, at: float) -> list[Finished]:
        """End the present stage at that time, and return what has been finished and not returned yet."""
        self._end(at)
        return self.finished()

    def finished(self) -> list[Finished]:
        """The stages that have ended since this was last asked."""
        found, self._finished = self._finished, []
        return found

    def digest(self, events: list[dict[str, Any]]) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any] | None]:
        """Of several progress events in a batch only the newest becomes a row."""
        rows: list[tuple[str, dict[str, Any]]] = []
        shown: dict[str, Any] | None = None
        for event in events:
            fields = {key: value for key, value in event.items() if key not in ("event", "at")}
            match event["event"]:
                case "stage":
                    self._end(event["at"])
                    self._stage, self._began, self._done_at_start = fields["stage"], event["at"], 0
                    shown = {"stage": self._stage, "done": 0, "total": 1, "unit": "stage", "rate": None, "eta_s": None}
                    rows.append(("stage", fields))
                case "resume":
                    self._done_at_start = fields["step"] if "step" in fields else fields["block"]
                    rows.append(("resume", fields))
                case "progress":
                    shown = {**fields, **self._pace(event["at"], fields["done"], fields["total"])}
                case "checkpoint" | "log":
                    rows.append((event["event"], fields))
        if shown is not None and shown["unit"] != "stage":
            rows.append(("progress", shown))
        return rows, shown

    def _end(self, at: float) -> None:
        if self._stage:
            self._finished.append(Finished(self._stage, max(at - self._began, 0), at))
        self._stage = ""

    def _pace(self, at: float, done: int, total: int) -> dict[str, float | None]:
        """Units per second since the stage began, and the seconds left at that pace."""
        elapsed = at - self._began
        fresh = done - self._done_at_start
        if fresh <= 0 or elapsed <= 0:
            return {"rate": None, "eta_s": None}
        rate = fresh / elapsed
        return {"rate": round(rate, 4), "eta_s": round((total - done) / rate, 1)}

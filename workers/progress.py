"""From the runner's events to a job's progress (rate and remaining time) and its event rows."""

from __future__ import annotations

from typing import Any


class Progress:
    """Follows one attempt. `digest` turns a batch of runner events into (event rows, progress to show or None)."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = 0.0
        self._done_at_start = 0

    def digest(self, events: list[dict[str, Any]]) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any] | None]:
        """Of several progress events in a batch only the newest becomes a row."""
        rows: list[tuple[str, dict[str, Any]]] = []
        shown: dict[str, Any] | None = None
        for event in events:
            fields = {key: value for key, value in event.items() if key not in ("event", "at")}
            match event["event"]:
                case "stage":
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

    def _pace(self, at: float, done: int, total: int) -> dict[str, float | None]:
        """Units per second since the stage began, and the seconds left at that pace."""
        elapsed = at - self._began
        fresh = done - self._done_at_start
        if fresh <= 0 or elapsed <= 0:
            return {"rate": None, "eta_s": None}
        rate = fresh / elapsed
        return {"rate": round(rate, 4), "eta_s": round((total - done) / rate, 1)}

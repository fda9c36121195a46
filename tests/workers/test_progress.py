"""Rates and ETAs from events that carry their own time."""

from __future__ import annotations

import io
import json
from typing import Any

from workers.engine.events import JsonLines
from workers.progress import Progress


def step(at: float, done: int) -> dict[str, Any]:
    return {"event": "progress", "at": at, "stage": "prune", "done": done, "total": 8, "unit": "block"}


def test_rate_and_eta_follow_the_stage() -> None:
    progress = Progress()
    rows, shown = progress.digest([{"event": "stage", "at": 100.0, "stage": "prune"}])
    assert rows == [("stage", {"stage": "prune"})]
    assert shown is not None
    assert (shown["stage"], shown["done"]) == ("prune", 0)

    # Two blocks in four seconds: half a block a second, six left.
    rows, shown = progress.digest([step(102.0, 1), step(104.0, 2)])
    expected = {"stage": "prune", "done": 2, "total": 8, "unit": "block", "rate": 0.5, "eta_s": 12.0}
    assert shown == expected
    assert rows == [("progress", expected)]


def test_the_rate_does_not_depend_on_when_the_events_are_read() -> None:
    _, shown = Progress().digest([{"event": "stage", "at": 0.0, "stage": "prune"}, step(1.0, 1), step(2.0, 2)])
    assert shown is not None
    assert shown["rate"] == 1.0


def test_blocks_found_finished_do_not_flatter_the_rate() -> None:
    progress = Progress()
    progress.digest(
        [
            {"event": "stage", "at": 0.0, "stage": "prune"},
            {"event": "resume", "at": 0.0, "stage": "prune", "block": 6},
        ]
    )
    _, shown = progress.digest([step(10.0, 7)])
    assert shown is not None
    assert (shown["rate"], shown["eta_s"]) == (0.1, 10.0)


def test_steps_found_done_do_not_flatter_the_rate_and_the_loss_is_shown() -> None:
    progress = Progress()
    stream = io.StringIO()
    events = JsonLines(stream)
    events.stage("tune")
    events.resume(40, "step")
    events.checkpoint(41, "step")
    events.progress(42, 200, "step", 3.14159)
    told = [
        json.loads(line) | {"at": at}
        for at, line in zip((0.0, 0.0, 4.0, 4.0), stream.getvalue().splitlines(), strict=True)
    ]
    rows, shown = progress.digest(told)
    expected = {"stage": "tune", "done": 42, "total": 200, "unit": "step", "loss": 3.1416, "rate": 0.5, "eta_s": 316.0}
    assert shown == expected
    assert rows[1:] == [
        ("resume", {"stage": "tune", "step": 40}),
        ("checkpoint", {"stage": "tune", "step": 41}),
        ("progress", expected),
    ]


def test_checkpoints_and_logs_are_kept_and_results_are_not() -> None:
    rows, shown = Progress().digest(
        [
            {"event": "checkpoint", "at": 1.0, "stage": "prune", "block": 0},
            {"event": "log", "at": 1.0, "stage": "prune", "level": "warning", "message": "m"},
            {"event": "result", "at": 1.0, "stage": "package"},
        ]
    )
    assert [kind for kind, _ in rows] == ["checkpoint", "log"]
    assert shown is None


def test_nothing_new_shows_nothing() -> None:
    assert Progress().digest([]) == ([], None)

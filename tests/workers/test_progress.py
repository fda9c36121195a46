"""Rates and ETAs from a clock that the test moves."""

from __future__ import annotations

from typing import Any

from workers.progress import Progress


def step(done: int) -> dict[str, Any]:
    return {"event": "progress", "stage": "prune", "done": done, "total": 8, "unit": "block"}


def test_rate_and_eta_follow_the_stage() -> None:
    now = [100.0]
    progress = Progress(clock=lambda: now[0])
    rows, shown = progress.digest([{"event": "stage", "stage": "prune"}])
    assert rows == [("stage", {"stage": "prune"})]
    assert shown is not None
    assert (shown["stage"], shown["done"]) == ("prune", 0)

    now[0] += 4  # two blocks in four seconds: half a block a second, six left
    rows, shown = progress.digest([step(1), step(2)])
    expected = {"stage": "prune", "done": 2, "total": 8, "unit": "block", "rate": 0.5, "eta_s": 12.0}
    assert shown == expected
    assert rows == [("progress", expected)]


def test_blocks_found_finished_do_not_flatter_the_rate() -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress.digest([{"event": "stage", "stage": "prune"}, {"event": "resume", "stage": "prune", "block": 6}])
    now[0] = 10
    _, shown = progress.digest([step(7)])
    assert shown is not None
    assert (shown["rate"], shown["eta_s"]) == (0.1, 10.0)


def test_checkpoints_and_logs_are_kept_and_results_are_not() -> None:
    rows, shown = Progress().digest(
        [
            {"event": "checkpoint", "stage": "prune", "block": 0},
            {"event": "log", "stage": "prune", "level": "warning", "message": "m"},
            {"event": "result", "stage": "package"},
        ]
    )
    assert [kind for kind, _ in rows] == ["checkpoint", "log"]
    assert shown is None


def test_nothing_new_shows_nothing() -> None:
    assert Progress().digest([]) == ([], None)

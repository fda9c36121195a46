"""Runners forked by a warm parent: the same results and the same deaths as those that were started plainly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.cluster import MAGNITUDE, ROOT, WANDA, eventually
from workers import runner, warm
from workers.engine.report import Report
from workers.supervisor import Exit, Order, supervise
from workers.warm import Warm

pytestmark = pytest.mark.xdist_group("runners")  # of one warm parent
LONG = WANDA | {"calibrate": {"dataset": "calibration.txt", "samples": 200, "sequence_length": 512}}


Run = Callable[..., tuple[Exit, list[dict[str, Any]]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(
        parent: Warm, spec: dict[str, Any], at: Callable[[list[dict[str, Any]]], Order] | None = None
    ) -> tuple[Exit, list[dict[str, Any]]]:
        """Supervise a job; `at` gives the order, by the events so far."""
        seen: list[dict[str, Any]] = []

        def on_tick(events: list[dict[str, Any]]) -> Order:
            seen.extend(events)
            return at(seen) if at else Order.CONTINUE

        work = tmp_path / str(len(list(tmp_path.iterdir())))
        work.mkdir()
        (work / "spec.json").write_text(json.dumps(spec))
        folders = {"models": ROOT / "examples/models", "data": ROOT / "examples/data", "checkpoint": work / "c"}
        arguments = [str(work), *(part for name, path in folders.items() for part in (f"--{name}", str(path)))]
        start = partial(parent.start, [*arguments, "--threads", "1"])
        return supervise(start, log=work / "log", on_tick=on_tick, tick_s=0.05, grace_s=5), seen

    return run


def children(parent: Warm) -> list[psutil.Process]:
    return psutil.Process(parent.pid).children()


def pruning(seen: list[dict[str, Any]]) -> bool:
    return any(event["event"] == "progress" and event["stage"] == "prune" for event in seen)


def test_jobs_are_done_one_after_the_other_by_one_parent(parent: Warm, run: Run, tmp_path: Path) -> None:
    for _ in range(2):
        end, seen = run(parent, MAGNITUDE)
        assert end.succeeded, seen
        Report.model_validate(seen[-1]["report"])
    first, second = (path.read_bytes() for path in tmp_path.glob("*/model/model.safetensors"))
    assert first == second
    # After imports alone it has one thread: with more a fork may wait for ever.
    assert psutil.Process(parent.pid).num_threads() == 1
    eventually(lambda: not children(parent), 10, "it is buried")


def test_an_error_keeps_its_code_and_its_words(parent: Warm, run: Run) -> None:
    end, seen = run(parent, MAGNITUDE | {"model": {"id": "nowhere"}})
    assert (end.returncode, end.error and end.error["code"]) == (64, "model_not_found")
    assert seen[-1]["event"] == "error"


def test_a_cancel_is_heard(parent: Warm, run: Run) -> None:
    end, _ = run(parent, LONG, lambda seen: Order.CANCEL if pruning(seen) else Order.CONTINUE)
    assert (end.order, end.returncode) == (Order.CANCEL, runner.TERMINATED)
    eventually(lambda: not children(parent), 10, "it is buried")


def test_a_killed_runner_is_a_signal_and_the_next_job_runs(parent: Warm, run: Run) -> None:
    def kill(seen: list[dict[str, Any]]) -> Order:
        if pruning(seen):
            for child in children(parent):
                assert child.name() == runner.NAME
                child.kill()
        return Order.CONTINUE

    end, _ = run(parent, LONG, kill)
    assert (end.order, end.returncode) == (Order.CONTINUE, -signal.SIGKILL)
    assert run(parent, MAGNITUDE)[0].succeeded


def test_a_killed_parent_takes_its_runner_with_it_and_is_replaced(run: Run) -> None:
    parent, left = Warm(), list[psutil.Process]()

    def kill(seen: list[dict[str, Any]]) -> Order:
        if pruning(seen) and not left:
            left.extend(children(parent))
            psutil.Process(parent.pid).kill()
        return Order.CONTINUE

    end, _ = run(parent, LONG, kill)
    assert (end.order, end.returncode) == (Order.CONTINUE, -signal.SIGKILL)
    assert len(left) == 1
    eventually(lambda: not left[0].is_running() or left[0].status() == psutil.STATUS_ZOMBIE, 10)
    first = parent.pid
    # A cancel while the new one is still importing does not wait for it.
    end, _ = run(parent, LONG, lambda _: Order.CANCEL)
    assert (end.order, end.returncode) == (Order.CANCEL, -signal.SIGKILL)
    assert parent.pid != first
    parent.close()


def test_without_a_parent_runners_are_started_plainly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "COMMAND", ["/bin/false"])
    assert run(Warm(), MAGNITUDE | {"model": {"id": "nowhere"}})[0].returncode == 64


def test_a_stuck_parent_does_not_keep_an_ended_job(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "REPORT_S", 0.1)
    parent, ended = Warm(), list[psutil.Process]()

    def stop(seen: list[dict[str, Any]]) -> Order:
        if pruning(seen) and not ended:
            ended.extend(children(parent))
            psutil.Process(parent.pid).suspend()
            ended[0].kill()
        return Order.CONTINUE

    end, _ = run(parent, LONG, stop)
    assert (end.order, end.returncode) == (Order.CONTINUE, -signal.SIGKILL)
    assert run(parent, MAGNITUDE)[0].succeeded  # by a new one
    parent.close()


def test_a_parent_that_never_forks_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "COMMAND", ["/bin/sleep", "1000"])
    monkeypatch.setattr(warm, "FORK_S", 0.1)
    parent = Warm()
    start = partial(parent.start, ["--nonsense"])  # a plain start says so before it imports anything
    end = supervise(start, log=tmp_path / "log", on_tick=lambda _: Order.CONTINUE, tick_s=0.05, grace_s=5)
    assert end.returncode == 2
    assert "usage: python -m workers.runner" in (tmp_path / "log").read_text()
    assert not psutil.pid_exists(parent.pid)


def test_descriptors_of_a_runner_that_cannot_be_started_are_closed(parent: Warm, tmp_path: Path) -> None:
    def opened() -> int:
        return psutil.Process().num_fds()

    with (tmp_path / "log").open("ab") as log, pytest.MonkeyPatch.context() as patch:
        before = opened()
        patch.setattr(warm.os, "dup", lambda _: os.dup2(-1, -1))  # an OSError
        with pytest.raises(OSError, match="Bad file descriptor"):
            parent.start(["x"], log)
        assert opened() == before


def test_a_parent_whose_owner_is_dead_already_imports_nothing() -> None:
    with subprocess.Popen([*warm.COMMAND, str(2**22 + 1)], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as orphan:
        assert orphan.wait(60) == -signal.SIGKILL

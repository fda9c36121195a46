"""The supervisor against real processes: small programs that behave well, badly, and worse."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from workers.children import Spawned
from workers.failures import of_exit
from workers.supervisor import Exit, Order, supervise

EVENT = 'print(\'{"event": "progress", "stage": "prune", "done": %d, "total": 9, "unit": "block"}\', flush=True)\n'


def run(
    tmp_path: Path, program: str, orders: dict[int, Order] | None = None, grace_s: float = 1.0
) -> tuple[Exit, list[dict[str, Any]]]:
    """Supervise a Python program; `orders` maps the number of events seen so far to the order given then."""
    seen: list[dict[str, Any]] = []

    def on_tick(events: list[dict[str, Any]]) -> Order:
        seen.extend(events)
        return (orders or {}).get(len(seen), Order.CONTINUE)

    command = [sys.executable, "-c", "import os, signal, subprocess, sys, time\n" + program]
    end = supervise(partial(Spawned, command), log=tmp_path / "log", on_tick=on_tick, tick_s=0.05, grace_s=grace_s)
    return end, seen


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_events_arrive_in_order_and_the_last_is_not_missed(tmp_path: Path) -> None:
    end, seen = run(tmp_path, "".join(EVENT % n for n in range(200)) + "sys.stderr.write('words')")
    assert end.succeeded
    assert [event["done"] for event in seen] == list(range(200))
    assert (tmp_path / "log").read_text() == "words"


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    end, seen = run(tmp_path, EVENT % 1 + 'sys.stdout.write(\'{"event": "prog\'); sys.stdout.flush()')
    assert (len(seen), end.returncode) == (1, 0)


def test_a_cancel_ends_a_polite_child_at_once(tmp_path: Path) -> None:
    # Waits for the signal itself. A handler in Python runs between two instructions: of a signal that comes after the
    # last of them and before a sleep begins, it hears when the sleep is over.
    block, wait = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n", "signal.sigwait([signal.SIGTERM])\n"
    polite = block + EVENT % 1 + wait + "sys.exit(75)"
    began = time.monotonic()
    end, _ = run(tmp_path, polite, {1: Order.CANCEL}, grace_s=30)
    assert (end.order, end.returncode) == (Order.CANCEL, 75)
    assert time.monotonic() - began < 20  # far below both the sleep and the grace


def test_a_deaf_child_is_killed_after_the_grace(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + EVENT % 1 + "time.sleep(60)"
    end, _ = run(tmp_path, deaf, {1: Order.CANCEL}, grace_s=0.2)
    assert (end.order, end.returncode) == (Order.CANCEL, -signal.SIGKILL)


def test_a_child_that_has_ended_keeps_its_number_until_the_end(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        child = Spawned([sys.executable, "-c", "import sys; sys.exit(7)"], log)
    while child.poll() is None:
        time.sleep(0.02)
    assert child.poll() == 7
    assert Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "Z"
    assert child.end() == 7
    assert not Path(f"/proc/{child.pid}").exists()


def test_grandchildren_die_with_the_group(tmp_path: Path) -> None:
    program = (
        "g = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], stdout=subprocess.DEVNULL)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(g.pid))\n" + EVENT % 1
    )
    end, _ = run(tmp_path, program)
    assert end.succeeded
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.02)
    assert not alive(pid)


def test_the_group_dies_when_the_caller_fails(tmp_path: Path) -> None:
    def on_tick(events: list[dict[str, Any]]) -> Order:
        if events:
            raise RuntimeError("the database is gone for good")
        return Order.CONTINUE

    program = (
        f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{EVENT % 1}time.sleep(60)"
    )
    child = partial(Spawned, [sys.executable, "-c", program])
    with pytest.raises(RuntimeError):
        supervise(child, log=tmp_path / "log", on_tick=on_tick, tick_s=0.05, grace_s=1)
    assert not alive(int((tmp_path / "pid").read_text()))


def test_exits_are_told_apart(tmp_path: Path) -> None:
    error = (
        '{"event": "error", "stage": "load", "code": "model_gated", "message": "m", "hint": "h", "retryable": false}'
    )
    end, _ = run(tmp_path, f"print({error!r}, flush=True); sys.exit(64)")
    assert (of_exit(end, deadline_s=1).code, of_exit(end, deadline_s=1).retryable) == ("model_gated", False)

    end, _ = run(tmp_path, EVENT % 1 + "os.kill(os.getpid(), signal.SIGSEGV)")
    failure = of_exit(end, deadline_s=1)
    assert (failure.code, failure.retryable, failure.stage) == ("runner_died", True, "prune")
    assert "SIGSEGV" in failure.message

    end, _ = run(tmp_path, EVENT % 1 + "time.sleep(60)", {1: Order.TIMEOUT})
    failure = of_exit(end, deadline_s=7)
    assert (failure.code, failure.retryable) == ("timeout", False)
    assert "7 s" in failure.message


def test_out_of_memory_is_named_when_the_kernel_says_so() -> None:
    end = Exit(Order.CONTINUE, -signal.SIGKILL, "prune", None, out_of_memory=True)
    assert (of_exit(end, deadline_s=1).code, of_exit(end, deadline_s=1).retryable) == ("host_oom", False)
    # Of several ranks a further one was killed, and the first says so.
    error = {"code": "runner_died", "message": "m", "hint": "h", "retryable": True, "rank": 1}
    assert of_exit(replace(end, error=error), deadline_s=1).code == "host_oom"
    assert of_exit(replace(end, error=error, out_of_memory=False), deadline_s=1).code == "runner_died"
    assert of_exit(replace(end, error=error | {"code": "disk_full"}), deadline_s=1).code == "disk_full"


def test_abandon_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + EVENT % 1 + "time.sleep(60)"
    end, _ = run(tmp_path, deaf, {1: Order.ABANDON}, grace_s=30)
    assert end.returncode == -signal.SIGKILL

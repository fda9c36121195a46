"""Runs every family's jobs and keeps a row of verdicts each, for docs/families.md.

    python -m tests.families [--redo [TYPE ...]] [--only TYPE ...] [--jobs JOB ...] [--processes 1]   or: make families

Rows stand in docs/families.jsonl as they come: an interrupted run goes on where it was. `--redo` runs again what is
named; all without a name. `--jobs` runs these jobs alone, of families that have a row and lack one of them, or are to
be run again; the other jobs' verdicts stay. A process runs many families, as imports take longer than a family; one
that crashes or takes too long is replaced.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from threading import Lock, Thread
from typing import Any

from tests.families.process import Child
from tests.families.rows import JOBS, ROWS, TYPES, WRAPPERS, known, written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("--redo", nargs="*", metavar="TYPE", help="run these again; all without a name")
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="run no others")
    parser.add_argument("--jobs", nargs="+", metavar="JOB", choices=JOBS, help="run no others, and keep the verdicts")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    rows = known()
    again = set(rows if asked.redo == [] else asked.redo or ())
    wanted = [name for name, reason in (TYPES | WRAPPERS).items() if reason is None]
    new = {n for n in wanted if n not in rows}
    if asked.jobs:  # what is refused altogether is in these too
        new = {n for n in wanted if rows.get(n, {}).get("jobs") and not {*asked.jobs} <= rows[n]["jobs"].keys()}
    todo = [n for n in wanted if n in new | again and (asked.only is None or n in asked.only)]
    _say(f"{len(wanted)} families, {len(todo)} to run")
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    lock, waiting = Lock(), iter(todo)

    def take() -> str | None:
        with lock:
            return next(waiting, None)

    def keep(row: dict[str, Any], seconds: float) -> None:
        with lock:
            if asked.jobs and (before := rows.get(row["family"])):
                row = {**before, "jobs": {job: found for job in JOBS if (found := _found(job, row, before))}}
            rows[row["family"]] = row
            ROWS.write_text(written(rows))
            said = ", ".join(f"{job} {found['verdict']}" for job, found in row["jobs"].items())
            _say(f"{row['family']} ({seconds:.1f} s): {said or 'refused'}")

    threads = [Thread(target=_run, args=(take, keep, asked.jobs)) for _ in range(asked.processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = Counter(found["verdict"] for row in known().values() for found in row["jobs"].values())
    _say(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    sys.exit(1 if counts["wrong"] or counts["crash"] else 0)


def _found(job: str, row: dict[str, Any], before: dict[str, Any]) -> dict[str, str] | None:
    """The verdict of a job, of those that ran or as it was."""
    found: dict[str, str] | None = row["jobs"].get(job) or before["jobs"].get(job)
    return found


def _run(take: Any, keep: Any, jobs: Sequence[str] | None) -> None:
    """Hand families to a process, one after the other; another one where it is lost."""
    child = None
    while (name := take()) is not None:
        if child is None:
            child = Child()
        start = time.monotonic()
        row, lost = child.run(name, jobs)
        keep(row, time.monotonic() - start)
        if lost:
            child.end()
            child = None
    if child is not None:
        child.end()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

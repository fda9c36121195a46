"""Tables measured cell by cell: each finished cell is a line of a file, and an interrupted run goes on there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from workers.warm_parent import PRELOADED

Row = dict[str, Any]


def known(results: Path) -> list[Row]:
    """The cells measured so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


@contextmanager
def folders(cache: Path, given: Any) -> Iterator[tuple[Path, Path, bool]]:
    """(an empty folder to work in, a folder of resume points, whether it holds some) for a cell of hours. Where the
    process is killed the points stay, and the same cell goes on from them the next time."""
    points = cache / "points" / sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]
    resumed = points.exists()
    points.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder), points, resumed
        finally:
            shutil.rmtree(points)


def measured(
    wanted: Sequence[tuple[Row, Any]], measure: Callable[[Any], Row], results: Path, *, only: str, processes: int
) -> Iterator[Row]:
    """Each new row (key and what `measure` found) as it comes, appended to `results`. A cell that fails is printed, and
    the others go on.

    `wanted`: (key, what `measure` takes). Cells whose key lacks the text `only`, or that are known, are left out. A
    process a cell, one thread each, forked of one that has imported the engine and computed nothing: what one leaves in
    memory is no burden to the next.
    """
    found = known(results)
    todo = [
        (key, given)
        for key, given in wanted
        if only in json.dumps(key) and not any(key.items() <= row.items() for row in found)
    ]
    print(f"{len(wanted)} cells, {len(todo)} to do", flush=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        runs = {pool.submit(measure, given): key for key, given in todo}
        for run in as_completed(runs):
            if error := run.exception():
                print(f"{runs[run]}: {type(error).__name__}: {error}", flush=True)
                continue
            row = runs[run] | run.result()
            with results.open("a") as out:
                out.write(json.dumps(row) + "\n")
            yield row

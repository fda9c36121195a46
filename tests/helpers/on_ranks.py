"""Run a function on several ranks, each a new process on the CPU.

They are forked, as a worker's are, by one process that has imported the engine and computes nothing: to import it anew
would take each longer than a test."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.engine.ranks import Ranks, join


def on_ranks(count: int, function: Callable[..., None], *args: Any) -> None:
    """Call `function(ranks, *args)` on every rank, and fail unless all end well. It is pickled by its name."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["workers.engine.stages.train", "workers.engine.stages.tune"])
        meeting = Path(folder) / "meeting"
        processes = [context.Process(target=_run, args=(rank, count, meeting, function, args)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        assert codes == [0] * count


def _run(rank: int, count: int, meeting: Path, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    function(join(rank, count, meeting, cuda=False) if count > 1 else Ranks(), *args)

"""Verdicts of reports on speed, on a disturbed machine: of a copy of a model, and of one that is a quarter smaller.

    python -m benchmarks.verdicts [--runs 20]          or: make verdicts

Each run is one of the pipeline's evaluation stage on bookworm-7m with the defaults of `generation_speed`, while a busy
loop is started and stopped at random, for 0.2 to 3 s each. A copy must be called the same and pass no gate at 1.1; what
is left after a quarter of the blocks' parameters went (`structured`, scored by Wanda) is faster.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workers.engine.events import Silent
from workers.engine.gates import Gate, judge
from workers.engine.model.loaded import LoadedModel
from workers.engine.pipeline import compress
from workers.engine.planning.plan import feasible
from workers.engine.report import Metric
from workers.engine.reporting.wording import ratio, verdict
from workers.engine.sources.resolve import Sources, resolve_model
from workers.engine.spec import CompressionSpec
from workers.engine.stages.evaluate import evaluate
from workers.engine.stages.load import load
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run

ROOT = Path(__file__).parents[1]
SOURCES = Sources(ROOT / "examples/models", ROOT / "examples/data")
QUARTER: dict[str, Any] = {
    "model": {"id": "bookworm-7m"},
    "calibrate": {"dataset": "calibration.txt", "samples": 16, "sequence_length": 512},
    "score": {"method": "wanda"},
    "prune": {"method": "structured", "sparsity": 0.25},
    "evaluate": [{"method": "generation_speed"}],
}
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Ends with its parent."""
NAMES = ("generation_speed/prefill", "generation_speed/decode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    print(f"{runs} runs each, {os.cpu_count()} cores ({platform.machine()}), one of them busy at random\n")
    print("| pruned | | ratio: least, median, most | half of the interval, median | verdicts | gate at 1.1 | s a run |")
    print("|---|---|---:|---:|---|---|---:|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(SOURCES.models_dir / "bookworm-7m", folder / "copy")
        spec = CompressionSpec.model_validate(QUARTER | {"evaluate": []})
        compress(spec, folder / "quarter", SOURCES, Silent(), folder / "checkpoint")
        spec = CompressionSpec.model_validate(QUARTER)
        dense = load(spec, feasible(spec, resolve_model(spec.model, SOURCES), SOURCES))
        for label, model in (("a copy", folder / "copy"), ("a quarter less", folder / "quarter/model")):
            started_s = time.monotonic()
            with disturbed():
                found = [measured(dense, model) for _ in range(runs)]
            each_s = (time.monotonic() - started_s) / runs
            for metric_name in NAMES:
                row([metrics[metric_name] for metrics in found], label, metric_name, each_s)


def measured(dense: LoadedModel, folder: Path) -> dict[str, Metric]:
    """One comparison of the dense model with the one in `folder`."""
    spec = CompressionSpec.model_validate(QUARTER)
    with tempfile.TemporaryDirectory() as scratch:
        found = evaluate(spec, dense, folder, SOURCES, Run.of(Checkpoint(Path(scratch)), Silent()))
    for metric in found.metrics:
        print(f"{metric.name}: {ratio(metric)}, {verdict(metric)}; {metric.note}", file=sys.stderr, flush=True)
    return {metric.name: metric for metric in found.metrics}


def row(metrics: list[Metric], label: str, name: str, each_s: float) -> None:
    ratios = sorted(metric.ratio or 0.0 for metric in metrics)
    judged = [judge([Gate(metric=name, min=1.1)], [metric])[0] for metric in metrics]
    halves = [(one.interval[1] - one.interval[0]) / 2 for one in judged if one.interval]
    cells = [
        label,
        name.rpartition("/")[2],
        f"{ratios[0]:.3f}, {statistics.median(ratios):.3f}, {ratios[-1]:.3f}",
        f"{statistics.median(halves):.3f}",
        _counted(verdict(metric) for metric in metrics),
        _counted(one.verdict for one in judged),
        f"{each_s:.0f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def _counted(words: Iterator[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


@contextmanager
def disturbed() -> Iterator[None]:
    """A busy process that comes and goes, until the block is left."""
    over = threading.Event()

    def come_and_go() -> None:
        chance = random.Random(0)
        while not over.wait(chance.uniform(0.2, 3)):
            busy = subprocess.Popen([sys.executable, "-c", BUSY])
            over.wait(chance.uniform(0.2, 3))
            busy.kill()
            busy.wait()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()

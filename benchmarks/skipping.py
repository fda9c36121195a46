"""Dynamic skipping of experts: perplexity and tokens per second beside the same model without it.

    python -m benchmarks.skipping [--threads 1]

bookworm-moe-8m keeps all of its experts and skips some of them for each token: a job whose evaluators compare it with
the dense model, speeds in rounds in which both take turns.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.reporting.wording import ratio, verdict
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec

ROOT = Path(__file__).parents[1]
SPEC: dict[str, Any] = {
    "model": {"id": "bookworm-moe-8m"},
    "calibrate": {"dataset": "calibration.txt", "samples": 64, "sequence_length": 512},
    "score": {"method": "reap"},
    "prune": {"method": "experts", "experts": 8, "skip": True},
    "evaluate": [
        {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 512, "samples": 64},
        {"method": "generation_speed", "prompt_tokens": 512, "batch_size": 1},
        {"method": "generation_speed", "prompt_tokens": 512, "batch_size": 8},
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.machine()} CPU, float32, threads: {arguments.threads}\n")
    print("| measured | dense | skips | skips / dense, 95 % interval | verdict |\n|---|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory() as name:
        folder, sources = Path(name), Sources(ROOT / "examples/models", ROOT / "examples/data")
        report = compress(CompressionSpec.model_validate(SPEC), folder, sources, Silent(), folder / "checkpoint")
    for metric in report.metrics:
        values = f"{metric.dense:.2f} | {metric.pruned:.2f} | {ratio(metric)} | {verdict(metric)}"
        print(f"| {metric.name}, {metric.unit} | {values} |")
        print(metric.note, file=sys.stderr)


if __name__ == "__main__":
    main()

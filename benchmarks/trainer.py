"""Tokens per second and memory of training every weight, beside the Trainer of transformers: one model, batch and text.

    python -m benchmarks.trainer [--model bookworm-7m] [--steps 30] [--rounds 3]

The two take turns, each round in new processes with all cores. Ours is a job that removes nothing and tunes by `full`,
without distillation; the Trainer's arguments are its defaults but for batch, steps, seed and what would write files.
Rates count the steps alone, from the beginning of the second; memory is the largest resident set by the end of the
training, of a job with the checks before it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BATCH, LENGTH = 8, 256
TEXT = "calibration.txt"
OURS, THEIRS = "espalier", "transformers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "examples/models", help="folder of models")
    parser.add_argument("--model", default="bookworm-7m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=(OURS, THEIRS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        of = {OURS: ours, THEIRS: theirs}[arguments.measure]
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(of(arguments.models, arguments.model, arguments.steps, Path(folder))))
        return
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(
        f"load average {os.getloadavg()[0]:.1f}; {arguments.model}, {BATCH} x {LENGTH} tokens, {arguments.steps} steps"
    )
    print("\n| round | tokens/s | of the Trainer | ratio | peak MiB | of the Trainer | ratio |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    ratios = []
    for number in range(arguments.rounds):
        order = (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS)
        found = {name: _child(name, arguments) for name in order}
        a, b = found[OURS], found[THEIRS]
        ratios.append((a["tokens_per_s"] / b["tokens_per_s"], a["bytes"] / b["bytes"]))
        rate, size = ratios[-1]
        print(f"| {number + 1} | {a['tokens_per_s']:,.0f} | {b['tokens_per_s']:,.0f} | {rate:.2f} ", end="")
        print(f"| {a['bytes'] / 2**20:,.0f} | {b['bytes'] / 2**20:,.0f} | {size:.2f} |", flush=True)
    rate, size = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"\nMedian ratios: tokens/s {rate:.2f}, memory {size:.2f}")


def ours(models: Path, model: str, steps: int, folder: Path) -> dict[str, float]:
    from workers.engine.events import Silent
    from workers.engine.pipeline import compress
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec

    class Clock(Silent):
        def __init__(self) -> None:
            self.at: list[float] = []

        def progress(self, done: int, total: int, unit: str, loss: float | None = None) -> None:
            if unit == "step" and done:
                self.at.append(time.perf_counter())

    tune = {"method": "full", "dataset": TEXT, "steps": steps, "batch": BATCH, "sequence_length": LENGTH, "holdout": 2}
    spec: dict[str, Any] = {
        "model": {"id": model},
        "score": {"method": "magnitude"},
        "prune": {"method": "mask", "sparsity": 0.0},
        "tune": tune | {"evaluate_every": steps, "distill": None},
    }
    clock = Clock()
    asked = CompressionSpec.model_validate(spec)
    report = compress(
        asked, folder, Sources(models, ROOT / "examples/data"), clock, folder / "points", folder / "known"
    )
    assert report.tune is not None
    return _rate(clock.at) | {"bytes": report.tune.peak_memory_bytes}


def theirs(models: Path, model: str, steps: int, folder: Path) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.at: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.at.append(time.perf_counter())

    text = (ROOT / "examples/data" / TEXT).read_text()
    ids = AutoTokenizer.from_pretrained(models / model)(text)["input_ids"]
    windows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    rows = [{"input_ids": window, "labels": window} for window in windows]
    clock = Clock()
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(models / model, dtype=torch.float32),
        TrainingArguments(
            folder, per_device_train_batch_size=BATCH, max_steps=steps, seed=0, use_cpu=True, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True,
        ),
        train_dataset=rows,
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    return _rate(clock.at) | {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _rate(at: list[float]) -> dict[str, float]:
    return {"tokens_per_s": (len(at) - 1) * BATCH * LENGTH / (at[-1] - at[0])}


def _child(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.trainer", "--measure", name, "--models", arguments.models]
    command += ["--model", arguments.model, "--steps", str(arguments.steps)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()

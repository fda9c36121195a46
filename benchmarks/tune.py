"""Every way of tuning on the shipped model, and what it takes in memory on a larger one: tables for docs/methods.md.

    python -m benchmarks.tune [--steps 200] [--rows "50 %" memory]

Each run is a process of its own with one thread. It tunes a model pruned beforehand and reads eight windows of each of
five held-out books. Speed is counted in processor time, as the machine may be shared; memory is the peak of
the steps, after loading.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from workers.engine.events import Silent
from workers.engine.store.run import Run

ROOT = Path(__file__).parents[1]
CALIBRATE = {"dataset": "calibration.txt", "samples": 16, "sequence_length": 512}
UNPRUNED = {"score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.0}}
TEXT = {"dataset": "calibration.txt", "batch": 4, "sequence_length": 128, "distill": None}
HELD_OUT = {"dataset": "heldout.jsonl", "sequence_length": 512, "per_document": 8}
TWO, FOUR, SIXTEEN = ({"method": "group", "bits": bits} for bits in (2, 4, 16))
FULL, LAST, LORA = ({"method": name} for name in ("full", "last_layers", "lora"))


def wanda(sparsity: float) -> dict[str, Any]:
    return {"calibrate": CALIBRATE, "score": {"method": "wanda"}, "prune": {"method": "mask", "sparsity": sparsity}}


def distilled(params: dict[str, Any]) -> dict[str, Any]:
    return params | {"distill": {"weight": 1.0}}


ROWS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "50 %": (wanda(0.5), [FULL, LAST, LORA, SIXTEEN, FOUR, *map(distilled, (FULL, LAST, LORA, SIXTEEN, FOUR))]),
    "70 %": (wanda(0.7), [FULL, LAST, LORA, SIXTEEN, distilled(FULL), distilled(LORA)]),
    "unpruned": (UNPRUNED, [LORA, SIXTEEN, FOUR, TWO, distilled(FOUR), distilled(TWO)]),
    "memory": (UNPRUNED | {"model": {"id": "random"}}, [FULL, LAST, LORA, SIXTEEN, FOUR]),
    "memory, bfloat16": (
        UNPRUNED | {"model": {"id": "random"}, "compute": {"dtype": "bfloat16", "device": "cpu"}},
        [LORA, SIXTEEN, FOUR],
    ),
}
"""Name -> how the model is pruned, and what tunes it. `memory` is of a random model of 60 M parameters, two steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(json.loads((arguments.child / "run.json").read_text()), arguments.child)))
        return
    print("| model | tuned by | trained | perplexity | loss on its own held-out windows | tokens/s | peak MiB |")
    print("|---|---|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows:
            _table(rows, arguments.steps, Path(folder) / rows)


def _table(rows: str, steps: int, folder: Path) -> None:
    parts, ways = ROWS[rows]
    parts, models = {"model": {"id": "bookworm-7m"}} | parts, ROOT / "examples/models"
    real = parts["model"]["id"] == "bookworm-7m"
    if not real:
        from benchmarks.random_model import SHAPES, write

        models, steps = folder / "models", 2
        write(SHAPES["60m"], models / "random", "float32")
    base = {"spec": parts, "models": str(models), "read": real}
    before = _run(base | {"prune": True}, folder / "pruned")
    print(f"| {rows} | | | {_number(before['perplexity'])} | | | |", flush=True)
    for params in ways:
        shutil.copytree(folder / "pruned/model", folder / "run/model")
        tune = TEXT | params | {"steps": steps, "evaluate_every": steps, "holdout": 32 if real else 1}
        found = _run(base | {"spec": parts | {"tune": tune}}, folder / "run")
        name = f"`{params['method']}`" + (f", {params['bits']} bits" if "bits" in params else "")
        cells = [
            rows,
            f"{name}{', distilled' if 'distill' in params else ''}",
            f"{found['trained']:,}",
            _number(found["perplexity"]),
            found["losses"],
            f"{found['speed']:,.0f}",
            f"{found['peak'] / 2**20:,.0f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
        shutil.rmtree(folder / "run")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _run(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))
    command = [sys.executable, "-m", "benchmarks.tune", "--child", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class _Meter(Silent):
    """Processor time and memory of the steps alone."""

    def progress(self, done: int, total: int, unit: str, loss: float | None = None) -> None:
        from workers.engine.store.clock import peak_resident_bytes

        if unit != "step":
            return
        if done == 0:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident
            self.began = time.process_time()
        elif done == total:
            self.seconds, self.peak = time.process_time() - self.began, peak_resident_bytes()


def measure(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Prune into `folder/model`, or tune what is there; then its perplexity, if it is to be read."""
    import torch

    from workers.engine.methods.evaluate.perplexity import PerplexityParams
    from workers.engine.model.loaded import load_model
    from workers.engine.model.loss import nll
    from workers.engine.model.reading import load_tokens
    from workers.engine.model.windows import measured_windows
    from workers.engine.pipeline import compress
    from workers.engine.planning.plan import feasible
    from workers.engine.sources.resolve import Sources, resolve_model
    from workers.engine.spec import CompressionSpec
    from workers.engine.stages.load import load
    from workers.engine.stages.tune import tune
    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.training.text import training_text

    torch.set_num_threads(1)
    spec, sources = CompressionSpec.model_validate(run["spec"]), Sources(Path(run["models"]), ROOT / "examples/data")
    dense = load(spec, feasible(spec, resolve_model(spec.model, sources), sources))
    found: dict[str, Any] = {}
    if run.get("prune"):
        compress(spec, folder, sources, Silent(), folder / "checkpoint")
    else:
        assert spec.tune is not None
        text, meter = training_text("tune", spec.tune, dense, sources), _Meter()
        assert text is not None
        running, window_T = Run.of(Checkpoint(folder / "checkpoint"), meter), text.holdout_NT[0].to(dense.device)
        report, _ = tune(spec, dense, folder / "model", text, running, window_T)
        tokens = report.steps * spec.tune.batch * spec.tune.sequence_length
        losses = f"{report.curve[0].holdout_loss:.4f} to {report.holdout_loss_after:.4f}"
        found = {"trained": report.trained_parameters, "speed": tokens / meter.seconds, "peak": meter.peak}
        found["losses"] = losses
    if not run["read"]:
        return found | {"perplexity": None}
    windows = measured_windows(
        PerplexityParams(**HELD_OUT),
        lambda ref, wanted: load_tokens(ref, dense.tokenizer, sources, "/evaluate/0", wanted),
        "/evaluate/0",
    )
    model = load_model(folder / "model", dense.device, torch.float32)
    with torch.inference_mode():
        return found | {"perplexity": torch.cat([nll(model, ids[None]) for ids in windows.ids_NL]).mean().exp().item()}


if __name__ == "__main__":
    main()

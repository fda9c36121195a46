"""Which learning rate to tune at: pruned models tuned at several rates, read on books that are not the tuned text.

    python -m benchmarks.rates [--steps 200] [--batch 4] [--sequence-length 128] [--only lora]

Each run is a line of docs/rates.jsonl, kept as it comes; an interrupted run goes on where it was. A line holds the mean
loss of each of the five held-out books, eight windows of 512 tokens each: the first two choose a rate, the other three
say what it gives.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cells import known, measured

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/rates.jsonl"
BOOKS, WINDOWS, LENGTH = 5, 8, 512
CHOSEN_BY = 2
"""So many books choose, the others report."""
PRUNED: dict[str, dict[str, Any]] = {
    "structured 20 %": {"score": {"method": "taylor"}, "prune": {"method": "structured", "sparsity": 0.2}},
    "wanda 50 %": {"score": {"method": "wanda"}, "prune": {"method": "mask", "sparsity": 0.5}},
}
RATES = {
    "full": (3e-5, 1e-4, 3e-4),
    "last_layers": (1e-4, 3e-4, 1e-3),
    "lora": (3e-4, 1e-3, 3e-3),
    "group": (1e-3, 3e-3, 1e-2),
}
DISTILL = (1.0, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--only", default="", help="runs whose key holds this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    arguments = parser.parse_args()
    size = {"steps": arguments.steps, "batch": arguments.batch, "sequence_length": arguments.sequence_length}
    keys: list[dict[str, Any]] = [{"pruned": name, "tune": "none"} for name in PRUNED]
    for distill in DISTILL:
        for name in PRUNED:
            for method, rates in RATES.items():
                keys += [{"pruned": name, "tune": method, "rate": rate, "distill": distill, **size} for rate in rates]
    wanted = [(key, key) for key in keys]
    for row in measured(wanted, measure, RESULTS, only=arguments.only, processes=arguments.processes):
        print(shown(row), flush=True)
    print("\n".join(sorted(map(shown, known(RESULTS)))))


def measure(key: dict[str, Any]) -> dict[str, Any]:
    """Prune, tune and read the books once."""
    import torch

    from workers.engine.events import Silent
    from workers.engine.model.loaded import load_model
    from workers.engine.model.loss import nll
    from workers.engine.pipeline import compress
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec

    torch.set_num_threads(1)
    tune = None
    if key["tune"] != "none":
        names = ("steps", "batch", "sequence_length")
        tune = {"method": key["tune"], "dataset": "calibration.txt", "learning_rate": key["rate"]}
        tune |= {name: key[name] for name in names}
        tune |= {"distill": key["distill"] and {"weight": key["distill"]}}
        tune |= {"bits": 16} if key["tune"] == "group" else {}
    spec = {
        "model": {"id": "bookworm-7m"},
        "calibrate": {"dataset": "calibration.txt", "samples": 16, "sequence_length": 512},
        "tune": tune,
        **PRUNED[key["pruned"]],
    }
    with tempfile.TemporaryDirectory() as folder:
        sources = Sources(ROOT / "examples/models", ROOT / "examples/data")
        parsed = CompressionSpec.model_validate(spec)
        report = compress(parsed, Path(folder), sources, Silent(), Path(folder) / "checkpoint")
        model = load_model(Path(folder) / "model", torch.device("cpu"), torch.float32)
        with torch.inference_mode():
            losses = [nll(model, window_BT).mean().item() for window_BT in book_windows()]
    cpu_s = sum(stage.cpu_s or 0.0 for stage in report.stages if stage.stage == "tune")
    return {"losses": [round(loss, 6) for loss in losses], "cpu_s": round(cpu_s)}


def book_windows() -> list[Any]:
    """int64 [WINDOWS, LENGTH] of each book, evenly spaced over it."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/models/bookworm-7m")
    text = (ROOT / "examples/data/heldout.txt").read_text(encoding="utf-8")
    size, found = len(text) // BOOKS, []
    for start in range(0, size * BOOKS, size):
        ids_T = torch.tensor(tokenizer(text[start : start + size], verbose=False)["input_ids"])
        apart = len(ids_T) // WINDOWS
        found.append(torch.stack([ids_T[at : at + LENGTH] for at in range(0, apart * WINDOWS, apart)]))
    return found


def shown(row: dict[str, Any]) -> str:
    chosen_by, reported = (math.exp(statistics.fmean(part)) for part in (row["losses"][:2], row["losses"][2:]))
    size = f"{row['steps']} x {row['batch']} x {row['sequence_length']}" if "steps" in row else ""
    return (
        f"{row['pruned']} | {row['tune']} | {size} | distill {row.get('distill')} | {row.get('rate', '')} | "
        f"{chosen_by:.3f} | {reported:.3f} | {row['cpu_s']} s"
    )


if __name__ == "__main__":
    main()

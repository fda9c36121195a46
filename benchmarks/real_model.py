"""Pruners, allocators and smaller shapes on SmolLM2-135M-Instruct (30 blocks): a table for docs/methods.md.

    python -m benchmarks.real_model [--only wanda] [--processes 2]      or: make methods-real

Makes the model on the first run (`benchmarks.smollm2`). Each finished cell is a line of docs/real_model.jsonl, kept as
it comes: an interrupted run goes on where it was. A line holds the loss of every window, so the intervals of the table
are those of paired differences, window by window. Lower is better. N = windows, T = tokens of one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from benchmarks.cells import folders, known, measured

ROOT = Path(__file__).parents[1]
DOC, RESULTS = ROOT / "docs/methods.md", ROOT / "docs/real_model.jsonl"
CACHE = ROOT / ".espalier/real-model"
MODEL = "smollm2-135m"
CALIBRATION, LENGTH = 16, 1024
WINDOWS = {"WikiText-2": 16, "books": 10}
"""Windows of LENGTH tokens read of each text, evenly spaced over all of it: of many articles, and two of each book."""
TUNE = {
    "method": "lora", "dataset": "calibration.txt", "steps": 60, "batch": 4, "sequence_length": 256,
    "learning_rate": 3e-4, "distill": {"weight": 1.0},
}  # fmt: skip

WANDA = {"score": {"method": "wanda"}, "prune": {"method": "mask"}}
SOLVERS = {name: {"prune": {"method": name}} for name in ("sparsegpt", "mrp", "fista")}
MASKS = {name: {"score": {"method": name}, "prune": {"method": "mask"}} for name in ("magnitude", "ria")}
DSNOT = {"wanda + dsnot": WANDA | {"refine": {"method": "dsnot"}}}
PRUNERS: dict[str, dict[str, Any]] = {"wanda": WANDA, **SOLVERS, **MASKS, **DSNOT}
UNITS = {"prune": {"method": "structured"}}
SHAPES: dict[str, dict[str, Any]] = {
    "taylor": {"score": {"method": "taylor"}, **UNITS},
    "saap": {"score": {"method": "saap"}, **UNITS},
    "saap, ranking": {"score": {"method": "saap"}, "allocate": {"method": "ranking"}, **UNITS},
    "block_influence, depth": {"score": {"method": "block_influence"}, "prune": {"method": "depth"}},
    "wanda, hidden": {"score": {"method": "wanda"}, "prune": {"method": "hidden"}},
}


def cells() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(key, spec without model) of every cell, in the order in which they are worth having."""
    for target in (0.6, 0.7):
        for pruner in ("wanda", "sparsegpt"):
            for allocator in ("uniform", "alpha_pruning", "owl"):
                yield masked(pruner, allocator, {"sparsity": target})
    for name, parts in SHAPES.items():
        yield shaped(name, parts, None)
    for target in ({"sparsity": 0.5}, {"pattern": "2:4"}):
        for pruner in ("wanda", "magnitude", "sparsegpt", "mrp"):
            yield masked(pruner, "uniform", target)
    for name in ("taylor", "block_influence, depth"):
        yield shaped(name, SHAPES[name], TUNE)
    for target in (0.6, 0.7):
        yield masked("mrp", "uniform", {"sparsity": target})
        yield masked("mrp", "alpha_pruning", {"sparsity": target})
    for pruner, target in (("wanda", 0.6), ("sparsegpt", 0.7)):
        yield masked(pruner, "auto", {"sparsity": target})
    for allocator in ("uniform", "alpha_pruning", "owl"):
        yield masked("wanda", allocator, {"sparsity": 0.6}, seed=1)
    for target in ({"sparsity": 0.5}, {"pattern": "2:4"}):
        for pruner in ("ria", "wanda + dsnot"):
            yield masked(pruner, "uniform", target)
    # What follows measures its allocation by trial prunings or probes, or solves for weights: an hour a cell, some.
    for target in (0.6, 0.7):
        for pruner in ("wanda", "sparsegpt"):
            for allocator in ("atp", "isc"):
                yield masked(pruner, allocator, {"sparsity": target})
    yield masked("wanda", "search", {"sparsity": 0.7})
    for target in ({"sparsity": 0.5}, {"pattern": "2:4"}):
        yield masked("fista", "uniform", target)


def masked(pruner: str, allocator: str, target: dict[str, Any], seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = PRUNERS[pruner]
    asked = target.get("pattern") or f"{target['sparsity']:.0%}"
    key = {"pruner": pruner, "allocator": allocator, "target": asked, "seed": seed}
    spec = parts | {"allocate": {"method": allocator}, "prune": parts["prune"] | target}
    return key, spec | {"calibrate": calibrate(seed)}


def shaped(name: str, parts: dict[str, Any], tune: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    key = {"pruner": name, "allocator": "tuned" if tune else "", "target": "20% smaller", "seed": 0}
    spec = parts | {"prune": parts["prune"] | {"sparsity": 0.2}, "tune": tune}
    return key, spec | {"calibrate": calibrate(0)}


def calibrate(seed: int) -> dict[str, Any]:
    return {"dataset": "calibration.txt", "samples": CALIBRATION, "sequence_length": LENGTH, "seed": seed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose key holds this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="cells at a time, one thread each")
    parser.add_argument("--wikitext", type=Path, help="the test split as a text file; else it comes from the hub")
    arguments = parser.parse_args()
    models = CACHE / "models"
    if not (models / MODEL / "config.json").exists():
        from benchmarks.smollm2 import write as make

        make(models / MODEL)
    texts = CACHE / "windows.json"
    if not texts.exists():
        texts.write_text(json.dumps(windows(models / MODEL, arguments.wikitext)))
    wanted = [({"pruner": "dense"}, None), *cells()]
    for row in measured(wanted, measure, RESULTS, only=arguments.only, processes=arguments.processes):
        print(shown(row), flush=True)
        write(known(RESULTS))


def windows(model: Path, wikitext: Path | None) -> dict[str, list[list[int]]]:
    """Token ids of the windows of each text: text -> N lists of T."""
    from transformers import AutoTokenizer

    if wikitext is None:
        from datasets import load_dataset

        rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"]
        wiki = "\n\n".join(rows)
    else:
        wiki = wikitext.read_text(encoding="utf-8")
    texts = {"WikiText-2": wiki, "books": (ROOT / "examples/data/heldout.txt").read_text(encoding="utf-8")}
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = {}
    for name, text in texts.items():
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        apart = len(ids) // WINDOWS[name]
        found[name] = [ids[start : start + LENGTH] for start in range(0, apart * WINDOWS[name], apart)]
    return found


def measure(spec: dict[str, Any] | None) -> dict[str, Any]:
    """Compress once (None: not at all), and read the windows. Times are processor seconds."""
    import torch

    from workers.engine.events import Silent
    from workers.engine.pipeline import compress
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec

    torch.set_num_threads(1)
    models = CACHE / "models"
    if spec is None:
        return {"losses": losses(models / MODEL)}
    asked = CompressionSpec.model_validate({"model": {"id": MODEL}, **spec})
    with folders(CACHE, spec) as (folder, points, resumed):
        sources = Sources(models, ROOT / "examples/data")
        report = compress(asked, folder, sources, Silent(), points, CACHE / "measured")
        cpu_s = {stage.stage: stage.cpu_s or 0.0 for stage in report.stages}
        return {
            "sparsity": report.sparsity,
            "parameters": report.parameters_after,
            "cpu_s": {name: round(seconds, 1) for name, seconds in cpu_s.items()},
            "resumed": resumed,
            "losses": losses(folder / "model"),
        }


def losses(folder: Path) -> dict[str, list[float]]:
    """Mean negative log-likelihood of each window's T - 1 predictions, in nats."""
    import torch

    from workers.engine.model.loaded import load_model
    from workers.engine.model.loss import nll

    texts = json.loads((CACHE / "windows.json").read_text())
    model = load_model(folder, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        return {
            name: [round(nll(model, torch.tensor([ids])).item(), 6) for ids in windows_NT]
            for name, windows_NT in texts.items()
        }


def perplexity(losses_N: list[float]) -> float:
    return math.exp(statistics.fmean(losses_N))


def half_width(losses_N: list[float], dense_N: list[float]) -> float:
    """Of the 95 % interval of ln(perplexity / dense), over windows, by Student's t."""
    differences = [loss - dense for loss, dense in zip(losses_N, dense_N, strict=True)]
    return student.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))


def shown(row: dict[str, Any]) -> str:
    key = " ".join(str(value) for name, value in row.items() if name in ("pruner", "allocator", "target", "seed"))
    return f"{time.strftime('%H:%M')} {key}: " + ", ".join(
        f"{text} {perplexity(found):.2f}" for text, found in row["losses"].items()
    )


def write(results: list[dict[str, Any]]) -> None:
    """Put the table between its markers in docs/methods.md."""
    text = DOC.read_text()
    begin, end = "<!-- table: make methods-real -->\n", "<!-- /real -->"
    if begin in text:
        head, rest = text.split(begin, 1)
        DOC.write_text(head + begin + table(results) + end + rest.split(end, 1)[1])


def table(results: list[dict[str, Any]]) -> str:
    dense = next((row for row in results if row["pruner"] == "dense"), None)
    if dense is None:
        return ""
    lines = [
        "| target | pruner | allocation | " + " | ".join(WINDOWS) + " | processor minutes |",
        "|---|---|---|" + "---:|" * (len(WINDOWS) + 1),
        "| | dense | | " + " | ".join(f"{perplexity(dense['losses'][text]):.2f}" for text in WINDOWS) + " | |",
    ]
    for key, _ in cells():
        row = next((found for found in results if key.items() <= found.items()), None)
        name = key["allocator"] + (f", seed {key['seed']}" if key["seed"] else "")
        numbers = ["·"] * (len(WINDOWS) + 1) if row is None else [*_numbers(row, dense)]
        lines.append(f"| {key['target']} | {key['pruner']} | {name} | " + " | ".join(numbers) + " |")
    return "\n".join(lines) + "\n"


def _numbers(row: dict[str, Any], dense: dict[str, Any]) -> Iterator[str]:
    for text in WINDOWS:
        losses_N = row["losses"][text]
        yield f"{perplexity(losses_N):.1f} ± {100 * half_width(losses_N, dense['losses'][text]):.0f} %"
    # Of a cell that went on from resume points only the last attempt was timed.
    yield "·" if row.get("resumed") else f"{sum(row['cpu_s'].values()) / 60:.1f}"


if __name__ == "__main__":
    main()

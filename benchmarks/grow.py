"""Ways of adding blocks to the shipped model, before and after training: a table for docs/methods.md.

    python -m benchmarks.grow [--only lesa] [--processes 2]      or: make methods

`8 to 12` adds four blocks; `6 to 8` puts two blocks in the places of two that depth pruning dropped before. Each
finished cell is a line of docs/grow.jsonl, kept as it comes: an interrupted run goes on where it was. Times are
processor seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.cells import known, measured

ROOT = Path(__file__).parents[1]
DOC, RESULTS = ROOT / "docs/methods.md", ROOT / "docs/grow.jsonl"
CACHE = ROOT / ".espalier/grow"
MODEL = "bookworm-7m"
FEWER = "bookworm-6-blocks"
"""The shipped model without the two blocks of the least influence, made on the first run."""
LENGTH, PER_BOOK = 512, 8
"""Perplexity is over the first eight windows of each of the five books of `heldout.jsonl`."""
SEEDS = range(3)
TRAINED: dict[str, dict[str, Any] | None] = {
    "none": None,
    "new blocks": {"train": "new_blocks"},
    "all": {"train": "all"},
}
FULL = {
    "method": "full", "dataset": "calibration.txt", "steps": 200, "batch": 2, "sequence_length": 128,
    "evaluate_every": 50, "distill": None,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "lesa": {"method": "lesa"},
    "interpolate": {"method": "interpolate"},
    "duplicate": {"method": "duplicate", "place": "stack"},
    "duplicate, identity": {"method": "duplicate", "identity": True},
    "lesa, vectors mean": {"method": "lesa", "vectors": "mean"},
    "lesa, even": {"method": "lesa", "place": "even"},
    "lesa, rescale": {"method": "lesa", "rescale": True},
    "lesa, mean, even, rescale": {"method": "lesa", "vectors": "mean", "place": "even", "rescale": True},
    "interpolate, even": {"method": "interpolate", "place": "even"},
    "duplicate, end": {"method": "duplicate", "place": "end"},
    "duplicate, even": {"method": "duplicate", "place": "even"},
}
FIRST = tuple(METHODS)[:4]
"""The methods that are trained; of the others only the start is measured."""
UNSEEDED = ("interpolate", "duplicate")
"""Methods whose start has nothing random."""


def cells() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(key, what `measure` takes) of every cell, in the order in which they are worth having."""
    for task in ("8 to 12", "6 to 8"):
        yield cell(task, "nothing added", "none", 0)
        yield from (cell(task, name, "none", 0) for name in FIRST)
    for seed in SEEDS:
        for task in ("8 to 12", "6 to 8"):
            yield from (cell(task, name, "new blocks", seed) for name in FIRST)
            yield from (cell(task, name, "none", seed) for name in FIRST if seed in seeds(name) and seed)
        yield cell("6 to 8", "nothing added", "all", seed)
    for name in METHODS:
        if name not in FIRST:
            yield from (cell("8 to 12", name, "none", seed) for seed in seeds(name))
    for task in ("8 to 12", "6 to 8"):
        yield from (cell(task, name, "all", seed) for seed in SEEDS for name in FIRST)


def seeds(name: str) -> Iterable[int]:
    """Those that make a difference to the start."""
    return SEEDS[:1] if name.startswith(UNSEEDED) else SEEDS


def cell(task: str, name: str, trained: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    key = {"task": task, "method": name, "trained": trained, "seed": seed}
    tune = TRAINED[trained]
    tuning = None if tune is None else FULL | {"seed": seed} | tune
    if name == "nothing added":
        edit: dict[str, Any] = {"prune": {"method": "mask", "sparsity": 0.0}, "score": {"method": "magnitude"}}
    else:
        edit = {"grow": dict(METHODS[name])}
    return key, {"task": task, "spec": {**edit, "tune": tuning, "seed": seed}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose key holds this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="cells at a time, one thread each")
    arguments = parser.parse_args()
    if not (CACHE / FEWER).exists():
        fewer()
    for row in measured([*cells()], measure, RESULTS, only=arguments.only, processes=arguments.processes):
        print({name: value for name, value in row.items() if name != "predictions"}, flush=True)
        write(known(RESULTS))


def fewer() -> None:
    """Drop two blocks of the shipped model, and note which."""
    spec = {
        "calibrate": {"dataset": "calibration.txt", "samples": 16, "sequence_length": 512},
        "score": {"method": "block_influence"},
        "prune": {"method": "depth", "layers": 2},
    }
    compressed(MODEL, spec, CACHE / "fewer")
    (CACHE / "fewer/model").rename(CACHE / FEWER)


def compressed(model: str, spec: dict[str, Any], folder: Path) -> Any:
    """The report of a job, whose model is written to `folder/model`."""
    import torch

    from workers.engine.events import Silent
    from workers.engine.pipeline import compress
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec

    torch.set_num_threads(1)
    sources = Sources(CACHE if model == FEWER else ROOT / "examples/models", ROOT / "examples/data")
    asked = CompressionSpec.model_validate({"model": {"id": model}, **spec})
    return compress(asked, folder, sources, Silent(), folder / "checkpoint", CACHE / "measured")


def gaps() -> list[int]:
    """The blocks of the smaller model after which two were dropped; of two neighbours the second goes one further."""
    layers = json.loads((CACHE / FEWER / "report.json").read_text())["layers"]
    gone = sorted({layer["block"] for layer in layers if layer["shape"] == [0, 0]})
    kept = sorted({layer["block"] for layer in layers} - {*gone})
    found: list[int] = []
    for block in gone:
        before = max(0, sum(other < block for other in kept) - 1)
        found.append(max(before, found[-1] + 1) if found else before)
    return found


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Grow once. Perplexities are of the result; losses of the training are in nats, before and after."""
    spec, back = given["spec"], given["task"] == "6 to 8"
    if grow := spec.get("grow"):
        place = {"after": gaps()} if back else {"layers": 4}
        kept = {name: value for name, value in grow.items() if not (back and name == "place")}
        spec = spec | {"grow": kept | place}
    with tempfile.TemporaryDirectory() as folder:
        report = compressed(FEWER if back else MODEL, spec, Path(folder))
        perplexity = perplexity_of(Path(folder) / "model")
    return {
        "perplexity": perplexity,
        "parameters": report.parameters_after,
        "losses": report.tune and [report.tune.holdout_loss_before, report.tune.holdout_loss_after],
        "after": report.spec["grow"] and [new.like for new in report.growth.blocks],
        "predictions": [
            [p.tensor, round(p.error, 4), round(p.error_of_mean, 4)]
            for p in (report.growth.predictions if report.growth else ())
        ],
        "cpu_s": {stage.stage: round(stage.cpu_s or 0.0, 1) for stage in report.stages},
    }


def perplexity_of(folder: Path) -> float:
    """Over all books together."""
    import torch
    from transformers import AutoTokenizer

    from workers.engine.model.loaded import load_model
    from workers.engine.model.loss import nll

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_model(folder, torch.device("cpu"), torch.float32)
    losses: list[float] = []
    for line in (ROOT / "examples/data/heldout.jsonl").read_text(encoding="utf-8").splitlines():
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, PER_BOOK * LENGTH, LENGTH):
            with torch.inference_mode():
                losses.append(nll(model, torch.tensor([ids[start : start + LENGTH]])).item())
    return math.exp(statistics.fmean(losses))


def write(results: list[dict[str, Any]]) -> None:
    """Put the table between its markers in docs/methods.md."""
    text = DOC.read_text()
    begin, end = "<!-- table: benchmarks.grow -->\n", "<!-- /grow -->"
    if begin in text:
        head, rest = text.split(begin, 1)
        DOC.write_text(head + begin + table(results) + end + rest.split(end, 1)[1])


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| blocks | made by | at the start | new blocks trained | all trained | its own text, new blocks trained |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for task in ("8 to 12", "6 to 8"):
        for name in ("nothing added", *METHODS):
            rows = [row for row in results if (row["task"], row["method"]) == (task, name)]
            if not rows:
                continue
            own = [row["losses"][1] for row in rows if row["trained"] == "new blocks"]
            numbers = [_over_seeds(row["perplexity"] for row in rows if row["trained"] == how) for how in TRAINED]
            cells_ = [
                task,
                f"{name}"
                if name == "nothing added"
                else f"`{name.partition(',')[0]}`{name[len(name.partition(',')[0]) :]}",
            ]
            lines.append(f"| {' | '.join([*cells_, *numbers, _over_seeds(own, 4)])} |")
    return "\n".join(lines) + "\n"


def _over_seeds(values: Any, digits: int = 2) -> str:
    """`35.42`, or `35.42 (35.10 to 35.80)` of several: their mean and range; a dot for none."""
    found = sorted(values)
    if not found:
        return "·"
    mean = f"{statistics.fmean(found):.{digits}f}"
    return mean if len(found) == 1 else f"{mean} ({found[0]:.{digits}f} to {found[-1]:.{digits}f})"


if __name__ == "__main__":
    main()

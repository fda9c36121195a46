"""Every pruner with every allocator on the shipped model: held-out perplexity and processor time, for docs/methods.md.

    python -m benchmarks.methods [--only '"pruner": "wanda"'] [--processes 2]      or: make methods

Results are kept in docs/methods.jsonl as they come: an interrupted run goes on where it was, and what is there is not
measured again. All of it takes hours on two cores. Lower is better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cells import known, measured
from workers.engine.contracts.params import Stat
from workers.engine.registry import defaults, methods
from workers.engine.spec import CompressionSpec

ROOT = Path(__file__).parents[1]
DOC, RESULTS = ROOT / "docs/methods.md", ROOT / "docs/methods.jsonl"
CACHE = ROOT / ".espalier/methods-cache"
WINDOWS = 16
"""Of calibration, LENGTH tokens each."""
LENGTH = 512
HELD_OUT = {"method": "perplexity", "dataset": "heldout.jsonl", "sequence_length": LENGTH, "per_document": 8}
"""The first eight windows of each of five books. A result of another text is measured again: `text` is in its key."""
TEXT = "heldout.jsonl, 8 of each"
TARGETS: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "60 %": {"sparsity": 0.6},
    "70 %": {"sparsity": 0.7},
    "80 %": {"sparsity": 0.8},
    "2:4": {"pattern": "2:4"},
    "4:8": {"pattern": "4:8"},
}


SEEDS = range(3)
"""Of allocations that draw numbers, where `SEEDED` pruners and targets are concerned; elsewhere only the first."""
SEEDED = {"wanda", "sparsegpt"}, {"60 %", "70 %"}
DRAWING = {method.name for method in methods("allocate") if Stat.CURVATURE in method.needs}
ALLOCATORS = [
    method.name
    for method in methods("allocate")
    # One that takes the best of others has no column of its own.
    if Stat.UNIT_SCORES not in method.needs and not defaults("allocate", method.name).compares
]


def pruners() -> dict[str, dict[str, Any]]:
    """Name -> the parts of a spec that make it: every score with the pruners that need one, every refinement of the
    default score, and the pruners that choose by themselves."""
    found: dict[str, dict[str, Any]] = {}
    for pruner in methods("prune"):
        if "weight" not in pruner.units:
            continue
        if pruner.scores != "required":
            found[pruner.name] = {"prune": {"method": pruner.name}}
            continue
        for scorer in methods("score"):
            if "weight" not in scorer.units:
                continue
            found[scorer.name] = {"score": {"method": scorer.name}, "prune": {"method": pruner.name}}
        for refiner in methods("refine"):
            parts = {"score": {"method": "wanda"}, "refine": {"method": refiner.name}}
            found[f"wanda + {refiner.name}"] = parts | {"prune": {"method": pruner.name}}
    return found


def runs() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(key, spec) of every cell."""
    for target, kept in TARGETS.items():
        for name, parts in pruners().items():
            for allocator in ALLOCATORS:
                several = allocator in DRAWING and name in SEEDED[0] and target in SEEDED[1]
                for seed in SEEDS if several else SEEDS[:1]:
                    key = {"target": target, "pruner": name, "allocator": allocator, "windows": WINDOWS, "seed": seed}
                    yield (
                        key | {"text": TEXT},
                        {
                            "model": {"id": "bookworm-7m"},
                            "calibrate": {"dataset": "calibration.txt", "samples": WINDOWS, "sequence_length": LENGTH},
                            "allocate": {"method": allocator},
                            **parts,
                            "prune": parts["prune"] | kept,
                            "evaluate": [HELD_OUT],
                            "seed": seed,
                        },
                    )


def measure(parts: dict[str, Any]) -> dict[str, Any]:
    """Prune once and read the held-out text once."""
    import torch

    from workers.engine.events import Silent
    from workers.engine.pipeline import compress
    from workers.engine.sources.resolve import Sources
    from workers.engine.stages.evaluate import DENSE_MEASUREMENTS
    from workers.engine.store.checkpoint import Checkpoint

    torch.set_num_threads(1)  # one run a core
    spec = CompressionSpec.model_validate(parts)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "checkpoint")
        dense = CACHE / f"{TEXT}.json"
        if dense.exists():  # the same model on the same text, every time
            checkpoint.save_json(DENSE_MEASUREMENTS, json.loads(dense.read_text()))
        sources = Sources(ROOT / "examples/models", ROOT / "examples/data")
        report = compress(spec, Path(folder), sources, Silent(), checkpoint.directory, CACHE)
        if not dense.exists():
            kept = dense.with_suffix(f".{os.getpid()}")
            kept.write_text(json.dumps(checkpoint.load_json(DENSE_MEASUREMENTS)))
            kept.replace(dense)
    cpu_s = {stage.stage: stage.cpu_s or 0.0 for stage in report.stages}
    metric = report.metrics[0]
    return {
        "perplexity": metric.pruned,
        "dense": metric.dense,
        "sparsity": report.sparsity,
        "allocate_s": cpu_s["allocate"],
        "prune_s": sum(cpu_s.get(stage, 0.0) for stage in ("calibrate", "prune", "score", "refine")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose key holds this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="cells at a time, one thread each")
    arguments = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    cells = list(runs())
    for row in measured(cells, measure, RESULTS, only=arguments.only, processes=arguments.processes):
        print(row, flush=True)
    if found := [row for row in known(RESULTS) if any(key.items() <= row.items() for key, _ in cells)]:
        write(found)


def write(results: list[dict[str, Any]]) -> None:
    """Put the tables between the markers of docs/methods.md."""
    text = DOC.read_text()
    begin, end = "<!-- table: make methods -->\n", "<!-- /table -->"
    head, rest = text.split(begin, 1)
    _, tail = rest.split(end, 1)
    DOC.write_text(head + begin + tables(results) + end + tail)


def tables(results: list[dict[str, Any]]) -> str:
    import torch

    of_key: dict[tuple[str, str, str], list[float]] = {}
    for r in results:
        of_key.setdefault((r["target"], r["pruner"], r["allocator"]), []).append(r["perplexity"])
    by_key = {key: statistics.mean(found) for key, found in of_key.items()}
    lines = [
        f"bookworm-7m, {WINDOWS} x {LENGTH} calibration tokens, eight windows of each of five held-out books,",
        f"torch {torch.__version__}, {platform.machine()} CPU, one thread a run.",
        f"Dense perplexity {results[0]['dense']:.2f}. Bold: best of a row;",
        "underlined: best of a table; a dot: not run yet.\n",
    ]
    for (target, pruner, allocator), found in of_key.items():
        if len(found) > 1:
            lines.append(
                f"- {pruner}, `{allocator}`, {target}: mean of {len(found)} seeds, {min(found):.2f} to {max(found):.2f}"
            )
    for target in TARGETS:
        best = min((value for key, value in by_key.items() if key[0] == target), default=None)
        if best is None:
            continue
        lines += [f"\n### {target}\n", "| pruner | " + " | ".join(f"`{a}`" for a in ALLOCATORS) + " |"]
        lines.append("|---|" + "---:|" * len(ALLOCATORS))
        for pruner in pruners():
            row = [by_key.get((target, pruner, allocator)) for allocator in ALLOCATORS]
            found = [value for value in row if value is not None]
            if found:
                cells = [_cell(value, value == min(found), value == best) for value in row]
                lines.append(f"| {pruner} | " + " | ".join(cells) + " |")
    lines += [
        "\n### Seconds\n",
        "Of processor time; median over the targets, but for allocators.\n",
        "| pruner | prune |",
        "|---|---:|",
    ]
    for pruner in pruners():
        if of := [r["prune_s"] for r in results if r["pruner"] == pruner]:
            lines.append(f"| {pruner} | {statistics.median(of):.1f} |")
    lines += ["\n| allocator | allocate, first time | again, with what was measured kept |", "|---|---:|---:|"]
    for allocator in ALLOCATORS:
        if of := [r["allocate_s"] for r in results if r["allocator"] == allocator]:
            first = (
                f"{max(of):.1f}" if allocator not in DRAWING or max(of) > 1 else "·"
            )  # its probes were there already
            lines.append(f"| `{allocator}` | {first} | {min(of):.1f} |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, best_of_row: bool, best_of_table: bool) -> str:
    if value is None:
        return "·"
    text = f"{value:.2f}" if value < 1000 else f"{value:.0f}"
    text = f"**{text}**" if best_of_row else text
    return f"<u>{text}</u>" if best_of_table else text


if __name__ == "__main__":
    main()

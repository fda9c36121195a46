"""Smaller shapes on the shipped model, before and after tuning: perplexity, parameters, speed, for docs/methods.md.

    python -m benchmarks.structured [--only '"measured": "lora"'] [--processes 2]      or: make methods

Results are kept in docs/structured.jsonl as they come, as those of `benchmarks.methods` are.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cells import known, measured

ROOT = Path(__file__).parents[1]
DOC, RESULTS = ROOT / "docs/methods.md", ROOT / "docs/structured.jsonl"
PPL, DECODE = "perplexity/heldout.jsonl", "generation_speed/decode"
SPARSITIES = (0.2, 0.35, 0.5)
SEEDS = range(5)
TEXT = {"dataset": "calibration.txt", "batch": 4, "sequence_length": 128, "steps": 200}
TUNES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "group": {"method": "group", "bits": 16, **TEXT},
    "lora": {"method": "lora", **TEXT},
    "last_layers": {"method": "last_layers", **TEXT},
}
PERPLEXITY = {"method": "perplexity", "dataset": "heldout.jsonl", "sequence_length": 512, "per_document": 8}
"""The first eight windows of each of five books. A result of another text is measured again: `text` is in its key."""
BOOKS = "heldout.jsonl, 8 of each"
CACHE = ROOT / ".espalier/methods-cache"
SPEED = {"method": "generation_speed", "prompt_tokens": 64, "new_tokens": 64}
SHAPED_AS = {name: name for name in ("saap, ranking", "wanda, hidden", "block_influence")}
"""Rows whose shapes, and so speed, are their own; all others have taylor's. Measured last: the machine must be idle."""


UNTRIED = ("wanda, hidden", "group")
"""No group divides the 205 or 166 dimensions that are left."""


def rows() -> dict[str, dict[str, Any]]:
    """Name -> the parts of a spec that remove something, but for how much."""
    units = {"prune": {"method": "structured"}}
    found: dict[str, dict[str, Any]] = {
        name: {"score": {"method": name}, **units} for name in ("saap", "taylor", "wanda", "magnitude")
    }
    found |= {f"random {seed}": {"score": {"method": "random", "seed": seed}, **units} for seed in SEEDS}
    found["saap, ranking"] = {
        "score": {"method": "saap"},
        "allocate": {"method": "ranking"},
        "prune": {"method": "structured", "channel_multiple": 32},  # so that `group` can divide all widths
    }
    found["wanda, hidden"] = {"score": {"method": "wanda"}, "prune": {"method": "hidden"}}
    found["block_influence"] = {"score": {"method": "block_influence"}, "prune": {"method": "depth"}}
    return found


def runs() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for sparsity in SPARSITIES:
        for name, parts in rows().items():
            for tune, params in TUNES.items():
                if tune != "none" and name.startswith("random") and name != "random 0":
                    continue
                if (name, tune) == UNTRIED:
                    continue
                if tune == "group" and sparsity == 0.35:  # leaves 432 channels
                    params = params | {"group_size": 16}
                spec = parts | {"prune": parts["prune"] | {"sparsity": sparsity}, "tune": params}
                key = {"sparsity": sparsity, "row": name, "measured": tune, "text": BOOKS}
                yield key, spec | {"evaluate": [PERPLEXITY]}
    for sparsity in SPARSITIES:
        for name in ("taylor", *SHAPED_AS):
            parts = rows()[name]
            spec = parts | {"prune": parts["prune"] | {"sparsity": sparsity}, "evaluate": [SPEED]}
            yield {"sparsity": sparsity, "row": name, "measured": "speed"}, spec


def measure(parts: dict[str, Any]) -> dict[str, Any]:
    """Remove, tune and measure once."""
    import torch

    from workers.engine.events import Silent
    from workers.engine.pipeline import compress
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec

    torch.set_num_threads(1)
    spec = CompressionSpec.model_validate(
        {
            "model": {"id": "bookworm-7m"},
            "calibrate": {"dataset": "calibration.txt", "samples": 16, "sequence_length": 512},
            **parts,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        sources = Sources(ROOT / "examples/models", ROOT / "examples/data")
        report = compress(spec, Path(folder), sources, Silent(), Path(folder) / "checkpoint", CACHE)
    found = {metric.name: {"dense": metric.dense, "pruned": metric.pruned} for metric in report.metrics}
    return {"removed": report.sparsity, "parameters": report.parameters_after, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose key holds this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="cells at a time, one thread each")
    arguments = parser.parse_args()
    cells = list(runs())
    timed = [cell for cell in cells if cell[0]["measured"] == "speed"]
    others = [cell for cell in cells if cell not in timed]
    for wanted, processes in ((others, arguments.processes), (timed, 1)):  # what is timed has the machine to itself
        for row in measured(wanted, measure, RESULTS, only=arguments.only, processes=processes):
            print(row, flush=True)
    if any(PPL in row for row in known(RESULTS)):
        write(known(RESULTS))


def write(results: list[dict[str, Any]]) -> None:
    """Put the table between its markers in docs/methods.md."""
    text = DOC.read_text()
    begin, end = "<!-- table: structured -->\n", "<!-- /structured -->"
    head, rest = text.split(begin, 1)
    DOC.write_text(head + begin + table(results) + end + rest.split(end, 1)[1])


def table(results: list[dict[str, Any]]) -> str:
    import torch

    results = [r for r in results if r.get("text") == BOOKS or r["measured"] == "speed"]
    found = {(r["sparsity"], r["row"], r["measured"]): r for r in results}
    dense = next(r[PPL]["dense"] for r in results if PPL in r)
    lines = [
        "bookworm-7m, 16 x 512 calibration tokens, 8 windows of each of five books, decoding 64 tokens after 64;",
        f"torch {torch.__version__}, {platform.machine()} CPU, one thread.",
        f"Dense perplexity {dense:.2f}. Tuned: 200 steps of 4 x 128 tokens. A dot: not run yet.\n",
        "| asked | removed | score | parameters | decode | before | "
        + " | ".join(f"`{t}`" for t in list(TUNES)[1:])
        + " |",
        "|---:|---:|---|---:|---:|---:|" + "---:|" * (len(TUNES) - 1),
    ]
    for sparsity in SPARSITIES:
        for name in rows():
            first = found.get((sparsity, name, "none"))
            if first is None or (name.startswith("random") and name != "random 0"):
                continue
            before, shown = f"{first[PPL]['pruned']:.2f}", name
            if name == "random 0":
                draws = [r[PPL]["pruned"] for seed in SEEDS if (r := found.get((sparsity, f"random {seed}", "none")))]
                before, shown = f"{statistics.mean(draws):.2f}", f"random (mean of {len(draws)}, tuned: the first)"
            cells = " | ".join(_cell(found.get((sparsity, name, tune)), (name, tune)) for tune in list(TUNES)[1:])
            speed = found.get((sparsity, SHAPED_AS.get(name, "taylor"), "speed"), {}).get(DECODE)
            faster = f"{speed['pruned'] / speed['dense']:.2f} x" if speed else "·"
            lines.append(
                f"| {sparsity:.0%} | {first['removed']:.1%} | {shown} | {first['parameters']:,} | "
                f"{faster} | {before} | {cells} |"
            )
    return "\n".join(lines) + "\n"


def _cell(result: dict[str, Any] | None, key: tuple[str, str]) -> str:
    if result is None:
        return "" if key == UNTRIED else "·"
    return f"{result[PPL]['pruned']:.2f}"


if __name__ == "__main__":
    main()

"""Ways to make a mixture of experts smaller, on bookworm-moe-8m: a table for docs/methods.md.

    python -m benchmarks.mixtures [--only reap] [--processes 2]      or: make methods-mixture

Whole experts, narrower ones, weights at as many zeros, and blocks; some trained after for 200 steps. Each finished cell
is a line of docs/mixtures.jsonl, kept as it comes: an interrupted run goes on where it was. Perplexity of all five
held-out books, lower is better.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cells import known, measured

ROOT = Path(__file__).parents[1]
DOC, RESULTS = ROOT / "docs/methods.md", ROOT / "docs/mixtures.jsonl"
MODEL = "bookworm-moe-8m"
CALIBRATE = {"dataset": "calibration.txt", "samples": 64, "sequence_length": 512}
EVALUATE = [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 512}]
EXPERTS, CHOSEN, BLOCKS = 8, 2, 6
WIDTH = 224
"""Channels of an expert."""
EXPERT, ATTENTION = 3 * 192 * WIDTH, 2 * 192 * 192 + 2 * 96 * 192
"""Weights of one expert, and of the attention of a block."""
TUNE = {
    "routers": {"method": "full", "train": "routers", "learning_rate": 1e-3},
    "full": {"method": "full", "learning_rate": 1e-4},
    "lora": {"method": "lora"},
}
STEPS = {"dataset": "calibration.txt", "steps": 200, "batch": 4, "sequence_length": 256}


def cells() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(key, spec without model) of every cell, in the order in which they are worth having."""
    for kept in (6, 4):
        for score in ("naee", "reap", "expert_frequency", "random"):
            yield experts(score, kept)
        for pruner in ("wanda", "sparsegpt"):
            yield weights(pruner, kept)
        yield channels("wanda", kept)
        yield channels("taylor", kept)
        yield channels("wanda", kept, compensate=False)
    for name in TUNE:
        for kept in (6, 4):
            yield tuned(experts("reap", kept), name)
            yield tuned(weights("sparsegpt", kept), name)
    half = {"way": "wanda", "size": "half of the weights", "tuned": ""}
    yield half, masked(0.5)
    for name in ("lora", "full"):
        yield tuned((half, masked(0.5)), name)
    for layers in (1, 2):
        key = {"way": "block_influence, depth", "size": f"{BLOCKS - layers} of {BLOCKS} blocks", "tuned": ""}
        yield key, {"score": {"method": "block_influence"}, "prune": {"method": "depth", "layers": layers}}


def experts(score: str, kept: int) -> tuple[dict[str, Any], dict[str, Any]]:
    key = {"way": f"{score}, experts", "size": f"{kept} of {EXPERTS} experts", "tuned": ""}
    return key, {"score": {"method": score}, "prune": {"method": "experts", "experts": kept}}


def channels(score: str, kept: int, *, compensate: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """All experts, as much narrower as leaves as many weights of them."""
    width = WIDTH * kept // EXPERTS
    key = {
        "way": f"{score}, expert channels{'' if compensate else ', only cut'}",
        "size": f"{width} of {WIDTH} channels",
    }
    prune = {"method": "expert_channels", "channels": width, "compensate": compensate}
    return key | {"tuned": ""}, {"score": {"method": score}, "prune": prune}


def weights(pruner: str, kept: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights everywhere, as many as these experts would leave."""
    gone = (EXPERTS - kept) * EXPERT / (EXPERTS * EXPERT + ATTENTION)
    spec = (
        masked(round(gone, 4)) if pruner == "wanda" else {"prune": {"method": "sparsegpt", "sparsity": round(gone, 4)}}
    )
    return {"way": pruner, "size": f"as many weights as {kept} of {EXPERTS} experts", "tuned": ""}, spec


def masked(sparsity: float) -> dict[str, Any]:
    return {"score": {"method": "wanda"}, "prune": {"method": "mask", "sparsity": sparsity}}


def tuned(cell: tuple[dict[str, Any], dict[str, Any]], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    key, spec = cell
    return key | {"tuned": name}, spec | {"tune": TUNE[name] | STEPS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose key holds this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="cells at a time, one thread each")
    arguments = parser.parse_args()
    for row in measured([*cells()], measure, RESULTS, only=arguments.only, processes=arguments.processes):
        print(row, flush=True)
        write(known(RESULTS))


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Compress once. Perplexity of both models, non-zero weights of the blocks, all and those that a token meets, and
    processor seconds."""
    import torch

    from workers.engine.events import Silent
    from workers.engine.pipeline import compress
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec

    torch.set_num_threads(1)
    asked = CompressionSpec.model_validate(
        {"model": {"id": MODEL}, "calibrate": CALIBRATE, "evaluate": EVALUATE, **spec}
    )
    with tempfile.TemporaryDirectory() as folder:
        sources = Sources(ROOT / "examples/models", ROOT / "examples/data")
        report = compress(asked, Path(folder), sources, Silent(), Path(folder) / "checkpoint")
    (found,) = [metric for metric in report.metrics if metric.name.startswith("perplexity/")]
    left = {layer.name: round(layer.parameters * (1 - layer.sparsity)) for layer in report.layers}
    of_experts = {name: count for name, count in left.items() if ".experts." in name and count}
    blocks = {layer.block for layer in report.layers if left[layer.name]}
    a_block = len({name.rpartition(".")[0] for name in of_experts}) / len(blocks)
    shared = sum(left.values()) - sum(of_experts.values())
    return {
        "dense": found.dense,
        "perplexity": found.pruned,
        "non_zero": sum(left.values()),
        "active": shared + round(sum(of_experts.values()) * CHOSEN / a_block),
        "cpu_s": round(sum(stage.cpu_s or 0.0 for stage in report.stages)),
    }


def write(results: list[dict[str, Any]]) -> None:
    """Put the table between its markers in docs/methods.md."""
    text = DOC.read_text()
    begin, end = "<!-- table: make methods-mixture -->\n", "<!-- /mixture -->"
    if begin in text:
        head, rest = text.split(begin, 1)
        DOC.write_text(head + begin + table(results) + end + rest.split(end, 1)[1])


def table(results: list[dict[str, Any]]) -> str:
    if not results:
        return ""
    dense = BLOCKS * (EXPERTS * EXPERT + ATTENTION)
    active = BLOCKS * (CHOSEN * EXPERT + ATTENTION)
    lines = [
        "| left | way | trained, 200 steps | perplexity | non-zero weights, M | those a token meets, M | processor s |",
        "|---|---|---|---:|---:|---:|---:|",
        f"| | dense | | {results[0]['dense']:.2f} | {dense / 1e6:.2f} | {active / 1e6:.2f} | |",
    ]
    for key, _ in cells():
        row = next((found for found in results if key.items() <= found.items()), None)
        numbers = ["·"] * 4
        if row is not None:
            numbers = [
                f"{row['perplexity']:.2f}", f"{row['non_zero'] / 1e6:.2f}", f"{row['active'] / 1e6:.2f}",
                f"{row['cpu_s']:.0f}",
            ]  # fmt: skip
        lines.append(f"| {key['size']} | {key['way']} | {key['tuned']} | " + " | ".join(numbers) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

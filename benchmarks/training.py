"""Pruning while training beside pruning once and training as long, on as many tokens: a table for docs/methods.md.

    python -m benchmarks.training --books books.parquet [--only sheared] [--processes 2]      or: make training

Every way reads as many tokens through the model that is made, its search's own forward passes included, of a text with
a document a row (columns `text`, `domain`), and is measured on the five books of `heldout.jsonl`, which are none of
them. Controls: pruned once, then trained on all tokens; the same shape from random weights; the dense model, trained on
as many. Each finished cell is a line of docs/training.jsonl, kept as it comes. Times are processor seconds, one thread.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cells import folders, known, measured

ROOT = Path(__file__).parents[1]
DOC, RESULTS = ROOT / "docs/methods.md", ROOT / "docs/training.jsonl"
CACHE = ROOT / ".espalier/training"
MODEL, BOOKS = "bookworm-7m", "books.parquet"
TOKENS, LENGTH, BATCH = 2_000_000, 256, 8
SEARCHED = 0.4
"""Share of the tokens that a search of units takes, where the method ends with it and plain training follows."""
COMPUTE = {"dtype": "bfloat16"}
"""Of products; weights, gradients and moments are float32. With AMX 1.6 times as many tokens a second as in float32."""
PER_BOOK = 20
"""Windows of 512 tokens of each held-out book."""
TEXT = {"dataset": BOOKS, "batch": BATCH, "sequence_length": LENGTH, "distill": None, "holdout": 32}
CALIBRATE = {"dataset": "calibration.txt", "samples": 64, "sequence_length": 512}
SEEDS = {"50%": 3, "2:4": 3}
"""Seeds of each size; one for the others."""
MASKED = {"2:4": {"pattern": "2:4"}, "80%": {"sparsity": 0.8}, "90%": {"sparsity": 0.9}}
CUT = {"25%": 0.25, "50%": 0.5}
RATES = {"sheared": 3e-4, "compresso": 1e-3}
"""Of searches: those of the authors' code are for steps of far more tokens."""
DENSE, RANDOM = "dense, trained", "random weights, trained"


def cells() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(key, what `measure` takes) of every cell, in the order in which they are worth having."""
    yield {"size": "", "way": "dense", "seed": 0}, {"spec": masked(0.0)}
    for seed in range(max(SEEDS.values())):
        if not seed:
            yield {"size": "", "way": DENSE, "seed": 0}, {"spec": masked(0.0) | tuned(TOKENS, 0)}
        for size in ("50%", "2:4", "90%", "25%", "80%"):
            if seed < SEEDS.get(size, 1):
                ways = cut(CUT[size], seed) if size in CUT else zeroed(MASKED[size], seed)
                yield from (({"size": size, "way": way, "seed": seed}, given) for way, given in ways)


def cut(share: float, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ways to a model whose blocks have lost that share of their parameters."""
    prune = {"prune": {"method": "structured", "sparsity": share}}
    free = prune | {"allocate": {"method": "ranking"}}
    search, rest = int(TOKENS * SEARCHED), TOKENS - int(TOKENS * SEARCHED)
    for variant in ("A", "B"):
        yield f"efficient_llm {variant}", {"spec": free | trained("efficient_llm", TOKENS, seed, variant=variant)}
    for name, allocated in (("sheared", prune), ("compresso", free)):
        of_search = trained(name, search, seed, learning_rate=RATES[name])
        yield name, {"spec": allocated | of_search | tuned(rest, seed)}
    samples = 2  # forward passes of a window
    of_search = trained("policy_gradient", search // samples, seed, samples=samples, sequence_length=128)
    yield "policy_gradient", {"spec": free | of_search | tuned(rest, seed)}
    for score in ("taylor", "saap"):
        once = free | {"score": {"method": score}, "calibrate": CALIBRATE}
        yield f"{score}, then trained", {"spec": once | tuned(TOKENS, seed)}
    yield RANDOM, {"random": share, "spec": masked(0.0) | tuned(TOKENS, seed, learning_rate=1e-3)}


def zeroed(pattern: dict[str, Any], seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ways to a model whose linear layers have so many zeros."""
    mask = {"prune": {"method": "mask"} | pattern}
    if "pattern" in pattern:
        rate = 3e-4  # as full tuning's; the paper's is for 7 B
        of_dense = {"weight": 0.67, "temperature": 2.0}
        yield "ast", {"spec": mask | trained("ast", TOKENS, seed, learning_rate=rate, distill=of_dense)}
        yield "ast, text alone", {"spec": mask | trained("ast", TOKENS, seed, learning_rate=rate)}
        solvers, tuners = ("sparsegpt", "mrp"), ("full", "spp")
        yield "sparsegpt", {"spec": solved("sparsegpt", pattern)}
    else:
        fitting = {"learning_rate": 3e-3, "nearness": "size", "settle": 0.5}  # docs/methods.md, of single weights
        yield "elsa", {"spec": mask | trained("elsa", TOKENS, seed, **fitting)}
        yield "gradual", {"spec": mask | trained("gradual", TOKENS, seed)}
        solvers, tuners = ("fista", "mrp"), ("full",)
    for solver in solvers:
        for tuner in tuners if solver != "mrp" else tuners[:1]:
            name = f"{solver}, then trained" + (f" by {tuner}" if tuner != "full" else "")
            yield name, {"spec": solved(solver, pattern) | tuned(TOKENS, seed, method=tuner)}


def masked(sparsity: float) -> dict[str, Any]:
    return {"score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": sparsity}}


def solved(method: str, pattern: dict[str, Any]) -> dict[str, Any]:
    return {"prune": {"method": method} | pattern, "calibrate": CALIBRATE}


def trained(method: str, tokens: int, seed: int, **own: Any) -> dict[str, Any]:
    return {"train": {"method": method, **TEXT, "tokens": tokens, "seed": seed} | own}


def tuned(tokens: int, seed: int, **own: Any) -> dict[str, Any]:
    return {"tune": {"method": "full", **TEXT, "tokens": tokens, "seed": seed} | own}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, help="the text to train on; copied on the first run")
    parser.add_argument("--only", default="", help="cells whose key holds this text")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="cells at a time, one thread each")
    arguments = parser.parse_args()
    prepare(arguments.books)
    for row in measured([*cells()], measure, RESULTS, only=arguments.only, processes=arguments.processes):
        print(time.strftime("%H:%M"), {name: row[name] for name in ("size", "way", "seed", "perplexity")}, flush=True)
        write(known(RESULTS))


def prepare(books: Path | None) -> None:
    """A folder with the texts and one with the models, random ones made with the shapes of cut ones among them."""
    data, models = CACHE / "data", CACHE / "models"
    data.mkdir(parents=True, exist_ok=True)
    if not (data / BOOKS).exists():
        if books is None:
            raise SystemExit("say with --books which text to train on")
        shutil.copyfile(books, data / BOOKS)
    for name in ("calibration.txt", "heldout.jsonl"):
        shutil.copyfile(ROOT / "examples/data" / name, data / name)
    if not (models / MODEL).exists():
        shutil.copytree(ROOT / "examples/models" / MODEL, models / MODEL)
    for share in CUT.values():
        if not (models / random_name(share)).exists():
            random_model(share)


def random_name(share: float) -> str:
    return f"random-{share:g}"


def random_model(share: float) -> None:
    """Save a model of random weights that has the shape of one whose blocks lost that share, all alike."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = masked(0.0) | {"prune": {"method": "structured", "sparsity": share, "compensate": False}}
    with tempfile.TemporaryDirectory() as folder:
        compressed(MODEL, spec, Path(folder), Path(folder) / "points")
        config = AutoConfig.from_pretrained(Path(folder) / "model")
    torch.manual_seed(0)
    target = CACHE / "models" / random_name(share)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(CACHE / "models" / MODEL / name, target / name)


def compressed(model: str, spec: dict[str, Any], folder: Path, points: Path) -> Any:
    """The report of a job, whose model is written to `folder/model`."""
    import torch

    from workers.engine.events import Silent
    from workers.engine.pipeline import compress
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec

    torch.set_num_threads(1)
    sources = Sources(CACHE / "models", CACHE / "data")
    asked = CompressionSpec.model_validate({"model": {"id": model}, "compute": COMPUTE, **spec})
    return compress(asked, folder, sources, Silent(), points, CACHE / "measured")


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Make the model once, and read the held-out books. `flops`: of forward and backward passes in trainings."""
    read = {"method": "perplexity", "dataset": "heldout.jsonl", "sequence_length": 512, "per_document": PER_BOOK}
    model = random_name(given["random"]) if "random" in given else MODEL
    with folders(CACHE, given) as (folder, points, resumed):
        report = compressed(model, given["spec"] | {"evaluate": [read]}, folder, points)
    (metric,) = report.metrics
    return {
        "perplexity": round(metric.pruned, 4),
        "stderr": metric.pruned_stderr,
        "parameters": report.parameters_after,
        "sparsity": round(report.sparsity, 4),
        "flops": flops(report),
        "looks": [
            [round(training.holdout_loss_before, 4), round(training.holdout_loss_after, 4)]
            for training in (report.train, report.tune)
            if training
        ],
        "cpu_s": {stage.stage: round(stage.cpu_s or 0.0, 1) for stage in report.stages},
        "resumed": resumed,
    }


def flops(report: Any) -> float:
    """Two for each parameter, token and forward pass; a backward pass counts as two. Of zeros as of other weights."""
    from workers.engine.spec import CompressionSpec

    spec = CompressionSpec.model_validate(report.spec)
    sizes = {"train": report.parameters, "tune": report.parameters_after}
    return float(
        sum(
            2 * sizes[stage] * params.passes * params.steps * params.batch * params.sequence_length
            for stage, params in spec.trainings.items()
        )
    )


def write(results: list[dict[str, Any]]) -> None:
    """Put the table between its markers in docs/methods.md."""
    text = DOC.read_text()
    begin, end = "<!-- table: make training -->\n", "<!-- /training -->"
    if begin in text:
        head, rest = text.split(begin, 1)
        DOC.write_text(head + begin + table(results) + end + rest.split(end, 1)[1])


def table(results: list[dict[str, Any]]) -> str:
    """A row for each way: the mean over its seeds, and their standard deviation where there are several."""
    lines = [
        "| removed | way | perplexity, five books | of the text | parameters | 10^12 FLOPs of training "
        "| processor minutes |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for size, way in dict.fromkeys((key["size"], key["way"]) for key, _ in cells()):
        rows = [row for row in results if (row["size"], row["way"]) == (size, way)]
        if not rows:
            lines.append(f"| {size} | {way} | · | | | | |")
            continue
        values = [row["perplexity"] for row in rows]
        spread = f" ± {statistics.stdev(values):.2f} ({len(values)} seeds)" if len(values) > 1 else ""
        # Of a cell that went on from resume points only the last attempt was timed.
        minutes = [math.fsum(row["cpu_s"].values()) / 60 for row in rows if not row.get("resumed")]
        took = f"{statistics.fmean(minutes):.0f}" if minutes else "·"
        lines.append(
            f"| {size} | {way} | {statistics.fmean(values):.2f}{spread} | {_of_the_text(rows)} "
            f"| {rows[0]['parameters']:,} | {rows[0]['flops'] / 1e12:.0f} | {took} |"
        )
    return "\n".join(lines) + "\n"


def _of_the_text(rows: list[dict[str, Any]]) -> str:
    """Perplexity of the state that ships, over documents of the training text that are held out."""
    after = [math.exp(row["looks"][-1][1]) for row in rows if row["looks"]]
    return f"{statistics.fmean(after):.2f}" if after else ""


if __name__ == "__main__":
    main()

"""Memory of a training divided over two ranks beside one, on the CPU: a random model, a few steps.

    python -m benchmarks.divided [--shape 350m] [--ranks 2] [--tune lora] [--train elsa]

It tunes, every weight or by another method, or with `--train` prunes single weights while it trains.

Prints the peak resident memory of each rank, less that of the process with everything imported: before the first step,
in the steps, and while the result is checked and written; and the tokens per second of all ranks together. One thread a
rank.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.engine.contracts.tuning_params import Trains

ROOT = Path(__file__).parents[1]
FEW: dict[str, Any] = {
    "dataset": "calibration.txt", "steps": 2, "batch": 2, "sequence_length": 128, "holdout": 2, "evaluate_every": 2,
    "distill": None,
}  # fmt: skip


def spec_of(stage: str, method: str) -> dict[str, Any]:
    """A tuning of the dense model, or a training, by a method."""
    score = {"method": "magnitude"} if stage == "tune" else None
    sparsity = 0.0 if stage == "tune" else 0.5
    parts = {"model": {"id": "random"}, "score": score, "prune": {"method": "mask", "sparsity": sparsity}}
    return parts | {stage: FEW | {"method": method}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="350m", help="of benchmarks.random_model")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tune", default="full", help="a tuner")
    parser.add_argument("--train", default=None, help="a method on single weights, instead of tuning")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir()
        _spawned(1, _made, arguments.shape, models / "random")
        given = (models, Path(folder), *(("train", arguments.train) if arguments.train else ("tune", arguments.tune)))
        found = {count: _spawned(count, _trained, *given) for count in (1, arguments.ranks)}
    for count, ranks in found.items():
        print(f"{count} rank{'s' * (count > 1)}: {ranks[0]['tokens_per_s']:.0f} tokens/s")
        for when in ("ready", "trained", "written"):
            one = max(rank[when] for rank in found[1])
            peaks = ", ".join(f"{rank[when] / 2**20:.0f} MiB ({rank[when] / one:.2f})" for rank in ranks)
            print(f"  {when}: {peaks}", flush=True)


def _spawned(count: int, run: Any, *given: Any) -> list[dict[str, Any]]:
    """The answers of `run(rank, count, meeting, *given)` on every rank, each a new process."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        answers = [Path(folder) / f"{rank}.json" for rank in range(count)]
        processes = [
            context.Process(target=_answer, args=(answers[rank], run, rank, count, Path(folder) / "meeting", *given))
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [json.loads(answer.read_text()) for answer in answers]


def _answer(answer: Path, run: Any, *given: Any) -> None:
    answer.write_text(json.dumps(run(*given)))


def _made(rank: int, count: int, meeting: Path, shape: str, folder: Path) -> None:
    from benchmarks.random_model import SHAPES, write

    write(SHAPES[shape], folder, "float32")


def _trained(
    rank: int, count: int, meeting: Path, models: Path, scratch: Path, stage: Trains, method: str
) -> dict[str, Any]:
    """Peak memory of one rank up to three moments."""
    import shutil
    from dataclasses import replace

    from workers.engine.checks.tries import Tries
    from workers.engine.events import Silent
    from workers.engine.planning.plan import feasible
    from workers.engine.ranks import Ranks, join
    from workers.engine.sources.resolve import Sources, resolve_model
    from workers.engine.spec import CompressionSpec
    from workers.engine.stages.allocate import allocate
    from workers.engine.stages.load import load
    from workers.engine.stages.train import train
    from workers.engine.stages.tune import tune
    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.store.clock import peak_resident_bytes
    from workers.engine.store.points import Points
    from workers.engine.store.run import Run
    from workers.engine.training.loop import Loop
    from workers.engine.training.text import training_text

    found: dict[str, Any] = {}
    steps = Loop.run

    def peak() -> int:
        """Since the last call."""
        found = peak_resident_bytes() - imported
        Path("/proc/self/clear_refs").write_text("5")
        return found

    def noted(loop: Loop, *args: Any) -> None:
        found["ready"] = peak()
        steps(loop, *args)
        found["trained"] = peak()
        found["tokens_per_s"] = loop.tokens_per_s

    Loop.run = noted
    ranks = join(rank, count, meeting, cuda=False) if count > 1 else Ranks()
    sources = Sources(models, ROOT / "examples/data")
    spec = CompressionSpec.model_validate(spec_of(stage, method))
    dense = replace(load(spec, feasible(spec, resolve_model(spec.model, sources), sources)), ranks=ranks)
    text = training_text(stage, spec.trainings[stage], dense, sources)
    folder = scratch / f"tuned-{count}"
    ranks.first(lambda: shutil.copytree(models / "random", folder, dirs_exist_ok=True))
    imported = peak_resident_bytes()
    run = Run.of(Checkpoint(scratch / f"points-{count}", points=Points(3600), ranks=ranks), Silent())
    if stage == "tune":
        tune(spec, dense, folder, text, run, text.holdout_NT[0])
    else:
        spread = allocate(spec, dense, None, sources, None, Tries(spec, run))
        train(spec, dense, spread, folder, text, run, text.holdout_NT[0])
    return found | {"written": peak()}


if __name__ == "__main__":
    main()

"""Peak memory of a training without a backward pass, beside one that trains all weights.

    python -m benchmarks.forward_only [--shape 350m] [--steps 3] [--batch 8] [--length 128]

A random Llama is pruned by half through the runner, as a job would, by `policy_gradient` and by `efficient_llm`, on the
same windows. The figures are the highest resident memory of the process up to the end of the training, what it is with
the imports and the tokenizer alone, and what the dry run predicts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.random_model import SHAPES, write
from workers.engine.planning.plan import plan
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec

ROOT = Path(__file__).parents[1]
METHODS = ("efficient_llm", "policy_gradient")
IMPORTS = (
    "import workers.engine.stages.train, workers.engine.pipeline, resource, transformers\n"
    "from transformers import LlamaForCausalLM\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="350m")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="where models and results go; a temporary folder if left out")
    arguments = parser.parse_args()
    imports = int(subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True).stdout) * 1024
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        folder = Path(work)
        write(SHAPES[arguments.shape], folder / "models" / "random", "float32")
        size = sum(file.stat().st_size for file in (folder / "models/random").glob("*.safetensors"))
        print(f"weights in float32: {size / 2**20:.0f} MiB; imports: {imports / 2**20:.0f} MiB\n")
        print("| method | peak MiB | less imports | predicted MiB | of `efficient_llm` |")
        print("|---|---:|---:|---:|---:|")
        whole = None
        for method in METHODS:
            peak, predicted = _peak(folder, method, arguments)
            own = peak - imports
            whole = whole or own
            mib = " | ".join(f"{number / 2**20:.0f}" for number in (peak, own, predicted))
            print(f"| {method} | {mib} | {own / whole:.2f} |", flush=True)


def _peak(folder: Path, method: str, arguments: argparse.Namespace) -> tuple[int, int]:
    """(measured, predicted), bytes."""
    train: dict[str, Any] = {
        "method": method, "dataset": "calibration.txt", "steps": arguments.steps, "batch": arguments.batch,
        "sequence_length": arguments.length, "holdout": arguments.batch, "evaluate_every": arguments.steps,
    }  # fmt: skip
    spec = CompressionSpec.model_validate(
        {
            "model": {"id": "random"},
            "prune": {"method": "structured", "sparsity": 0.5},
            "train": train,
            "evaluate": [{"method": "size"}],
        }
    )
    sources = Sources(folder / "models", ROOT / "examples/data")
    predicted = plan(spec, sources).peak_memory_bytes
    work = folder / method
    work.mkdir()
    (work / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "workers.runner", str(work), "--checkpoint", str(work / "checkpoint")]
    command += ["--models", str(sources.models_dir), "--data", str(sources.data_dir)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = json.loads(found.stdout.splitlines()[-1])
    if last["event"] != "result":
        raise SystemExit(f"{method} failed ({found.returncode}): {last}")
    return last["report"]["train"]["peak_memory_bytes"], predicted


if __name__ == "__main__":
    main()

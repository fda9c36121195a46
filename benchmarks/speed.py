"""How much faster a smaller shape is: a random Llama of 350 M parameters, dense and at half its block parameters.

    python -m benchmarks.speed [--sparsity 0.5]

Both models are measured in one run of the pipeline, by its own evaluators, in plain transformers.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

from benchmarks.random_model import SHAPES, write
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec

ROOT = Path(__file__).parents[1]
CUTS = {
    "heads and channels": {"score": {"method": "magnitude"}, "prune": {"method": "structured", "compensate": False}},
    "blocks": {"score": {"method": "reverse_order"}, "prune": {"method": "depth"}},
    "zeros": {"score": {"method": "magnitude"}, "prune": {"method": "mask"}},
}
EVALUATE = [
    {"method": "size"},
    {"method": "macs"},
    {"method": "generation_speed", "prompt_tokens": 128, "new_tokens": 32, "batch_size": 1},
    {"method": "generation_speed", "prompt_tokens": 128, "new_tokens": 32, "batch_size": 8, "repeats": 3, "warmup": 1},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.5)
    arguments = parser.parse_args()
    print(f"350 M shape, float32, {platform.machine()} CPU; result / dense, batch 1 and 8\n")
    print("| what goes | parameters | bytes | MACs | prefill | decode |\n|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write(SHAPES["350m"], models / "random-350m", "float32")
        for name, parts in CUTS.items():
            spec = CompressionSpec.model_validate(
                {
                    "model": {"id": "random-350m"},
                    "evaluate": EVALUATE,
                    **parts,
                    "prune": parts["prune"] | {"sparsity": arguments.sparsity},
                }
            )
            work = Path(folder) / name
            report = compress(spec, work, Sources(models, ROOT / "examples/data"), Silent(), work / "checkpoint")
            ratio = {metric.name: metric.ratio or 0.0 for metric in report.metrics}
            speed = [
                f"{ratio[f'generation_speed/{part}']:.2f}, {ratio[f'generation_speed/{part}#2']:.2f} x"
                for part in ("prefill", "decode")
            ]
            sizes = [f"{ratio[n]:.2f}" for n in ("size/parameters", "size/weight_bytes", "macs/64")]
            print(f"| {name} | {' | '.join(sizes + speed)} |", flush=True)


if __name__ == "__main__":
    main()

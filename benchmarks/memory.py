"""Peak memory of pruning a model larger than memory, under a limit that kills whoever exceeds it.

    python -m benchmarks.memory [--folder DIR] [--limit-gib 4]
    python -m benchmarks.memory --mixture --limit-gib 3 --methods wanda reap

A random Llama of 1.3 B parameters in float32 shards (5 GB) is pruned by the runner, as a job would, in a control group
of limited memory, where one may be made (as root), or else with a limited address space (RLIMIT_AS), where libraries
and reserved memory count too. Loading the model whole under the same limit, as a control, fails. Then the same with 48
blocks for 24: the peak must not grow. Needs 25 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.random_model import SHAPES, write
from workers.engine.planning.plan import plan
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec

ROOT = Path(__file__).parents[1]
SPECS: dict[str, dict[str, Any]] = {
    "wanda": {"score": {"method": "wanda"}, "prune": {"method": "mask", "sparsity": 0.5}},
    "sparsegpt": {"prune": {"method": "sparsegpt", "sparsity": 0.5}},
    "reap": {"score": {"method": "reap"}, "prune": {"method": "experts", "sparsity": 0.5}},
    "expert_channels": {"score": {"method": "wanda"}, "prune": {"method": "expert_channels", "sparsity": 0.5}},
}
WHOLE = (
    "from transformers import AutoModelForCausalLM as M; import sys\n"
    "m = M.from_pretrained(sys.argv[1], dtype='float32')\n"
    "[p.data.mul_(1) for p in m.parameters()]"
)
"""Loads and changes all weights, as pruning in place does: mapped files alone are no memory in use."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where models and results go; a temporary folder if left out")
    parser.add_argument("--limit-gib", type=float, default=4)
    parser.add_argument("--methods", nargs="+", choices=SPECS, default=["wanda", "sparsegpt"])
    parser.add_argument("--mixture", action="store_true", help="a mixture of 64 experts a block, in bfloat16, instead")
    parser.add_argument("--samples", type=int, default=8, help="calibration windows of 512 tokens")
    arguments = parser.parse_args()
    limit = int(arguments.limit_gib * 2**30)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        folder = Path(work)
        shape, dtype = (SHAPES["mixture"], "bfloat16") if arguments.mixture else (SHAPES["1.3b"], "float32")
        sizes = (shape.blocks, 2 * shape.blocks)
        for blocks in sizes:
            write(replace(shape, blocks=blocks), folder / "models" / f"random-{blocks}", dtype)
        with limited(limit) as (how, join):
            print(f"limit by {how}; whole model under {arguments.limit_gib} GiB: ", end="")
            print(_control(folder / f"models/random-{sizes[0]}", join))
            print("\n| method | blocks | limit GiB | peak MiB | predicted MiB | ratio | seconds |")
            print("|---|---:|---:|---:|---:|---:|---:|")
            for method in arguments.methods:
                for blocks in sizes:
                    print(_row(folder, method, blocks, limit, arguments.samples, join), flush=True)


@contextmanager
def limited(limit: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """How memory is limited to so many bytes, and what a process has to call to come under it."""
    for root, files in (
        (Path("/sys/fs/cgroup"), {"memory.max": limit, "memory.swap.max": 0}),
        (Path("/sys/fs/cgroup/memory"), {"memory.limit_in_bytes": limit}),
    ):
        group = root / f"espalier-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if not all((group / file).exists() for file in files):  # where control groups of the other version are mounted
            group.rmdir()
            continue
        try:
            for file, value in files.items():
                (group / file).write_text(str(value))
            yield "a control group", partial(_join, group)
        finally:
            group.rmdir()
        return
    yield "RLIMIT_AS", lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _control(model: Path, join: Callable[[], None]) -> str:
    command = [sys.executable, "-c", WHOLE, str(model)]
    found = subprocess.run(command, preexec_fn=join, capture_output=True, text=True)
    said = found.stderr.strip().splitlines()[-1][:100] if found.stderr.strip() else ""
    return "loads: the limit does not hold!" if found.returncode == 0 else f"fails ({found.returncode} {said})"


def _row(folder: Path, method: str, blocks: int, limit: int, samples: int, join: Callable[[], None]) -> str:
    spec = CompressionSpec.model_validate(
        {
            "model": {"id": f"random-{blocks}"},
            "calibrate": {"dataset": "calibration.txt", "samples": samples, "sequence_length": 512},
            "compute": {"memory_budget": limit},
            "evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 512, "samples": 2}],
            **SPECS[method],
        }
    )
    sources = Sources(folder / "models", ROOT / "examples/data")
    predicted = plan(spec, sources).peak_memory_bytes
    work = folder / "work"
    work.mkdir()
    (work / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "workers.runner", str(work), "--checkpoint", str(work / "checkpoint")]
    command += ["--models", str(sources.models_dir), "--data", str(sources.data_dir)]
    started = time.monotonic()
    found = subprocess.run(command, cwd=ROOT, preexec_fn=join, capture_output=True, text=True)
    elapsed = time.monotonic() - started
    last = json.loads(found.stdout.splitlines()[-1])
    shutil.rmtree(work)
    if last["event"] != "result":
        return f"| {method} | {blocks} | failed ({found.returncode}): {last} |"
    peak = max(stage["peak_memory_bytes"] for stage in last["report"]["stages"])
    return (
        f"| {method} | {blocks} | {limit / 2**30:g} | {peak / 2**20:.0f} | {predicted / 2**20:.0f} | "
        f"{predicted / peak:.2f} | {elapsed:.0f} |"
    )


if __name__ == "__main__":
    main()

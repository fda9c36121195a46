"""Two ranks beside one, with one CPU thread each: the same jobs in turn, with as many threads as ranks.

    python -m benchmarks.ranks [--ranks 2] [--windows 128] [--repeats 5] [--methods wanda sparsegpt]

The time of a job is that of its calibrate, score and prune stages: all that the ranks share but evaluation. It is of
use where there are as many idle cores as ranks; the load of the machine is printed, and the processor time of the
first rank, which busy neighbours do not change as much.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.engine import BOOKWORM, DATA, ENVIRONMENT, LENGTH, ROOT, SPECS

STAGES = ("calibrate", "score", "prune")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--windows", type=int, default=128, help=f"of {LENGTH} tokens, for calibration")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=SPECS, default=list(SPECS))
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load average {os.getloadavg()[1]:.1f}, "
        f"Python {platform.python_version()}, {BOOKWORM}, {arguments.windows} x {LENGTH} tokens, "
        f"{arguments.repeats} runs of each in turn, medians\n"
    )
    print(
        f"| method | 1 rank, s | {arguments.ranks} ranks, s | ratio | runs | CPU s of the first rank: 1 | of several |"
    )
    print("|---|---:|---:|---:|---|---:|---:|")
    for method in arguments.methods:
        found: dict[int, list[tuple[float, float]]] = {1: [], arguments.ranks: []}
        for repeat in range(arguments.repeats):
            for ranks in sorted(found, reverse=bool(repeat % 2)):
                found[ranks].append(measure(method, ranks, arguments.windows))
        one, several = ([elapsed for elapsed, _ in found[ranks]] for ranks in found)
        ratios = [few / many for few, many in zip(one, several, strict=True)]
        cpu = [statistics.median(cpu_s for _, cpu_s in found[ranks]) for ranks in found]
        print(
            f"| {method} | {statistics.median(one):.1f} | {statistics.median(several):.1f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} … {max(ratios):.2f} "
            f"| {cpu[0]:.1f} | {cpu[1]:.1f} |",
            flush=True,
        )


def measure(method: str, ranks: int, windows: int) -> tuple[float, float]:
    """Elapsed and processor seconds of a job's stages, of the first rank."""
    text = {"dataset": "calibration.txt", "samples": windows, "sequence_length": LENGTH}
    spec = {"model": {"id": BOOKWORM}, "calibrate": text, "compute": {"device": "cpu", "devices": ranks}}
    with tempfile.TemporaryDirectory(prefix="espalier-ranks-") as folder:
        workdir = Path(folder)
        (workdir / "spec.json").write_text(json.dumps(spec | SPECS[method]))
        places = ["--models", ROOT / "examples/models", "--data", DATA, "--checkpoint", workdir / "checkpoint"]
        command = [sys.executable, "-m", "workers.runner", workdir, *places, "--threads", str(ranks)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["report"]
    stages = [stage for stage in report["stages"] if stage["stage"] in STAGES]
    return sum(stage["elapsed_s"] for stage in stages), sum(stage["cpu_s"] for stage in stages)


if __name__ == "__main__":
    main()

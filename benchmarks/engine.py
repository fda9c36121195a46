"""The engine beside llm-compressor: the same model folder and the same windows of tokens, pruned by both in one run.

    python -m benchmarks.engine --peer FOLDER [--models bookworm-7m 60m 350m 1.3b] [--methods sparsegpt wanda]
                                [--windows 64] [--repeats 3] [--dtype float32] [--threads 2] [--refresh block]
                                [--warm] [--alpha]

llm-compressor lives in a virtual environment of its own in FOLDER, outside the repository, as it wants another
`transformers`; it is made there the first time (1.5 GB with the CPU's torch: `PIP_EXTRA_INDEX_URL` as in README).
Each run is a process, ours `python -m workers.runner`, and the two take turns, so that a slow minute hurts both; each
figure is the median of its repeats. With `--warm` ours is forked by a process that has done the imports, as a worker
starts its jobs: the process's time is that from claim to result. `--alpha` times AlphaPruning's metric instead, beside
the plain way to take it.
N = windows, T = tokens of a window, O = outputs, I = inputs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.random_model import SHAPES, block_tensors, write
from workers.warm import Warm

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parent.parent
DATA = ROOT / "examples/data"
BOOKWORM = "bookworm-7m"
PEER_PACKAGES = ("torch==2.13.0", "llmcompressor==0.14.0.1")
"""Installed one after the other: else the second resolves a torch of its own."""
LENGTH = 512
BATCH_TOKENS = 4096
"""Per forward pass, on both sides: the engine's own choice where memory allows."""
WINDOWS = {BOOKWORM: 64, "60m": 64, "350m": 16, "1.3b": 8}
"""Of calibration, unless `--windows` says otherwise. Fewer where two cores take long; both sides read as many."""
HELDOUT_WINDOWS = 16
SPARSITY = 0.5
SPECS: dict[str, dict[str, Any]] = {
    "sparsegpt": {"prune": {"method": "sparsegpt", "sparsity": SPARSITY}},
    "wanda": {"score": {"method": "wanda"}, "prune": {"method": "mask", "sparsity": SPARSITY}},
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # As our runner sets it. Threads that wait by spinning slow each other on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True)
class Run:
    """One process that pruned a model folder into another."""

    core_s: float
    """Statistics and pruning: llm-compressor's `oneshot()`; our calibrate, score and prune, which write, too."""
    compress_s: float
    """From folder to folder: loading and saving too, without imports."""
    process_s: float
    cpu_s: float
    """User and system time of the process: steadier than the clock where others use the machine."""
    peak_bytes: float
    """Largest resident set of the process (VmHWM)."""


SHOWN = {
    "statistics + pruning, s": lambda run: run.core_s,
    "folder to folder, s": lambda run: run.compress_s,
    "process, s": lambda run: run.process_s,
    "process, CPU s": lambda run: run.cpu_s,
    "peak memory, MB": lambda run: run.peak_bytes / 1e6,
}


def main() -> None:
    arguments = _arguments()
    os.environ.update(ENVIRONMENT)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {arguments.threads} threads"
    )
    if arguments.alpha:
        measure_alpha(arguments.repeats, arguments.threads)
        return
    python = peer_python(arguments.peer)
    print("espalier:", versions(Path(sys.executable), "torch", "transformers"))
    print("peer:", versions(python, "llmcompressor", "torch", "transformers"))
    with tempfile.TemporaryDirectory(prefix="espalier-bench-", dir=arguments.work) as folder:
        for model in arguments.models:
            windows = arguments.windows or WINDOWS[model]
            case = Case(Path(folder), model, windows, arguments.dtype, arguments.threads, arguments.refresh, python)
            if arguments.warm:
                case.warm_up()
            for method in arguments.methods:
                case.measure(method, arguments.repeats)
            case.remove()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer", type=Path, help="folder of llm-compressor's virtual environment; made if it is not there"
    )
    parser.add_argument("--models", nargs="+", choices=WINDOWS, default=[BOOKWORM, "60m"])
    parser.add_argument("--methods", nargs="+", choices=SPECS, default=list(SPECS))
    parser.add_argument("--windows", type=int, help=f"calibration windows of {LENGTH} tokens; default: by model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and computation"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--refresh", choices=("block", "projection"), default="block", help="ours; the peer does as `block`"
    )
    parser.add_argument("--warm", action="store_true", help="ours is forked by a process that has done the imports")
    parser.add_argument("--work", type=Path, help="where models and results go meanwhile; 1.3b takes 20 GB")
    parser.add_argument("--alpha", action="store_true")
    arguments = parser.parse_args()
    if not arguments.alpha and arguments.peer is None:
        parser.error("--peer FOLDER is needed")
    return arguments


def peer_python(folder: Path) -> Path:
    """The interpreter of llm-compressor's environment."""
    python = folder.resolve() / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for package in PEER_PACKAGES:
            subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
    return python


def versions(python: Path, *packages: str) -> str:
    code = f"from importlib.metadata import version as v; print(*[f'{{p}} {{v(p)}}' for p in {packages}], sep=', ')"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


class Case:
    """One model, its calibration windows, and the two ways to prune it."""

    def __init__(
        self, folder: Path, model: str, windows: int, dtype: str, threads: int, refresh: str, peer: Path
    ) -> None:
        self._folder, self._model, self._dtype, self._threads, self._peer = folder / model, model, dtype, threads, peer
        self._calibrate = {"dataset": "calibration.txt", "samples": windows, "sequence_length": LENGTH}
        self._calibrate["refresh"] = refresh
        self._source = self._folder / "models" / model
        if model == BOOKWORM:
            shutil.copytree(ROOT / "examples/models" / BOOKWORM, self._source)
        else:
            write(SHAPES[model], self._source, dtype)
        self._windows = self._folder / "windows.safetensors"
        self._digest = save_windows(self._windows, self._calibrate)
        self._warm: Warm | None = None

    def warm_up(self) -> None:
        """Start the process that forks ours, and wait until it has."""
        self._warm = Warm()
        _run_forked(self._warm, ["--help"])

    def measure(self, method: str, repeats: int) -> None:
        sides: dict[str, Callable[[str, Path], Run]] = {"espalier": self._ours, "llm-compressor": self._theirs}
        runs: dict[str, list[Run]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, side in sides.items():
                shutil.rmtree(self._folder / name, ignore_errors=True)
                runs[name].append(side(method, self._folder / name))
        read = f"{self._calibrate['samples']} x {LENGTH} tokens, refresh {self._calibrate['refresh']}"
        print(f"\n{method} 50 %, {self._model}, {read}, {self._dtype}, median (least to most) of {repeats}\n")
        print("| | espalier | llm-compressor | ratio |\n|---|---:|---:|---:|")
        for label, value in SHOWN.items():
            ours, theirs = ([value(run) for run in runs[name]] for name in sides)
            ratio = statistics.median(ours) / statistics.median(theirs)
            print(f"| {label} | {_spread(ours)} | {_spread(theirs)} | {ratio:.2f} |")
        found = [self._folder / "espalier/model", self._folder / "llm-compressor"]
        print("| perplexity | {:.4f} | {:.4f} | |".format(*(perplexity(folder) for folder in found)))
        print("| zeros | {:.4%} | {:.4%} | |".format(*(zeros(folder) for folder in found)), flush=True)

    def remove(self) -> None:
        if self._warm is not None:
            self._warm.close()
        shutil.rmtree(self._folder)

    def _ours(self, method: str, out: Path) -> Run:
        spec = SPECS[method] | {
            "model": {"id": self._model},
            "calibrate": self._calibrate,
            "compute": {"dtype": self._dtype, "device": "cpu"},
            "package": {"dtype": self._dtype},
        }
        out.mkdir()
        (out / "spec.json").write_text(json.dumps(spec))
        command = [out, "--models", self._source.parent, "--data", DATA]
        command += ["--checkpoint", out / "checkpoint", "--threads", str(self._threads)]
        if self._warm is not None:
            output, measured = _run_forked(self._warm, [str(argument) for argument in command])
        else:
            output, measured = _run([sys.executable, "-m", "workers.runner", *command])
        report = json.loads(output.splitlines()[-1])["report"]
        assert self._digest in report["provenance"]["data_digests"].values(), "both sides must read the same windows"
        stages = {stage["stage"]: stage["elapsed_s"] for stage in report["stages"]}
        core_s = sum(stages.get(stage, 0.0) for stage in ("calibrate", "allocate", "score", "prune"))
        return Run(core_s, math.fsum(stages.values()), **measured)

    def _theirs(self, method: str, out: Path) -> Run:
        script = Path(__file__).with_name("llmcompressor_run.py")
        command = [self._peer, script, self._source, self._windows, out, "--method", method, "--dtype", self._dtype]
        command += [
            "--sparsity",
            str(SPARSITY),
            "--batch",
            str(BATCH_TOKENS // LENGTH),
            "--threads",
            str(self._threads),
        ]
        output, measured = _run(command)
        took = json.loads(output.splitlines()[-1])
        return Run(took["prune_s"], took["load_s"] + took["prune_s"] + took["save_s"], **measured)


def _spread(values: list[float]) -> str:
    shown = f"{statistics.median(values):,.1f}"
    return shown if len(values) == 1 else f"{shown} ({min(values):,.1f} to {max(values):,.1f})"


def _run(command: list[Any]) -> tuple[str, dict[str, float]]:
    """Standard output of a process, and what it took. Raises with its last words if it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
        peak_bytes = 0
        # Not rusage's ru_maxrss: that counts what this process held when it forked.
        while process.poll() is None:
            peak_bytes = max(peak_bytes, _resident_peak_bytes(process.pid))
            time.sleep(0.02)
        process_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            words = out.read()[-2000:] + err.read()[-4000:]
            sys.exit(f"{' '.join(map(str, command))}\nexit code {process.returncode}\n{words}")
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return out.read(), {"process_s": process_s, "cpu_s": cpu_s, "peak_bytes": peak_bytes}


def _run_forked(warm: Warm, arguments: list[str]) -> tuple[str, dict[str, float]]:
    """The same of a runner that `warm` forks."""
    start, output = time.perf_counter(), b""
    peak_bytes, cpu_s = 0, 0.0
    with tempfile.TemporaryFile() as err:
        child = warm.start(arguments, err)
        while True:
            if select.select([child.events], [], [], 0.02)[0]:
                if not (said := os.read(child.events, 2**16)):
                    break
                output += said
            for pid in Path(f"/proc/{warm.pid}/task/{warm.pid}/children").read_text().split():
                with suppress(OSError):  # it has just ended
                    peak_bytes = max(peak_bytes, _resident_peak_bytes(int(pid)))
                    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                    cpu_s = max(cpu_s, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))
            child.poll()  # closes our copies of its descriptors
        process_s = time.perf_counter() - start
        if code := child.end():
            err.seek(0)
            sys.exit(f"{' '.join(arguments)}\nexit code {code}\n{output[-2000:].decode()}{err.read()[-4000:].decode()}")
    return output.decode(), {"process_s": process_s, "cpu_s": cpu_s, "peak_bytes": peak_bytes}


def _resident_peak_bytes(pid: int) -> int:
    """VmHWM, which only grows; 0 once the process is gone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def save_windows(path: Path, calibrate: dict[str, Any], data: Path = DATA) -> str:
    """Draw the windows as the engine does, save them for the peer, return their digest. The tokenizer is bookworm's,
    as that of every random model."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from workers.engine.model.reading import load_tokens
    from workers.engine.model.windows import ids_digest, random_windows, wanted_of
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import Calibrate

    ref = Calibrate(**calibrate)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/models" / BOOKWORM)
    tokens = load_tokens(ref, tokenizer, Sources(ROOT / "examples/models", data), "", wanted_of(ref))
    windows_NT = random_windows(tokens, ref.sequence_length, count=ref.samples, seed=ref.seed, field="")
    save_file({"windows": windows_NT}, path)
    return ids_digest(windows_NT)


def perplexity(model_dir: Path) -> float:
    """On the first windows of heldout.txt, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/models" / BOOKWORM)
    ids = tokenizer((DATA / "heldout.txt").read_text(), add_special_tokens=False, verbose=False)["input_ids"]
    windows_NT = torch.tensor(ids[: HELDOUT_WINDOWS * LENGTH]).reshape(HELDOUT_WINDOWS, LENGTH)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.no_grad():
        losses = [model(input_ids=window_1T, labels=window_1T).loss.item() for window_1T in windows_NT[:, None]]
    return math.exp(statistics.fmean(losses))


def zeros(model_dir: Path) -> float:
    """Fraction of the decoder's linear weights that are zero."""
    from safetensors import safe_open

    kept = total = 0
    for path in model_dir.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.endswith("_proj.weight"):
                    weight_OI = file.get_tensor(name)
                    kept, total = kept + int(weight_OI.count_nonzero()), total + weight_OI.numel()
    return 1 - kept / total


def measure_alpha(repeats: int, threads: int) -> None:
    """AlphaPruning's metric on one block of the 350 M shape; the model has 24 alike, so it takes 24 times as long."""
    import torch

    from workers.engine.architectures.architecture import LinearFacts
    from workers.engine.contracts.facts import DenseBlock
    from workers.engine.registry import discover

    torch.set_num_threads(threads)
    method = discover()["allocate", "alpha_pruning"]
    assert method.measure is not None
    shape = SHAPES["350m"]
    tensors = block_tensors(shape, 0)
    facts = [LinearFacts(f"model.layers.0.{name}", 0, "", size) for name, size in shape.layers.items()]
    weights = {layer.name: tensors[f"{layer.name}.weight"] for layer in facts}
    block, params = DenseBlock(facts, weights, {}, {}), method.params()  # type: ignore[call-arg]
    ours_s, plain_s = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        ours = method.measure(block, params)
        ours_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        plain = {name: plain_alpha(weight_OI) for name, weight_OI in weights.items()}
        plain_s.append(time.perf_counter() - start)
    differ = max(abs(ours[name] - plain[name]) for name in plain)
    mine, other = statistics.median(ours_s), statistics.median(plain_s)
    print(
        f"\nAlphaPruning's metric, 350m x {shape.blocks} blocks, from one block's median (least to most) of {repeats}\n"
    )
    print("| | seconds a block | seconds a model |\n|---|---:|---:|")
    print(f"| espalier | {mine:.2f} ({min(ours_s):.2f} to {max(ours_s):.2f}) | {mine * shape.blocks:.0f} |")
    print(
        f"| svdvals and a loop | {other:.2f} ({min(plain_s):.2f} to {max(plain_s):.2f}) | {other * shape.blocks:.0f} |"
    )
    print(f"| ratio | {mine / other:.2f} | largest difference of an alpha {differ:.1e} |")


def plain_alpha(weight_OI: Tensor) -> float:
    """`alpha_peak` as its definition reads: all singular values, and a loop over candidates for the tail's start."""
    import torch

    values_N = torch.linalg.svdvals(weight_OI).square().sort().values
    logs_N = values_N.log10()
    low, high = float(logs_N.min()), float(logs_N.max())
    peak = 10 ** (low + int(torch.histc(logs_N, 100, min=low, max=high).argmax()) * (high - low) / 100)
    best, best_distance = 0.0, 1.0
    for start in range(len(values_N) - 1):
        if not math.log10(0.95 * peak) <= values_N[start] <= 1.5 * peak:
            continue
        tail = values_N[start:]
        size = len(tail)
        alpha = 1 + size / float(tail.log().sum() - size * tail[0].log())
        survival = (tail / tail[0]) ** (1 - alpha)
        distance = float((1 - survival - torch.arange(size) / size).abs().max())
        if alpha > 1 and distance < best_distance:
            best, best_distance = alpha, distance
    return best


if __name__ == "__main__":
    main()

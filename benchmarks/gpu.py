"""The engine on a GPU: its tests there, and its methods on blocks of real shapes, beside llm-compressor and beside what
the device could do.

    python -m benchmarks.gpu [--peer PYTHON] [--shapes llama-7b qwen3-8b] [--blocks 8] [--windows 128] [--length 2048]
                             [--only wanda] [--limit-s 150] [--within-s 540] [--device cuda]

The parts come in the order of their worth, each a process with a time limit, and each finished one is a line of
docs/gpu.jsonl: an interrupted run goes on there; one that failed is printed and done again. `--peer` is the interpreter
of an environment with llm-compressor (`benchmarks.engine` makes one); without it our parts run alone. Weights are
random, in bfloat16, and so is the compute.
`--device cpu --shapes tiny --blocks 2 --windows 4 --length 64` tries the script where there is no GPU.

The floor of a part is the time that its arithmetic and its transfers take at rates measured on the same device by the
first part. N = windows, T = tokens of a window, O = outputs, I = inputs of a linear layer.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.cells import known
from benchmarks.engine import DATA, ENVIRONMENT, ROOT, save_windows
from benchmarks.random_model import SHAPES, Shape, write

RESULTS = ROOT / "docs/gpu.jsonl"
CACHE = ROOT / ".espalier/gpu"
TUNE_STEPS = 20
SPARSITY = 0.5
MASK = {"prune": {"method": "mask", "sparsity": SPARSITY}}
SPECS: dict[str, dict[str, Any]] = {
    "wanda": {"score": {"method": "wanda"}} | MASK,
    "sparsegpt": {"prune": {"method": "sparsegpt", "sparsity": SPARSITY}},
    "alpha_pruning": {"score": {"method": "magnitude"}, "allocate": {"method": "alpha_pruning"}} | MASK,
    "taylor": {"score": {"method": "taylor"}, "prune": {"method": "structured", "sparsity": 0.2}},
    "lora": {
        "score": {"method": "magnitude"},
        "tune": {
            "method": "lora", "dataset": "calibration.txt", "steps": TUNE_STEPS, "batch": 4, "sequence_length": 512,
            "evaluate_every": TUNE_STEPS, "distill": None,
        },
    } | MASK,
    "mrp": {"prune": {"method": "mrp", "sparsity": SPARSITY}},
    "fista": {"prune": {"method": "fista", "sparsity": SPARSITY}},
}  # fmt: skip
TESTS_LIMIT = 2
"""Limits of a part that a file of tests may take."""
PEERS = ("wanda", "sparsegpt")
"""Methods that llm-compressor has too."""


@dataclass(frozen=True)
class Work:
    """Shape and text of a part."""

    shape: Shape
    windows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.windows * self.length


def main() -> int:
    """1 where a part failed."""
    arguments = _arguments()
    begun_s, failed = time.monotonic(), 0
    os.environ.update(ENVIRONMENT | {"PYTHONUNBUFFERED": "1"})
    for key, run in parts(arguments):
        if arguments.only not in json.dumps(key) or any(key.items() <= row.items() for row in known(RESULTS)):
            continue
        started_s = time.monotonic()
        limit_s = arguments.limit_s * (TESTS_LIMIT if key["part"].startswith("tests/") else 1)
        if arguments.within_s and started_s - begun_s + limit_s > arguments.within_s:
            print(f"{_named(key)} and what follows might take longer than --within-s leaves", flush=True)
            break
        try:
            row = key | run()
        except subprocess.TimeoutExpired as late:
            row = key | {"unfinished_after_s": late.timeout, "last": _tail(late.stdout)}
        except Exception as error:  # the next part may do
            print(f"{_named(key)}: {type(error).__name__}: {error}"[:6000], flush=True)
            failed = 1
            continue
        print(f"{_named(key)}: {json.dumps({k: v for k, v in row.items() if k not in key})[:600]}", flush=True)
        print(f"    {time.monotonic() - started_s:.0f} s", flush=True)
        with RESULTS.open("a") as out:
            out.write(json.dumps(row) + "\n")
    print(table(known(RESULTS)))
    return failed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="PYTHON")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=["llama-7b", "qwen3-8b"])
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--only", default="", help="parts whose key holds this text")
    parser.add_argument("--limit-s", type=float, default=150, help="of each part")
    parser.add_argument("--within-s", type=float, help="begin no part that could end later")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args()


def parts(arguments: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """(key, what measures it), the most wanted first."""
    device = device_name(arguments.device)
    yield {"part": "tests/gpu/test_kernels.py", "device": device}, lambda: tested("test_kernels.py", arguments)
    yield {"part": "rates", "device": device}, lambda: rates(arguments)
    for name in arguments.shapes:
        work = Work(replace(SHAPES[name], blocks=arguments.blocks), arguments.windows, arguments.length)
        size = {"shape": name, "blocks": arguments.blocks, "windows": work.windows, "length": work.length}
        for method in SPECS:
            key = {"part": method, "device": device} | size

            def ours(method: str = method, work: Work = work, name: str = name) -> dict[str, Any]:
                return _ours(method, _model(name, work), work, arguments, device)

            def theirs(method: str = method, work: Work = work, name: str = name) -> dict[str, Any]:
                return _theirs(method, _model(name, work), work, arguments)

            yield key | {"by": "espalier"}, ours
            if arguments.peer and method in PEERS:
                yield key | {"by": "llm-compressor"}, theirs
            if method == "sparsegpt" and name == arguments.shapes[0]:
                part = "tests/gpu/test_on_the_gpu.py"
                yield {"part": part, "device": device}, lambda: tested("test_on_the_gpu.py", arguments)


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def tested(file: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the tests of a file of tests/gpu, several at once where pytest-xdist is there. Raises RuntimeError with the
    names of those that fail."""
    command = [sys.executable, "-m", "pytest", f"tests/gpu/{file}", "-m", "gpu", "-q", "--tb=short"]
    if importlib.util.find_spec("xdist"):
        command += ["--numprocesses", str(min(8, max(1, len(os.sched_getaffinity(0)) // 2)))]
    os.environ["ESPALIER_TEST_DEVICE"] = arguments.device
    return {"tests": _run(command, TESTS_LIMIT * arguments.limit_s).splitlines()[-1]}


def rates(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measured once: bfloat16 products (FLOP/s), memory of the device and both ways across the bus (bytes/s)."""
    code = f"from benchmarks.gpu import measure_rates; measure_rates({arguments.device!r})"
    found: dict[str, Any] = json.loads(_run([sys.executable, "-c", code], arguments.limit_s).splitlines()[-1])
    return found


def measure_rates(device: str) -> None:
    import torch

    size, host = (8192, 2**28) if device == "cuda" else (1024, 2**24)
    square = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    square_f32 = square.float()
    pinned = torch.empty(host, dtype=torch.uint8, pin_memory=device == "cuda")
    there = torch.empty(host, dtype=torch.uint8, device=device)
    again = torch.empty_like(there)

    def rate(amount: float, run: Callable[[], Any]) -> float:
        took_s = []
        for _ in range(8):
            if device == "cuda":
                torch.cuda.synchronize()
            started_s = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            took_s.append(time.perf_counter() - started_s)
        return amount / statistics.median(took_s[2:])

    found = {
        "matmul_bf16_flop_s": rate(2 * size**3, lambda: square @ square),
        "matmul_f32_flop_s": rate(2 * size**3, lambda: square_f32 @ square_f32),
        "device_bytes_s": rate(2 * host, lambda: again.copy_(there)),
        "to_device_bytes_s": rate(host, lambda: there.copy_(pinned, non_blocking=True)),
        "from_device_bytes_s": rate(host, lambda: pinned.copy_(there, non_blocking=True)),
        "torch": torch.__version__,
    }
    print(json.dumps(found))


def floor_s(method: str, work: Work, found: dict[str, Any]) -> float | None:
    """Seconds that forward passes, statistics and solvers take at the device's measured rates, weights crossing the bus
    once each way; None for methods whose arithmetic depends on what they find."""
    shape, tokens = work.shape, work.tokens
    linear = sum(o * i for o, i in shape.layers.values())
    attention = 2 * work.length * shape.hidden  # products of scores and of values, causal: half of 4 T D
    forward = tokens * (2 * linear + attention)
    flop, flop_f32 = 2.0 * forward, 0.0  # once while it is dense, once as it is pruned
    streams = {i for _, i in shape.layers.values()}
    gram = tokens * 2.0 * (3 * shape.hidden**2 + shape.mlp**2)  # attention and MLP inputs, attention output; MLP hidden
    if method == "sparsegpt":
        flop += gram
        flop_f32 += sum(2.0 * o * i * i for o, i in shape.layers.values()) + sum(2.0 * i**3 for i in streams)
    elif method == "taylor":
        flop = 3.0 * forward
    elif method != "wanda":
        return None
    weights = 2.0 * linear
    return shape.blocks * (
        flop / found["matmul_bf16_flop_s"]
        + flop_f32 / found["matmul_f32_flop_s"]
        + weights / found["to_device_bytes_s"]
        + weights / found["from_device_bytes_s"]
    )


def _model(name: str, work: Work) -> Path:
    """The model's folder, made at the first call."""
    folder = CACHE / "models" / f"{name}-{work.shape.blocks}"
    if not (folder / "tokenizer.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write(work.shape, folder, "bfloat16", positions=max(4096, work.length))
    return folder


def _calibrate(work: Work) -> dict[str, Any]:
    return {"dataset": "calibration.txt", "samples": work.windows, "sequence_length": work.length}


def _text(work: Work) -> Path:
    """A text of enough tokens: the example's, over and over."""
    data = CACHE / "data"
    data.mkdir(parents=True, exist_ok=True)
    text = (DATA / "calibration.txt").read_text(encoding="utf-8")
    times = 1 + 4 * work.tokens // len(text)  # a token is four characters at most on average
    file = data / "calibration.txt"
    if not file.exists() or file.stat().st_size < len(text) * times:
        file.write_text(text * times, encoding="utf-8")
    return data


def _ours(method: str, model: Path, work: Work, arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    spec = SPECS[method] | {
        "model": {"id": model.name},
        "calibrate": _calibrate(work),
        "compute": {"dtype": "bfloat16", "device": arguments.device},
    }
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        (folder / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "workers.runner", str(folder), "--models", str(model.parent)]
        command += ["--data", str(_text(work)), "--checkpoint", str(folder / "checkpoint")]
        with busy_share(arguments.device) as busy:
            started_s = time.monotonic()
            ran = _run(command, arguments.limit_s)
            ended_s = time.monotonic()
    events = [json.loads(line) for line in ran.splitlines()]
    report = events[-1]["report"]
    stages = {stage["stage"]: round(stage["elapsed_s"], 2) for stage in report["stages"]}
    peaks = [stage["device_peak_memory_bytes"] for stage in report["stages"] if stage["device_peak_memory_bytes"]]
    found = next((row for row in known(RESULTS) if row["part"] == "rates" and row["device"] == device), None)
    floor = floor_s(method, work, found) if found else None
    row = {
        "process_s": round(ended_s - started_s, 2),
        "before_first_stage_s": round(events[0]["at"] - started_s, 2),
        "after_result_s": round(ended_s - events[-1]["at"], 2),
        "stages_s": stages,
        "device_peak_bytes": max(peaks, default=None),
        "busy_share": busy(*_pruning_s(events)),
        "floor_s": floor and round(floor, 2),
        "sparsity": report["sparsity"],
        "versions": report["provenance"]["versions"],
    }
    if method == "lora":
        tokens = SPECS["lora"]["tune"]["batch"] * SPECS["lora"]["tune"]["sequence_length"]
        row["steps_per_s"] = round(report["tune"]["tokens_per_s"] / tokens, 3)  # without loading and evaluation
    return row


def _pruning_s(events: list[dict[str, Any]]) -> tuple[float, float]:
    """When the prune stage began and ended, on the clock of all processes."""
    stages = [event for event in events if event["event"] == "stage"]
    first = next(index for index, event in enumerate(stages) if event["stage"] == "prune")
    return stages[first]["at"], stages[first + 1]["at"]


def _theirs(method: str, model: Path, work: Work, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        windows = Path(name) / "windows.safetensors"
        save_windows(windows, _calibrate(work), _text(work))
        script = Path(__file__).with_name("llmcompressor_run.py")
        command = [str(arguments.peer), str(script), str(model), str(windows), f"{name}/out", "--method", method]
        command += ["--dtype", "bfloat16", "--sparsity", str(SPARSITY), "--device", arguments.device]
        started_s = time.perf_counter()
        ran = _run(command, arguments.limit_s)
        process_s = time.perf_counter() - started_s
    return {"process_s": round(process_s, 2)} | json.loads(ran.splitlines()[-1])


def _run(command: list[str], limit_s: float) -> str:
    """Standard output of a process. Raises TimeoutExpired, and RuntimeError with its last words if it fails."""
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    if ran.returncode:
        raise RuntimeError(f"exit code {ran.returncode}\n{ran.stdout[-1500:]}\n{ran.stderr[-2500:]}")
    return ran.stdout


@contextmanager
def busy_share(device: str) -> Iterator[Callable[[float, float], float | None]]:
    """Mean of NVML's utilisation, ten samples a second, between two times of `time.monotonic`; None on a CPU."""
    samples: list[tuple[float, float]] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
    process = None
    if device == "cuda" and shutil.which("nvidia-smi"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        def watch(lines: IO[str]) -> None:
            samples.extend((time.monotonic(), float(line.split()[0]) / 100) for line in lines)

        assert process.stdout is not None
        threading.Thread(target=watch, args=(process.stdout,), daemon=True).start()

    def share(begin_s: float, end_s: float) -> float | None:
        within = [busy for at_s, busy in samples if begin_s <= at_s <= end_s]
        return round(statistics.fmean(within), 3) if within else None

    try:
        yield share
    finally:
        if process is not None:
            process.kill()
            process.wait()


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: ours, the peer's, the floor."""
    lines = [
        "| device | shape | method | espalier s | prune stage s | llm-compressor s | ratio | floor s "
        "| GPU busy pruning |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row.get("by") != "espalier":
            continue
        same = {name: row[name] for name in ("part", "device", "shape", "blocks", "windows", "length")}
        peer = next((r for r in rows if r.get("by") == "llm-compressor" and same.items() <= r.items()), {})
        ours_s, theirs_s = row.get("process_s"), peer.get("process_s")
        cells = [
            row["device"],
            f"{row['shape']}, {row['blocks']} blocks, {row['windows']} x {row['length']}",
            row["part"],
            _seconds(row, ours_s),
            str(row.get("stages_s", {}).get("prune", "")),
            _seconds(peer, theirs_s),
            f"{ours_s / theirs_s:.2f}" if ours_s and theirs_s else "",
            str(row.get("floor_s") or ""),
            str(row.get("busy_share") or ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(row: dict[str, Any], process_s: float | None) -> str:
    if process_s:
        return f"{process_s:.1f}"
    return f"> {row['unfinished_after_s']:.0f}" if "unfinished_after_s" in row else ""


def _named(key: dict[str, Any]) -> str:
    return " ".join(str(value) for value in key.values())


def _tail(output: bytes | str | None) -> str:
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return text[-600:]


if __name__ == "__main__":
    sys.exit(main())

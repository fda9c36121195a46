"""Every method, removal, tuner and evaluator on a GPU beside the CPU: `make gpu`, where there is one.

Float32: the device adds up in another order, so that scores which are nearly equal may change places, and every later
block sees the difference. What is asserted: as many zeros, nearly the same of them, and a perplexity within 0.1 %.
bfloat16: perplexity within 2 % of the CPU's in float32; its rounding is 2^-9 of every product's factors.
ESPALIER_TEST_DEVICE=cpu runs the same tests without a GPU, to try them.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from benchmarks.digests import PERPLEXITY, ROOT, TEXT, digest, specs
from workers.engine.errors import EngineError
from workers.engine.events import Silent
from workers.engine.model.memory import Place, Room
from workers.engine.pipeline import compress
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("ESPALIER_TEST_DEVICE", "cuda")
SOURCES = Sources(ROOT / "examples/models", ROOT / "examples/data")
OWN_MODEL = {name: spec for name, spec in specs().items() if spec["model"]["id"] == "bookworm-7m"}
CHANCY = ("random", "tune", "isc", "at_most", "perplexity_ratio", "search")
"""Their choices follow from measurements (or from random numbers of the device): as many zeros, not the same ones."""
WIDE = {"score": {"method": "wanda"}, "prune": {"method": "mask", "sparsity": 0.5}}
EVALUATORS: dict[str, dict[str, Any]] = {
    "perplexity": PERPLEXITY,
    "continuations": {"method": "continuations", "prompts": ["The old house"], "new_tokens": 8},
    "generation_speed": {"method": "generation_speed", "prompt_tokens": 32, "new_tokens": 8, "repeats": 2},
    "macs": {"method": "macs"},
    "size": {"method": "size"},
}


@pytest.fixture(autouse=True)
def _a_device() -> None:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.fail("no CUDA device: ESPALIER_TEST_DEVICE=cpu tries these tests without one")


def run(folder: Path, spec: dict[str, Any], **compute: Any) -> Report:
    asked = CompressionSpec.model_validate({"evaluate": [PERPLEXITY]} | spec | {"compute": compute})
    folder.mkdir()
    return compress(asked, folder, SOURCES, Silent(), folder / "checkpoint")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted((folder / "model").glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return found


def perplexity(report: Report) -> float:
    (value,) = [metric.pruned for metric in report.metrics if metric.name.startswith("perplexity/")]
    return value


@pytest.mark.parametrize("name", OWN_MODEL)
def test_a_job_in_float32_ends_as_on_the_cpu(name: str, tmp_path: Path) -> None:
    spec = OWN_MODEL[name]
    compute = {key: value for key, value in spec.get("compute", {}).items() if key != "dtype"}
    here = run(tmp_path / "cpu", spec, **compute | {"device": "cpu"})
    there = run(tmp_path / "device", spec, **compute | {"device": DEVICE})
    chancy = any(word in name for word in CHANCY)
    assert there.sparsity == pytest.approx(here.sparsity, abs=0.02 if chancy else 1e-6)
    assert perplexity(there) == pytest.approx(perplexity(here), rel=0.05 if chancy else 1e-3)
    if not chancy:
        ours, theirs = weights(tmp_path / "device"), weights(tmp_path / "cpu")
        assert {key: tensor.shape for key, tensor in ours.items()} == {k: t.shape for k, t in theirs.items()}
        same = sum(int(((ours[key] == 0) == (theirs[key] == 0)).sum()) for key in ours)
        assert same / sum(tensor.numel() for tensor in ours.values()) > 0.999


@pytest.mark.parametrize("name", ["score wanda", "prune sparsegpt", "prune mrp", "units taylor", "tune lora"])
def test_bfloat16_costs_little(name: str, tmp_path: Path) -> None:
    here = run(tmp_path / "cpu", OWN_MODEL[name], device="cpu", dtype="float32")
    there = run(tmp_path / "device", OWN_MODEL[name], device=DEVICE, dtype="bfloat16")
    assert perplexity(there) == pytest.approx(perplexity(here), rel=0.02)


@pytest.mark.parametrize("name", EVALUATORS)
def test_evaluators_agree(name: str, tmp_path: Path) -> None:
    spec = {"model": {"id": "bookworm-7m"}, "calibrate": TEXT, **WIDE, "evaluate": [EVALUATORS[name]]}
    reports = [run(tmp_path / device, spec, device=device) for device in dict.fromkeys(("cpu", DEVICE))]
    here, there = reports[0], reports[-1]
    assert [metric.name for metric in there.metrics] == [metric.name for metric in here.metrics]
    if name == "generation_speed":
        assert all(metric.pruned > 0 for metric in there.metrics)
        return
    for ours, theirs in zip(there.metrics, here.metrics, strict=True):
        assert ours.dense == pytest.approx(theirs.dense, rel=1e-4), ours.name
    if name == "continuations":
        assert [sample.dense for sample in there.samples] == [sample.dense for sample in here.samples]


@pytest.mark.parametrize("name", ["prune sparsegpt", "units taylor", "refresh projection"])
def test_where_hidden_states_lie_changes_no_byte(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device, in pinned memory, in a file, and in all of them at once."""
    spec = OWN_MODEL[name]
    states = 6 * 128 * 256 * 4  # bytes of the text between two blocks
    found, places = set(), set()
    take = Room.take

    def noted(room: Room, size: int) -> Place:
        places.add(place := take(room, size))
        return place

    monkeypatch.setattr(Room, "take", noted)
    rooms = (Room(device=2**30), Room(host=2**30), Room(), Room(device=states, host=states))
    for number, room in enumerate(rooms):
        monkeypatch.setattr("workers.engine.stages.load.room_for_states", lambda *_, room=room, **__: room)
        run(tmp_path / str(number), spec, device=DEVICE)
        found.add(digest(tmp_path / str(number) / "model"))
    assert places == {"device", "host", "file"}
    assert len(found) == 1


@pytest.mark.skipif(DEVICE != "cuda", reason="fills the memory of a GPU")
def test_a_device_out_of_memory_is_named_with_a_remedy(tmp_path: Path) -> None:
    gc.collect()
    torch.cuda.empty_cache()  # what the tests before have left would do for a small model
    torch.cuda.set_per_process_memory_fraction(1e-5)
    try:
        with pytest.raises(EngineError) as raised:
            run(tmp_path / "job", OWN_MODEL["prune sparsegpt"], device=DEVICE)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert raised.value.code == "cuda_oom"
    assert raised.value.hint


def test_two_jobs_on_one_device(tmp_path: Path) -> None:
    runners = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        spec = OWN_MODEL["prune sparsegpt"] | {"compute": {"device": DEVICE, "memory_budget": 2**30}}
        (folder / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, "-m", "workers.runner", folder, "--models", SOURCES.models_dir]
        command += ["--data", SOURCES.data_dir, "--checkpoint", folder / "checkpoint"]
        runners.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    assert [runner.wait(timeout=240) for runner in runners] == [0, 0]
    assert digest(tmp_path / "0/model") == digest(tmp_path / "1/model")


@pytest.mark.parametrize("visible", ["0,0", "0,1"], ids=["gloo, on one GPU", "nccl, on two"])
@pytest.mark.parametrize("name", ["score wanda", "prune sparsegpt", "units taylor"])
def test_two_ranks_make_what_one_makes(name: str, visible: str, tmp_path: Path) -> None:
    if visible == "0,1" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    here = run(tmp_path / "one", OWN_MODEL[name], device=DEVICE)
    folder = tmp_path / "two"
    folder.mkdir()
    spec = {"evaluate": [PERPLEXITY]} | OWN_MODEL[name] | {"compute": {"device": DEVICE, "devices": 2}}
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "workers.runner", folder, "--models", SOURCES.models_dir, "--gpus", visible]
    command += ["--data", SOURCES.data_dir, "--checkpoint", folder / "checkpoint"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1] + done.stderr[-2000:]
    there = Report.model_validate(json.loads(done.stdout.splitlines()[-1])["report"])
    assert perplexity(there) == pytest.approx(perplexity(here), rel=1e-3)
    ours, theirs = weights(folder), weights(tmp_path / "one")
    assert {key: tensor.shape for key, tensor in ours.items()} == {k: t.shape for k, t in theirs.items()}
    same = sum(int(((ours[key] == 0) == (theirs[key] == 0)).sum()) for key in ours)
    assert same / sum(tensor.numel() for tensor in ours.values()) > 0.999

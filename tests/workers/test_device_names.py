"""Which devices a worker has, and how a job's process is told of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.cli.exits import Usage
from app.cli.processes import worker_command
from app.jobs.fleet import Hardware
from app.settings import Settings
from workers import devices

LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bb)
  MIG 3g.40gb     Device  0: (UUID: MIG-b0)
  MIG 3g.40gb     Device  1: (UUID: MIG-b1)
GPU 2: NVIDIA A100-PCIE-40GB (UUID: GPU-cc)
"""


def test_the_driver_says_what_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "0, GPU-aa, 81559, NVIDIA H100, 80GB\n1, GPU-bb, [N/A], NVIDIA Thor\n"
    monkeypatch.setattr(devices, "DETAILS", ["printf", "%s", listing])
    h100, thor = Hardware("NVIDIA H100, 80GB", 81559 * 2**20), Hardware("NVIDIA Thor", None)
    assert devices.hardware() == {"0": h100, "GPU-aa": h100, "1": thor, "GPU-bb": thor}
    monkeypatch.setattr(devices, "DETAILS", ["no-such-program"])
    assert devices.hardware() == {}


@pytest.fixture
def gpu_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Settings(home=tmp_path, worker_devices="gpu")


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("2", ["2"]),
        ("0, 1,2", ["0", "1", "2"]),
        ("MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/7/0,GPU-8932f937", None),
        ("1,-1,0", ["1"]),
        ("1,1", ["1"]),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_names_pass_through_as_cuda_reads_them(
    gpu_worker: Settings, monkeypatch: pytest.MonkeyPatch, visible: str, found: list[str] | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.found(gpu_worker) == ("gpu", visible.split(",") if found is None else found)


def test_else_the_driver_lists_them_and_instances_in_place_of_their_gpu(
    gpu_worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "LISTING", ["printf", "%s", LISTING])
    assert devices.found(gpu_worker) == ("gpu", ["GPU-aa", "MIG-b0", "MIG-b1", "GPU-cc"])
    for broken in (["no-such-program"], ["false"]):
        monkeypatch.setattr(devices, "LISTING", broken)
        assert devices.found(gpu_worker) == ("gpu", [])


def test_a_worker_without_gpus_counts_its_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.found(Settings(home=tmp_path)) == ("cpu", ["0"])
    assert devices.found(Settings(home=tmp_path, worker_slots=3)) == ("cpu", ["0", "1", "2"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(devices, "DRIVERS", [tmp_path / "none"])
    monkeypatch.setattr(devices, "LISTING", ["no-such-program"])
    assert devices.found(Settings(home=tmp_path, worker_slots=3)) == ("cpu", ["0", "1", "2"]), "no driver to name them"
    monkeypatch.setattr(devices, "LISTING", ["printf", "%s", LISTING])
    assert devices.found(Settings(home=tmp_path, worker_slots=3)) == ("gpu", ["0", "1"])
    monkeypatch.setattr(devices, "LISTING", ["no-such-program"])
    monkeypatch.setattr(devices, "DRIVERS", [tmp_path / "none", tmp_path])
    assert devices.found(Settings(home=tmp_path, worker_slots=3)) == ("gpu", ["0", "1"])
    assert devices.found(Settings(home=tmp_path, worker_slots=3, worker_devices="cpu")) == ("cpu", ["0", "1", "2"])
    with pytest.raises(ValidationError, match="worker_slots is for workers without GPUs"):
        Settings(home=tmp_path, worker_slots=3, worker_devices="gpu")


def test_a_worker_listens_where_its_jobs_are_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DRIVERS", [tmp_path])
    for visible, queues in (("", "any"), ("0", "gpu,any")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        command = worker_command(Settings(home=tmp_path))
        assert command[command.index("--queues") + 1] == queues


def test_a_worker_that_is_to_have_gpus_and_finds_none_is_refused(
    gpu_worker: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(Usage, match="CUDA_VISIBLE_DEVICES names none"):
        worker_command(gpu_worker)


def test_numbers_are_their_owners_and_uuids_everybodys() -> None:
    assert devices.keys(["0", "GPU-aa"], "host") == {"host/0": "0", "GPU-aa": "GPU-aa"}


def test_slots_share_the_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: set(range(16)))
    settings = Settings(home=tmp_path)
    shares = [devices.threads(settings, taken, of) for taken, of in ((1, 1), (1, 4), (2, 4), (4, 4), (1, 64))]
    assert shares == [0, 4, 8, 16, 1]
    assert devices.threads(Settings(home=tmp_path, worker_threads=3), 2, 4) == 6


ENGINE = """
import os, sys, types
from workers import runner
from workers.engine.errors import InvalidSpec

def compress(*args, **kwargs):
    raise InvalidSpec(repr(os.environ.get("CUDA_VISIBLE_DEVICES")), "none")

sys.modules["torch"] = types.SimpleNamespace()
sys.modules["workers.engine.ranks"] = types.SimpleNamespace(Ranks=object, join=None)
sys.modules["workers.engine.pipeline"] = types.SimpleNamespace(compress=compress)
sys.exit(runner.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("option", "seen"), [([], "'7'"), (["--gpus", "GPU-aa,MIG-b0"], "'GPU-aa,MIG-b0'"), (["--gpus", ""], "''")]
)
def test_a_runner_sees_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str], seen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    spec = {"model": {"id": "m"}, "score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    folders = ["--models", "m", "--data", "d", "--checkpoint", "c"]
    command = [sys.executable, "-c", ENGINE, tmp_path, *folders, *option]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout.splitlines()[-1])["message"] == seen, done.stderr

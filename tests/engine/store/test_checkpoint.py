"""Resume points: whole or absent, refused when they belong to something else, good after a kill at any moment."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from tests.helpers.small_models import spec_of, walk
from workers.engine.contracts.params import Stat
from workers.engine.errors import (
    CheckpointMismatch,
    DeviceOutOfMemory,
    DiskFull,
    HostOutOfMemory,
    NumericalFailure,
    StorageUnavailable,
)
from workers.engine.events import Silent
from workers.engine.failures import translated
from workers.engine.model.placement import InFile
from workers.engine.registry import methods
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec
from workers.engine.store.checkpoint import Checkpoint


def test_json_round_trip(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c")
    assert checkpoint.load_json("dense") is None
    checkpoint.save_json("dense", {"perplexity": 35.4})
    assert Checkpoint(tmp_path / "c").load_json("dense") == {"perplexity": 35.4}


def test_scores_round_trip_in_eight_bytes_each(tmp_path: Path) -> None:
    """Channels of experts may be millions. A block may have none, the last too; what must stay is infinite."""
    drawn = torch.randn(100_000, dtype=torch.float64).tolist()
    scores = [{}, {"expert_channel.1": drawn, "expert_channel.10": [math.inf, 1 / 3]}, {}]
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.load_scores() is None
    checkpoint.save_scores(scores)
    assert Checkpoint(tmp_path).load_scores() == scores
    (kept,) = tmp_path.glob("unit-scores.*")
    assert kept.stat().st_size < 8 * 100_002 + 1000


def test_another_fingerprint_is_refused_by_what_differs(tmp_path: Path) -> None:
    Checkpoint(tmp_path).claim({"spec": "a", "torch": "1", "model": "m"})
    Checkpoint(tmp_path).claim({"spec": "a", "torch": "1", "model": "m"})
    with pytest.raises(CheckpointMismatch, match="another spec, torch"):
        Checkpoint(tmp_path).claim({"spec": "b", "torch": "2", "model": "m"})


def keep(checkpoint: Checkpoint, block: int, content: bytes) -> None:
    with checkpoint.new_hidden() as file:
        file.write(content)
        checkpoint.keep_hidden(block, file)


def latest(checkpoint: Checkpoint) -> tuple[int, bytes] | None:
    found = checkpoint.latest_hidden()
    if found is None:
        return None
    block, file = found
    with file:
        return block, file.read()


def test_hidden_states_replace_their_predecessors(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    assert latest(checkpoint) is None
    keep(checkpoint, 1, b"first")
    keep(checkpoint, 2, b"second")
    assert [file.name.partition(".")[0] for file in tmp_path.iterdir()] == ["hidden-00002"]
    assert latest(checkpoint) == (2, b"second")


def test_a_stale_writer_does_not_set_its_successor_back(tmp_path: Path) -> None:
    successor, stale = Checkpoint(tmp_path), Checkpoint(tmp_path)
    keep(successor, 5, b"further")
    keep(stale, 2, b"behind")
    assert latest(successor) == (5, b"further")


def test_hidden_states_are_readable_while_they_are_made_a_resume_point(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    with checkpoint.new_hidden() as file:
        hidden = InFile(file, (2, 3), torch.bfloat16, torch.device("cpu"))
        first, second = torch.randn(2, 2, 3).bfloat16(), torch.randn(1, 2, 3).bfloat16()
        hidden.append(first)
        hidden.append(second)
        checkpoint.keep_hidden(1, file)
        keep(checkpoint, 2, b"")  # which takes the name away
        assert torch.equal(hidden.read(slice(1, 3)), torch.cat([first[1:], second]))
        with pytest.raises(OSError, match="ends at byte 36"):
            hidden.read(slice(2, 4))


def test_half_written_files_do_not_count_and_go(tmp_path: Path) -> None:
    (tmp_path / "blocks.1-abc.tmp").write_bytes(b"half")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.finished_blocks() == 0
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    """Stands for kill -9: nothing in the engine catches it."""


class Recorder(Silent):
    def __init__(self) -> None:
        self.resumed: list[int] = []
        self.done: list[int] = []

    def resume(self, block: int) -> None:
        self.resumed.append(block)

    def checkpoint(self, block: int) -> None:
        self.done.append(block)


def every_walk() -> list[Any]:
    """A spec for each way to go through the blocks: every pruner and refiner, both refreshes, and no text at all.

    Of three blocks, or of two that are left of them.
    """
    unscored = [method for method in methods("prune") if "weight" in method.units and method.scores != "required"]
    scored = [method for method in methods("prune") if "weight" in method.units and method.scores != "unused"]
    parts: dict[str, dict[str, Any]] = {
        "no-text": {"prune": {"method": scored[0].name, "sparsity": 0.5}, "score": {"method": "magnitude"}}
    }
    for refresh in ("block", "projection"):
        text = {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32, "refresh": refresh}
        for method in unscored:
            prune = {"method": method.name, "sparsity": 0.5}
            parts[f"{method.name}-{refresh}"] = {"prune": prune, "score": None, "calibrate": text}
        for method in scored:
            parts[f"{method.name}-scored-{refresh}"] = {
                "prune": {"method": method.name, "pattern": "2:4"},
                "calibrate": text,
            }
        for refiner in methods("refine"):
            parts[f"{refiner.name}-{refresh}"] = {"refine": {"method": refiner.name}, "calibrate": text}
        for method in methods("prune"):
            if "head" in method.units and "sparsity" in method.params.model_fields:
                parts[f"{method.name}-{refresh}"] = {
                    "prune": {"method": method.name, "sparsity": 0.3},
                    "allocate": {"method": "ranking"},
                    "calibrate": text,
                }
    for method in methods("prune"):
        if method.units == ("layer",):
            parts[method.name] = {"prune": {"method": method.name, "layers": 1}, "score": {"method": "block_influence"}}
        if method.units == ("hidden",):
            parts[method.name] = {"prune": {"method": method.name, "sparsity": 0.25}, "score": {"method": "magnitude"}}
        if {"hidden", "layer"} <= {*method.units}:
            sizes = {"hidden": 24, "heads": 2, "layers": 2, "channels": 32}
            parts[method.name] = {"prune": {"method": method.name} | sizes, "score": {"method": "taylor"}}
    return [pytest.param(spec_of(**part), id=name) for name, part in parts.items()]


@pytest.mark.parametrize("spec", every_walk())
def test_killed_and_resumed_to_the_same_bytes(
    spec: CompressionSpec, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = walk(spec, sources, tmp_path / "whole").blocks()
    assert len(expected) == (2 if "layer" in (spec.edit.kinds or spec.editor.units) else 3)
    replace = Path.replace
    # Blocks 1 and 2 are pruned behind a kill: from the second one's own weights and from its inputs in a file.
    for last in ("hidden-00001", "blocks-00001"):
        if last.startswith("hidden") and spec.walk_needs is Stat.NONE:
            continue

        def dying(self: Path, target: Path, last: str = last) -> Path:
            result = replace(self, target)
            if Path(target).name.startswith(last):
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            with pytest.raises(Killed):
                walk(spec, sources, tmp_path / last)
        events = Recorder()
        assert walk(spec, sources, tmp_path / last, events=events).blocks() == expected
        assert events.resumed == [1 if spec.walk_needs is not Stat.NONE else 2]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("score", ["wanda", "magnitude"])
def test_kill_around_every_write(
    score: str, when: str, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(score={"method": score})
    expected = walk(spec, sources, tmp_path / "whole").blocks()
    replace = Path.replace
    # The allocation, what is outside, three blocks, and between them two hidden states.
    for fatal in range(7 if score == "wanda" else 5):
        writes = 0

        def dying(self: Path, target: Any, fatal: int = fatal) -> Path:
            nonlocal writes
            writes += 1
            if writes == fatal + 1 and when == "before":
                raise Killed
            result = replace(self, target)
            if writes == fatal + 1:
                raise Killed
            return result

        folder = tmp_path / f"killed-{fatal}"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            with pytest.raises(Killed):
                walk(spec, sources, folder)
        on_disk = len(list(folder.glob("checkpoint/blocks-*")))
        events = Recorder()
        assert walk(spec, sources, folder, events=events).blocks() == expected
        start = events.resumed[0] if events.resumed else 0
        assert events.done == list(range(start, 3))
        assert on_disk - start <= 1, "at most the block that was being finished is done again"


def test_a_retry_prunes_to_the_allocation_of_the_first_attempt(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(allocate={"method": "owl"})
    first = walk(spec, sources, tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("workers.engine.model.dense_statistics.collect", fail)
    again = walk(spec, sources, tmp_path)
    assert again.allocation == first.allocation
    assert again.blocks() == first.blocks()
    with pytest.raises(AssertionError, match="measured again"):
        walk(spec, sources, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("native", "translation"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), DeviceOutOfMemory),
        # As CUDA, cuBLAS and NCCL put it; pinned memory that the system refuses is among the first.
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), DeviceOutOfMemory),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            DeviceOutOfMemory,
        ),
        (
            RuntimeError("ncclUnhandledCudaError: Call to CUDA failed.\nCuda failure 2 'out of memory'"),
            DeviceOutOfMemory,
        ),
        (MemoryError(), HostOutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), HostOutOfMemory),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull),
        (OSError(errno.EROFS, "Read-only file system", "/scratch/x"), StorageUnavailable),
        (PermissionError(errno.EACCES, "Permission denied", "/scratch/x"), StorageUnavailable),
        (OSError(errno.EIO, "Input/output error"), StorageUnavailable),
        (OSError(errno.EFBIG, "File too large"), StorageUnavailable),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), StorageUnavailable),  # no more processes
        (OSError(errno.ENOMEM, "Cannot allocate memory"), HostOutOfMemory),
        (
            SafetensorError("Error while serializing: I/O error: Read-only file system (os error 30)"),
            StorageUnavailable,
        ),
        (SafetensorError("I/O error: No space left on device (os error 28)"), DiskFull),
    ],
)
def test_machine_failures_are_named(native: Exception, translation: type[Exception]) -> None:
    with pytest.raises(translation), translated():
        raise native


def test_real_allocation_failure_is_named() -> None:
    with pytest.raises(HostOutOfMemory), translated():
        torch.empty(2**60, dtype=torch.uint8)


def test_real_full_disk_is_named() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(DiskFull), translated():
        full.write_bytes(b"x" * 100_000)


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shape"), translated():
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("decompose", [torch.linalg.eigvalsh, torch.linalg.svdvals])
def test_numbers_that_cannot_be_decomposed_are_no_bug(decompose: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(NumericalFailure, match="a decomposition"), translated():
        decompose(torch.full((4, 4), float("nan")))

"""Resume points: whole or absent, refused when they belong to something else, good after a kill at any moment."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import spec_of
from workers.engine.checkpoint import Checkpoint
from workers.engine.clock import Clock
from workers.engine.errors import CheckpointMismatch, DeviceOutOfMemory, DiskFull, HostOutOfMemory
from workers.engine.events import Silent
from workers.engine.failures import translated
from workers.engine.sources import Sources
from workers.engine.stages.allocate import allocate
from workers.engine.stages.calibrate import calibration
from workers.engine.stages.load import load
from workers.engine.stages.prune import prune


def test_json_round_trip(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c")
    assert checkpoint.load_json("dense") is None
    checkpoint.save_json("dense", {"perplexity": 35.4})
    assert Checkpoint(tmp_path / "c").load_json("dense") == {"perplexity": 35.4}


def test_another_fingerprint_is_refused_by_what_differs(tmp_path: Path) -> None:
    Checkpoint(tmp_path).claim({"spec": "a", "torch": "1", "model": "m"})
    Checkpoint(tmp_path).claim({"spec": "a", "torch": "1", "model": "m"})
    with pytest.raises(CheckpointMismatch, match="another spec, torch"):
        Checkpoint(tmp_path).claim({"spec": "b", "torch": "2", "model": "m"})


def test_hidden_states_replace_their_predecessors(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.latest_hidden() is None
    checkpoint.save_hidden(1, torch.zeros(1, 2, 3))
    checkpoint.save_hidden(2, torch.ones(1, 2, 3))
    assert [file.name for file in tmp_path.glob("hidden-*")] == ["hidden-00002.safetensors"]
    found = checkpoint.latest_hidden()
    assert found is not None
    assert found[0] == 2
    assert torch.equal(found[1], torch.ones(1, 2, 3))


def test_a_stale_writer_does_not_set_its_successor_back(tmp_path: Path) -> None:
    successor, stale = Checkpoint(tmp_path), Checkpoint(tmp_path)
    successor.save_hidden(5, torch.ones(1, 2, 3))
    stale.save_hidden(2, torch.zeros(1, 2, 3))
    found = successor.latest_hidden()
    assert found is not None
    assert found[0] == 5


def test_half_written_files_do_not_count_and_go(tmp_path: Path) -> None:
    (tmp_path / "block-00000.safetensors.1-abc.tmp").write_bytes(b"half")
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


def walk(sources: Sources, folder: Path, score: str) -> tuple[Recorder, dict[str, bytes]]:
    """Prune `tiny` into a checkpoint folder: what was reported, and the bytes of its blocks."""
    spec, events = spec_of(score={"method": score}), Recorder()
    model = load(spec, sources)
    prune(
        spec,
        model,
        calibration(spec, model, sources),
        allocate(spec, model.architecture.layers),
        checkpoint=Checkpoint(folder),
        clock=Clock(events),
        events=events,
    )
    return events, {file.name: file.read_bytes() for file in folder.glob("block-*")}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("score", ["wanda", "magnitude"])
def test_kill_around_every_write(
    score: str, when: str, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = walk(sources, tmp_path / "whole", score)
    replace = Path.replace
    for fatal in range(6 if score == "wanda" else 4):  # outside, three blocks, and between them two hidden states
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
                walk(sources, folder, score)
        on_disk = len(list(folder.glob("block-*")))
        events, blocks = walk(sources, folder, score)
        assert blocks == expected
        start = events.resumed[0] if events.resumed else 0
        assert events.done == list(range(start, 3))
        assert on_disk - start <= 1, "at most the block that was being finished is done again"


@pytest.mark.parametrize(
    ("native", "translation"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), DeviceOutOfMemory),
        (MemoryError(), HostOutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), HostOutOfMemory),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull),
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

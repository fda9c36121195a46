"""When resume points are written: in the background, no more often than the work at risk asks for, old or new."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.small_models import spec_of, walk
from workers.engine.errors import DiskFull
from workers.engine.events import Silent
from workers.engine.files import tensors as files_tensors
from workers.engine.pipeline import compress
from workers.engine.sources.resolve import Sources
from workers.engine.store import points as module
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.points import Points


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def offered(points: Points, clock: Clock, block_s: float, blocks: int) -> tuple[list[int], list[float]]:
    """The points written while blocks of `block_s` seconds are done, and the work at risk before each next one ends."""
    written: list[int] = []
    at_risk = []
    for block in range(blocks):
        at_risk.append(block_s * (block + 1) - (block_s * (written[-1] + 1) if written else 0.0))
        clock.now += block_s
        points.offer(lambda block=block: written.append(block))
        if points._thread is not None:
            points._thread.join()
    return written, at_risk


class TestWhen:
    def test_short_blocks_make_one_point_a_minute(self, clock: Clock) -> None:
        written, at_risk = offered(Points(60), clock, 1.0, 300)
        assert written == [59, 119, 179, 239, 299]
        assert max(at_risk) <= 60

    @pytest.mark.parametrize("block_s", [7.0, 25.0, 31.0, 50.0, 59.0])
    def test_a_kill_costs_a_minute_at_most(self, block_s: float, clock: Clock) -> None:
        assert max(offered(Points(60), clock, block_s, 40)[1]) <= 60

    def test_or_one_block_where_that_takes_longer(self, clock: Clock) -> None:
        written, at_risk = offered(Points(60), clock, 400.0, 5)
        assert written == [0, 1, 2, 3, 4]
        assert max(at_risk) == 400

    def test_nothing_is_written_of_a_job_of_seconds_but_its_end(self, clock: Clock) -> None:
        points = Points(60)
        dropped: list[int] = []
        written: list[int] = []
        for block in range(8):
            clock.now += 0.5
            points.offer(lambda block=block: written.append(block), lambda block=block: dropped.append(block))
        assert (written, dropped) == ([], list(range(7)))
        points.settle()
        assert (written, dropped) == ([7], list(range(8)))
        points.settle()
        assert written == [7]


class TestInTheBackground:
    def test_the_walk_does_not_wait_for_the_disk(self, clock: Clock) -> None:
        points, disk, written = Points(1), threading.Event(), list[int]()

        def slow(block: int) -> Callable[[], None]:
            return lambda: written.append(block) if disk.wait(20) else None

        for block in range(5):
            clock.now += 2
            points.offer(slow(block))
        assert written == []
        disk.set()
        points.settle()
        assert written == [0, 4], "what was superseded meanwhile is not written"

    def test_an_error_is_raised_by_whoever_offers_next(self, clock: Clock) -> None:
        points, disk = Points(1), threading.Event()

        def full() -> None:
            disk.wait(20)
            raise OSError(errno.ENOSPC, "No space left on device")

        clock.now += 2
        points.offer(full)
        disk.set()
        assert points._thread is not None
        points._thread.join()
        with pytest.raises(OSError, match="No space"):
            points.offer(lambda: None)
        points.give_up()
        points.settle()

    def test_a_drain_writes_what_waits_and_takes_no_more(self, clock: Clock) -> None:
        points, written, dropped = Points(60), list[int](), list[int]()
        points.offer(lambda: written.append(0), lambda: dropped.append(0))
        drain = threading.Thread(target=points.drain)
        drain.start()
        drain.join()
        points.offer(lambda: written.append(1), lambda: dropped.append(1))
        points.settle()
        assert (written, dropped) == ([0], [0, 1])

    def test_what_waits_at_a_drain_is_not_superseded_before_it_is_written(self, clock: Clock) -> None:
        points, written, dropped = Points(60), list[int](), list[int]()
        points.offer(lambda: written.append(0), lambda: dropped.append(0))
        points._draining = True  # a drain has begun on another thread, and has not got further
        points.offer(lambda: written.append(1), lambda: dropped.append(1))
        points.drain()
        assert (written, dropped) == ([0], [1, 0])


class Killed(BaseException):
    """Stands for kill -9: nothing in the engine catches it."""


TENSORS = {"w": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16)}


class OfBlock:
    """Hidden states that say which block they enter."""

    def __init__(self, block: int) -> None:
        self.block = block

    def as_file(self, new_file: Callable[[], Any]) -> Any:
        file = new_file()
        file.write(f"enters {self.block}".encode())
        return file

    def close(self) -> None: ...


def point(checkpoint: Checkpoint, first: int, done: int) -> None:
    with checkpoint.adding_blocks():
        for block in range(first, done):
            checkpoint.add_block(block, {f"{block}.{name}": tensor for name, tensor in TENSORS.items()})
        checkpoint.offer_point(done, OfBlock(done), lambda: None)


CALLS = [(files_tensors, "write_all"), (os, "fsync"), (Path, "replace"), (Path, "unlink")]
"""System calls of writing a point."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("owner", "name"), CALLS, ids=[name for _, name in CALLS])
def test_a_kill_at_each_write_leaves_the_old_point_or_the_new_one(
    owner: Any, name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, calls, fatal = getattr(owner, name), 0, 0
    outcomes = set()
    while True:
        folder = tmp_path / str(fatal)
        point(Checkpoint(folder), 0, 2)
        calls = 0

        def dying(*args: Any, fatal: int = fatal, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fatal + 1 and when == "before":
                raise Killed
            result = own(*args, **kwargs)
            if calls == fatal + 1:
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying)
            try:
                point(Checkpoint(folder), 2, 5)
            except Killed:
                pass
            else:
                break
        after = Checkpoint(folder)
        blocks, found = after.finished_blocks(), after.latest_hidden()
        assert found is not None
        with found[1] as file:
            assert file.read() == f"enters {found[0]}".encode()
        assert (blocks, found[0]) in {(2, 2), (5, 2), (5, 5)}
        assert [sorted(after.block(block)) for block in range(blocks)] == [[f"{b}.b", f"{b}.w"] for b in range(blocks)]
        assert not list(folder.glob("*.tmp"))
        outcomes.add((blocks, found[0]))
        point(Checkpoint(folder), found[0], 5)
        assert Checkpoint(folder).finished_blocks() == 5
        fatal += 1
    assert fatal >= 1
    assert outcomes


def test_a_full_disk_in_the_background_is_the_jobs_failure(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.fsync

    def full(descriptor: int) -> None:
        if threading.current_thread().name == "resume-points":
            raise OSError(errno.ENOSPC, "No space left on device")
        own(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        compress(spec_of(), tmp_path, sources, Silent(), tmp_path / "checkpoint", points=Points(1e-9))


def test_a_job_of_seconds_flushes_as_often_as_it_has_stages_not_blocks(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kept file and its name, whatever the number of blocks; hidden states touch no disk."""
    own, flushed = os.fsync, list[str]()

    def counted(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.partition(".")[0])
        own(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    compress(spec_of(), tmp_path, sources, Silent(), tmp_path / "checkpoint", points=Points(3600))
    names = [name for name in flushed if name != "checkpoint"]
    assert sorted(names) == ["allocation", "blocks", "fingerprint", "outside"]
    assert len(flushed) == 2 * len(names)


def test_seldom_points_end_in_the_same_bytes(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    expected = walk(spec_of(), sources, tmp_path / "each").blocks()
    seldom = Checkpoint(tmp_path / "seldom/checkpoint", points=Points(3600))
    assert walk(spec_of(), sources, tmp_path / "seldom", checkpoint=seldom).blocks() == expected
    assert [path.name.partition(".")[0] for path in seldom.directory.glob("blocks-*")] == ["blocks-00000-00002"]
    assert not list(seldom.directory.glob("hidden-*"))

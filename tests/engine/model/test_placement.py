"""Hidden states on the device, in the host's memory and in a file: the same bytes, and no more memory than there is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from tests.helpers.small_models import Scratch, load, spec_of, text_of, walk
from workers.engine.events import Silent
from workers.engine.model import memory, placement
from workers.engine.model.gradients import gradients
from workers.engine.model.memory import CPU_SHARE, Room, room_for_states
from workers.engine.model.placement import InFile, InMemory, placed
from workers.engine.planning.predictions import walk_bytes
from workers.engine.sources.resolve import Sources
from workers.engine.store.run import Run

CPU = torch.device("cpu")
WINDOWS_BYTES = 8 * 32 * 32 * 4
"""Of one set of hidden states of `tiny` and its text: 8 windows of 32 tokens, 32 numbers each, float32."""


@pytest.mark.parametrize("place", ["host", "file"])
def test_states_are_read_as_they_were_written(place: str, scratch: Scratch) -> None:
    room = Room(host=4 * 3 * 5 * 2 if place == "host" else 0)
    states = placed((4, 3, 5), torch.bfloat16, CPU, room, scratch.new_hidden)
    assert isinstance(states, InMemory if place == "host" else InFile)
    values = torch.randn(4, 3, 5)
    for part in (values[:3], values[3:]):
        states.append(part)
    expected = values.bfloat16()
    assert torch.equal(states.read(slice(1, 3)), expected[1:3])
    read = states.read(slice(0, 4))
    read.zero_()  # a block may compute in place
    assert torch.equal(states.read(slice(0, 4)), expected)
    with pytest.raises(OSError, match="end"):
        states.read(slice(3, 5))
    with states.as_file(scratch.new_hidden) as file:
        file.seek(0)
        assert file.read() == expected.contiguous().view(torch.uint8).numpy().tobytes()
    states.close()
    assert not list(scratch.directory.iterdir()), "nobody has given the file a lasting name"


def test_shared_states_are_there_until_the_last_holder_closes_them(scratch: Scratch) -> None:
    room = Room(host=100)
    states = placed((1, 5, 5), torch.float32, CPU, room, scratch.new_hidden)
    states.append(torch.ones(1, 5, 5))
    assert room.take(1) == "file"
    states.share()
    states.close()
    assert room.take(1) == "file"
    assert states.read(slice(0, 1)).sum() == 25
    states.close()
    assert room.take(100) == "host"


def test_the_nearest_place_with_room_is_taken() -> None:
    room = Room(device=10, host=20)
    assert [room.take(size) for size in (8, 8, 2, 8, 8)] == ["device", "host", "device", "host", "file"]
    room.give_back("device", 8)
    room.give_back("file", 1000)
    assert room.take(8) == "device"
    assert room.take(5) == "file"


def test_states_take_a_share_of_the_walk_and_keep_the_budget(tiny: Path, sources: Sources) -> None:
    spec = spec_of()
    model = load(spec, sources)
    peak = walk_bytes(spec, model.source, model.architecture, model.batch_tokens)
    for budget in (None, 2 * peak, peak + 1000, peak):
        room = load(spec_of(compute={"memory_budget": budget}), sources).room
        share = int(peak * CPU_SHARE) if budget is None else min(int(peak * CPU_SHARE), budget - peak)
        assert room.take(share + 1) == "file"
        assert not share or room.take(share) == "host"
    on_gpu = room_for_states(torch.device("cuda"), walk=100, budget=250)
    assert (on_gpu.take(151), on_gpu.take(150)) == ("host", "device")


def test_pinned_memory_is_shared_by_ranks_and_leaves_some_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda: 800)
    for free, processes, share in ((800, 1, 200), (800, 4, 50), (100, 1, 50), (100, 2, 25)):
        monkeypatch.setattr(memory, "available_memory", lambda free=free: free)
        room = room_for_states(torch.device("cuda"), walk=0, budget=0, processes=processes)
        assert (room.take(share + 1), room.take(share)) == ("file", "host")


def test_memory_that_torch_keeps_for_its_next_tensors_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole model may take what the walk took before it."""
    free = [10]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(70))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 80))
    assert memory.memory_budget(None, torch.device("cuda")) == 70


WALKS: dict[str, dict[str, Any]] = {
    "prune, block": {"prune": {"method": "sparsegpt", "sparsity": 0.5}, "score": None},
    "prune, projection": {
        "prune": {"method": "fista", "sparsity": 0.5},
        "score": None,
        "calibrate": {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32, "refresh": "projection"},
    },
    "statistics": {"allocate": {"method": "owl"}},
    "gradients": {"score": {"method": "taylor"}, "prune": {"method": "structured", "sparsity": 0.35}},
    "changes": {"score": {"method": "block_influence"}, "prune": {"method": "depth", "layers": 1}},
    "losses without a block": {"score": {"method": "layer_perplexity"}, "prune": {"method": "depth", "layers": 1}},
    "trial losses": {"allocate": {"method": "search", "rounds": 1, "granularity": "block"}},
}


@pytest.mark.parametrize("parts", WALKS.values(), ids=WALKS)
def test_where_states_lie_changes_no_byte(
    parts: dict[str, Any], tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory, in a file, and where there is room for a set or two: the others lie in files."""
    made: Counter[str] = Counter()
    own = placement.placed

    def counted(*args: Any) -> Any:
        states = own(*args)
        made[type(states).__name__] += 1
        return states

    monkeypatch.setattr("workers.engine.model.walk.placed", counted)
    results, kinds = [], []
    for sets in (1000, 0, 1, 2):
        made.clear()
        room = Room(host=sets * WINDOWS_BYTES)
        results.append(walk(spec_of(**parts), sources, tmp_path / str(sets), room=room).blocks())
        kinds.append(set(made))
        assert room.take(sets * WINDOWS_BYTES) == "host" or not sets, "all of it is given back"
    assert kinds[:2] == [{"InMemory"}, {"InFile"}]
    assert "InMemory" in kinds[2]
    assert all(result == results[0] for result in results[1:])
    assert not list(tmp_path.rglob("*.tmp"))


def test_bytes_moved_by_a_backward_pass_are_those_of_its_inputs_and_gradients(
    tiny: Path, sources: Sources, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each set is written once; inputs are read twice (forward, backward), and each gradient once."""
    moved: Counter[str] = Counter()
    _count(monkeypatch, moved)
    model = replace(load(spec_of(), sources), room=Room(host=100 * WINDOWS_BYTES))
    for _ in gradients(model, text_of(spec_of(), model, sources), Run.of(scratch, Silent()), splits=1, squared=False):
        pass
    blocks = 3
    # Inputs of three blocks and the last outputs; the gradients of those four.
    assert moved["written"] == (2 * blocks + 2) * WINDOWS_BYTES
    assert moved["read"] == (blocks + 1 + blocks + blocks) * WINDOWS_BYTES


@pytest.mark.parametrize(("refresh", "reads"), [("block", 2), ("projection", 1)])
def test_bytes_moved_by_a_pruned_block(
    refresh: str, reads: int, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs are read once for the statistics, and once more to pass the pruned block; outputs are written once."""
    moved: Counter[str] = Counter()
    _count(monkeypatch, moved)
    text = {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32, "refresh": refresh}
    walk(spec_of(calibrate=text), sources, tmp_path, room=Room(host=3 * WINDOWS_BYTES))
    blocks = 3  # the last one's outputs are of no use
    assert moved["written"] == blocks * WINDOWS_BYTES
    assert moved["read"] == (reads * (blocks - 1) + 1) * WINDOWS_BYTES


def _count(monkeypatch: pytest.MonkeyPatch, moved: Counter[str]) -> None:
    append, read = InMemory.append, InMemory.read

    def appended(states: InMemory, hidden_BTD: torch.Tensor) -> None:
        moved["written"] += hidden_BTD.nbytes
        append(states, hidden_BTD)

    def was_read(states: InMemory, windows: slice) -> torch.Tensor:
        found = read(states, windows)
        moved["read"] += found.nbytes
        return found

    monkeypatch.setattr(InMemory, "append", appended)
    monkeypatch.setattr(InMemory, "read", was_read)


def test_files_are_for_what_memory_has_no_room_for(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    opened: list[BinaryIO] = []

    def refused() -> BinaryIO:
        raise AssertionError("a file was asked for")

    states = placed((1, 2, 3), torch.float32, CPU, Room(host=24), refused)
    states.close()
    assert not opened

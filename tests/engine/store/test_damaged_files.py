"""Resume points and cache entries that are not what was written: set aside, said, and made again to the same bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.small_models import spec_of
from workers.engine.events import Level, Silent
from workers.engine.pipeline import compress
from workers.engine.sources.resolve import Sources
from workers.engine.store.cache import Cache
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.points import Points
from workers.engine.store.sealed import DAMAGED

TENSORS = {"a": torch.arange(64.0), "b": torch.ones(3, 5, dtype=torch.bfloat16)}
KEY = {"model": "m"}


def damage(path: Path, how: str) -> None:
    """Spoil a file in place, its name and length of life unchanged."""
    content = bytearray(path.read_bytes())
    match how:
        case "truncated":
            content = content[: len(content) // 2]
        case "flipped":
            content[random.Random(0).randrange(len(content))] ^= 1 << 3
        case "empty":
            content = bytearray()
        case "garbage":
            content = bytearray(random.Random(1).randbytes(len(content)))
        case "typed":
            content = bytearray(b"[]")
    path.write_bytes(content)


class Said(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def log(self, message: str, level: Level = "info") -> None:
        if level == "warning":
            self.warnings.append(message)


def save_hidden(checkpoint: Checkpoint) -> None:
    with checkpoint.new_hidden() as file:
        file.write(bytes(range(200)))
        checkpoint.keep_hidden(2, file)


def save_blocks(checkpoint: Checkpoint, first: int = 0, count: int = 2) -> None:
    with checkpoint.adding_blocks():
        for index in range(first, first + count):
            checkpoint.add_block(index, TENSORS)
        checkpoint.offer_point(first + count, None, lambda: None)


def load_hidden(checkpoint: Checkpoint) -> Any:
    if (found := checkpoint.latest_hidden()) is None:
        return None
    with found[1] as file:
        return found[0], file.read()


def present(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


Write, Read = Callable[[Any], object], Callable[[Any], Any]
KINDS: dict[str, tuple[Write, Read]] = {
    "allocation": (lambda c: c.save_json("allocation", {"target": 0.5}), lambda c: c.load_json("allocation")),
    "outside": (lambda c: c.save_outside(TENSORS), lambda c: present(c.outside())),
    "blocks-00000-00001": (save_blocks, lambda c: c.finished_blocks() and c.block(1)),
    "hidden-00002": (save_hidden, load_hidden),
    "grams-00001": (lambda c: c.save_grams(1, TENSORS), lambda c: present(c.grams(1))),
    "tuning": (
        lambda c: c.save_training("tuning", TENSORS, {"step": 3}),
        lambda c: str(c.load_training("tuning") or ""),
    ),
}
ENTRIES: dict[str, tuple[Write, Read]] = {
    "json": (lambda c: c.keep_json("kind", KEY, {"x": 1.5}), lambda c: c.json("kind", KEY)),
    "tensors": (lambda c: c.keep_tensors("kind", KEY, TENSORS), lambda c: str(c.tensors("kind", KEY) or "")),
}


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "garbage", "typed"])
@pytest.mark.parametrize("kind", [*KINDS, *ENTRIES])
def test_a_damaged_file_counts_as_absent_and_is_said_to_be(kind: str, how: str, tmp_path: Path) -> None:
    def opened(said: Said) -> Any:
        return Checkpoint(tmp_path, said) if kind in KINDS else Cache(tmp_path, said)

    write, read = (KINDS | ENTRIES)[kind]
    write(opened(Said()))
    whole = read(opened(Said()))
    assert whole
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    damage(path, how)
    said = Said()
    assert not read(opened(said))
    (warning,) = said.warnings
    assert path.name in warning
    assert not path.exists()
    assert path.with_name(path.name + DAMAGED).exists()
    write(opened(said))
    assert read(opened(said)) == whole
    assert len(said.warnings) == 1


def test_blocks_behind_a_damaged_one_are_not_counted(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    for index in range(4):
        save_blocks(checkpoint, index, 1)
    assert Checkpoint(tmp_path).finished_blocks() == 4
    damage(next(tmp_path.glob("blocks-00002-*")), "flipped")
    assert Checkpoint(tmp_path).finished_blocks() == 2


def test_hidden_states_behind_a_block_that_is_missing_are_not_used(tmp_path: Path) -> None:
    save_hidden(Checkpoint(tmp_path))
    assert Checkpoint(tmp_path).latest_hidden(at_most=1) is None
    assert load_hidden(Checkpoint(tmp_path)) == (2, bytes(range(200)))


def test_without_a_fingerprint_nothing_is_believed(tmp_path: Path) -> None:
    """The spec of the other files is not known then: another spec's allocation would be taken for this one's."""
    first = Checkpoint(tmp_path)
    first.claim({"spec": "a"})
    first.save_json("allocation", {"target": 0.5})
    first.of_try(2).save_json("allocation", {"target": 0.25})
    damage(next(tmp_path.glob("fingerprint.*")), "flipped")
    second = Checkpoint(tmp_path)
    second.claim({"spec": "b"})
    assert second.load_json("allocation") is second.of_try(2).load_json("allocation") is None
    assert second.load_json("fingerprint") == {"spec": "b"}


def test_a_point_that_replaces_another_leaves_one_of_them_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    for call in ("replace", "unlink"):
        folder = tmp_path / call
        Checkpoint(folder).save_training("tuning", TENSORS, {"step": 1})
        done = getattr(Path, call)

        for moment in ("before", "after"):

            def dying(self: Path, *args: Any, moment: str = moment, done: Any = done, **kwargs: Any) -> Any:
                if moment == "after":
                    done(self, *args, **kwargs)
                raise Killed

            with monkeypatch.context() as patch:
                patch.setattr(Path, call, dying)
                with pytest.raises(Killed):
                    Checkpoint(folder).save_training("tuning", TENSORS, {"step": 2})
            found = Checkpoint(folder).load_training("tuning")
            assert found is not None
            assert found[1]["step"] in (1, 2)


def test_what_cannot_be_read_is_set_aside_too(tmp_path: Path) -> None:
    Checkpoint(tmp_path).save_json("allocation", {})
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    said = Said()
    assert Checkpoint(tmp_path, said).load_json("allocation") is None
    assert "cannot be read" in said.warnings[0]


TEXT = {"dataset": "calibration.txt", "samples": 4, "sequence_length": 32}
EVERYTHING: dict[str, Any] = {
    "calibrate": TEXT,
    "score": {"method": "taylor"},
    "prune": {"method": "structured", "sparsity": 0.35},
    "tune": {"method": "last_layers", "dataset": "calibration.txt", "steps": 2, "batch": 2, "sequence_length": 32},
    "evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32, "samples": 4}],
}
RESUME_POINTS = {"blocks-00001": "flipped", "hidden-00002": "truncated", "unit-scores": "garbage", "tuning": "flipped"}
"""Of a job like EVERYTHING, and how each is spoilt. Every kind has its turn in `tests/chaos/test_bit_flips.py`."""


def test_a_job_with_a_damaged_resume_point_ends_in_the_same_bytes(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    def run(name: str, said: Said) -> tuple[dict[str, bytes], Any]:
        work = tmp_path / name
        report = compress(spec_of(**EVERYTHING), work, sources, said, work / "checkpoint", points=Points(0))
        files = {file.name: file.read_bytes() for file in (work / "model").glob("*.safetensors")}
        metrics = [metric.model_copy(update={"resumed": False}) for metric in report.metrics]
        return files, (report.parameters_after, report.zeros, metrics)

    expected = run("undisturbed", Said())
    for stem, how in RESUME_POINTS.items():
        points = tmp_path / stem / "checkpoint"
        shutil.copytree(tmp_path / "undisturbed/checkpoint", points)
        (path,) = points.glob(f"{stem}[.-]*")
        damage(path, how)
        if stem.startswith("hidden"):
            damage(next(points.glob("blocks-00002-*")), how)  # else nothing is left to be done with them
        said = Said()
        assert run(stem, said) == expected, stem
        assert any(path.name in warning for warning in said.warnings), stem

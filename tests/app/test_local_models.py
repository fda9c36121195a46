"""The description of a local model is kept while its files stay as they are, and no longer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.jobs import local_models
from app.jobs.local_models import local_model
from tests.helpers.api import ROOT
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import EngineError
from workers.engine.planning.plan import feasible
from workers.engine.sources import resolve
from workers.engine.sources.resolve import Sources, resolve_model
from workers.engine.spec import CompressionSpec

REF = ModelRef(id="some")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "examples/models/bookworm-7m", tmp_path / "models/some"))


@pytest.fixture
def sources(folder: Path, tmp_path: Path) -> Sources:
    return Sources(folder.parent, tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The headers that are read from now on."""
    found: list[str] = []
    read = resolve._header

    def counted(folder: Path, file: str) -> Any:
        found.append(file)
        return read(folder, file)

    monkeypatch.setattr(resolve, "_header", counted)
    return found


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once: tests have just made them."""
    monkeypatch.setattr(local_models, "SETTLED_NS", 0)


def outcome(look: Callable[[ModelRef, Sources], Any], sources: Sources) -> Any:
    try:
        source = look(REF, sources)
        return source.config, source.tensors, source.companions
    except EngineError as error:
        return error.code, error.message


@pytest.mark.usefixtures("settled")
def test_files_that_stay_are_read_once(sources: Sources, reads: list[str]) -> None:
    assert local_model(REF, sources) is local_model(REF, sources)
    assert reads == ["model.safetensors"]


def test_files_just_written_are_read_each_time(sources: Sources, reads: list[str]) -> None:
    assert outcome(local_model, sources) == outcome(local_model, sources)
    assert len(reads) == 2


def _same_size_and_time(folder: Path) -> None:
    path = folder / "config.json"
    times, content = path.stat(), path.read_text()
    path.write_text(content.replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.read_text() != content


def _another_file(folder: Path) -> None:
    (folder / "new").write_text((folder / "config.json").read_text().replace('"llama"', '"mamba"'))
    (folder / "new").replace(folder / "config.json")


def _cut_off(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)


def _link_turned(folder: Path) -> None:
    """The folder's file becomes a link, which leads out of it."""
    outside = folder.parent / "outside.json"
    (folder / "config.json").rename(outside)
    (folder / "config.json").symlink_to(outside)


def _a_template_more(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/a.jinja").touch()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "change",
    [
        _same_size_and_time,
        _another_file,
        _cut_off,
        _link_turned,
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "LICENSE").write_text("free"),
        _a_template_more,
        lambda folder: shutil.rmtree(folder),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
)
def test_whatever_changes_is_seen(change: Callable[[Path], Any], folder: Path, sources: Sources) -> None:
    before = outcome(local_model, sources)
    change(folder)
    after = outcome(local_model, sources)
    assert after == outcome(resolve_model, sources)
    assert after != before


@pytest.mark.usefixtures("settled")
def test_a_folder_that_is_another_one_now_is_seen(folder: Path, sources: Sources) -> None:
    other = Path(shutil.copytree(folder, folder.parent / "other"))
    _another_file(other)
    link = folder.parent / "some"
    folder.rename(folder.parent / "first")
    link.symlink_to(folder.parent / "first")
    before = outcome(local_model, sources)
    link.unlink()
    link.symlink_to(other)
    assert outcome(local_model, sources) == outcome(resolve_model, sources) != before


@pytest.mark.usefixtures("settled")
def test_its_tensors_are_checked_against_its_config_once(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is submitted of it: of a mixture of 128 experts a block that took most of a second each time."""
    checks: list[str] = []
    check = resolve.check_tensors

    def counted(layout: Any, config: Any, tensors: Any) -> None:
        checks.append(config["model_type"])
        check(layout, config, tensors)

    monkeypatch.setattr(resolve, "check_tensors", counted)
    for sparsity in (0.5, 0.6):
        spec = CompressionSpec.model_validate(
            {
                "model": {"id": "some"},
                "score": {"method": "magnitude"},
                "prune": {"method": "mask", "sparsity": sparsity},
            }
        )
        feasible(spec, local_model(REF, sources), sources)
    assert checks == ["llama"]

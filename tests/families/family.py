"""One family: its tiny checkpoint, its jobs, its row."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.families import sides
from tests.families.checkpoints import save, save_tiny, tiny_model
from tests.families.jobs import JOBS, Verdict, texts, verdicts
from tests.families.rows import TYPES
from tests.families.sides import Side
from tests.families.wrappers import wrapper_class, wrapper_config
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import EngineError
from workers.engine.sources.resolve import Sources, resolve_model

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


def row_of(
    name: str, jobs: Container[str] | None = None, begins: Callable[[str], None] = lambda job: None
) -> dict[str, Any]:
    """The row of a family, of all jobs or of some. `begins` is told each job that begins."""
    row: dict[str, Any] = {"family": name}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        texts(folder / "data")
        (folder / "models").mkdir()
        try:
            dense = _made(name, folder / "models" / name)
            sides.loads(dense)
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            return row | {"jobs": {"checkpoint": Verdict("crash", said[:300]).row()}}
        row |= {"class": type(dense.model).__name__, "layout": _layout(dense)}
        row["dtype"] = str(next(iter(dense.files.values())).dtype).removeprefix("torch.")
        found = dict(verdicts(dense, folder / "data", folder / "work", JOBS if jobs is None else jobs, begins))
        row["jobs"] = {job: verdict.row() for job, verdict in found.items()}
        row |= {} if dense.caches else {"note": "the dense model's own generation differs without a cache"}
        return _shorter(row) if jobs is None else row


def _made(name: str, folder: Path) -> Side:
    if TYPES.get(name, "") is None:
        save_tiny(name, folder)
        return Side(folder)
    save(tiny_model(wrapper_config(name), wrapper_class(name)), folder)
    return Side(folder, wrapper_class(name))


def _shorter(row: dict[str, Any]) -> dict[str, Any]:
    """A family that is refused altogether, for one reason, has that once."""
    found = list(row["jobs"].values())
    if all(verdict == found[0] and verdict["verdict"] == "refused" for verdict in found):
        return row | {"refused": found[0]["detail"], "jobs": {}}
    return row


def _layout(dense: Side) -> str | None:
    try:
        source = resolve_model(ModelRef(id=dense.folder.name), Sources(dense.folder.parent, dense.folder.parent))
        return recognise(source.config, source.stored).layout.name
    except EngineError:
        return None

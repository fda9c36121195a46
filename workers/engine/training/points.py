"""Resume points of trainings: one file, or, of a model that is divided over ranks, a folder with a file of each rank.

Folders are torch's distributed checkpoints, which any number of ranks can read, whatever number has written them. Names
and digests of their files are sealed apart (`store/sealed.py`), last: a kill at any moment leaves the older point.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from workers.engine.files.atomic_files import sync
from workers.engine.store.sealed import digest
from workers.engine.training.state import Point

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.training.shards import Shards


_METADATA = ".metadata"
"""The file in which a distributed checkpoint says what lies where."""


class TrainingPoints:
    """Those of the training `name` of a job."""

    def __init__(self, checkpoint: Checkpoint, name: str, shards: Shards) -> None:
        self._checkpoint, self._name, self._shards = checkpoint, name, shards

    def found(self) -> Point | None:
        """The last point, or None."""
        if (listed := self._checkpoint.load_json(self._listing)) is not None:
            folder = self._checkpoint.directory / listed["folder"]
            if self._whole(folder, listed["files"]):
                return Point(listed["state"], lambda tensors: self._read(folder, tensors))
        found = self._checkpoint.load_training(self._name)
        return None if found is None else Point(found[1], lambda tensors: self._fill(found[0], tensors))

    def save(self, tensors: Mapping[str, Tensor], state: Any, step: int) -> None:
        """Keep the point after `step` steps. All ranks take part."""
        if not self._shards.divided:
            self._checkpoint.save_training(
                self._name, {name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}, state
            )
            self._checkpoint.remove_json(self._listing)
            self._tidy("")
            return
        ranks, folder = self._shards.ranks, self._checkpoint.directory / f"{self._name}-{step:08d}"
        ranks.first(lambda: shutil.rmtree(folder, ignore_errors=True))
        save(dict(tensors), storage_writer=FileSystemWriter(folder, sync_files=True))
        mine = [*folder.glob(f"__{ranks.rank}_*"), *([folder / _METADATA] if ranks.leads else [])]
        parts = ranks.gather({path.name: digest(path) for path in mine})
        files = {name: value for part in parts for name, value in part.items()}
        if ranks.leads:
            sync(folder / _METADATA)
            sync(folder)
        self._checkpoint.save_json(self._listing, {"folder": folder.name, "files": files, "state": state})
        ranks.first(lambda: self._tidy(folder.name))

    @property
    def _listing(self) -> str:
        return f"{self._name}-files"

    def _whole(self, folder: Path, files: Mapping[str, str]) -> bool:
        """Whether all files are there and have their digests; each rank looks at its part of them."""
        names = sorted(files)[self._shards.ranks.rank :: self._shards.ranks.count]
        whole = all((folder / name).is_file() and digest(folder / name) == files[name] for name in names)
        return all(self._shards.ranks.gather(whole))

    def _read(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that one process reads is meant
            load(dict(tensors), storage_reader=FileSystemReader(folder), no_dist=not self._shards.divided)

    def _fill(self, stored: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(self._shards.like(tensor, stored[name]))

    def _tidy(self, kept: str) -> None:
        """Remove the folders of other points."""
        for folder in self._checkpoint.directory.glob(f"{self._name}-" + "[0-9]" * 8):
            if folder.name != kept:
                shutil.rmtree(folder, ignore_errors=True)

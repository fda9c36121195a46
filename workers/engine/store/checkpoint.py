"""Resume points: a folder from which a killed job continues, to the same bytes.

    fingerprint.<digest>.json           values that the numbers depend on; another fingerprint is refused
    outside.<digest>.safetensors        tensors that belong to no block, in the type they ship in
    blocks-00003-00007.<digest>.bin     finished blocks, as they ship (`blocks.py`)
    hidden-00008.<digest>.bin           input of the first block still to do (all calibration windows)
    hidden-00008-2of4.<digest>.bin      the same of one of several ranks' windows; a point is whole with all of them
    grams-00003.<digest>.safetensors    second moments of a dense block's inputs, where trial prunings need them
    new-00012-00003.<digest>.safetensors  one tensor of a block that is added, the third of block 12
    training.<digest>.safetensors       state of `train`: parameters, the optimiser's moments, the method's own
    tuning.<digest>.safetensors         the same of `tune`, and the best state
    unit-scores.<digest>.safetensors    scores of units, of which a mixture's channels are millions
    <name>.<digest>.json                results of whole stages
    try-2/                              the same of a further try, where the first result broke what the spec bounds

Every file appears whole or not at all (temporary name, fsync, rename). The digest is that of its content: a file that
does not have it is set aside and counts as absent (`sealed.py`), and its work is done again. The fingerprint alone
decides what a file holds. So two processes may share the folder (a worker thought dead, and its successor): whatever
one of them writes is what the other would have written. `tuning` is one of many points of the same training: an older
one only costs time. Files that are cheap to make again (`grams`) are not flushed to the disk: the digest tells if one
is whole.

While blocks are done, points are written in the background and not after every block (`points.py`). A point is a file
of blocks and, after it, the hidden states behind them; a kill between the two leaves the older states and more blocks.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from workers.engine.errors import CheckpointMismatch
from workers.engine.files.atomic_files import temporary_for
from workers.engine.ranks import Ranks
from workers.engine.store.blocks import Blocks
from workers.engine.store.parts import Parts
from workers.engine.store.points import Points
from workers.engine.store.sealed import DAMAGED, Sealed

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.events import Events
    from workers.engine.files.safetensors_bytes import Slice
    from workers.engine.store.parts import Held

_TENSORS = ".safetensors"
_SCORES = "unit-scores"


class Checkpoint:
    """The resume points of one job, in `directory`."""

    def __init__(
        self,
        directory: Path,
        events: Events | None = None,
        points: Points | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """`events` are told of damaged files. `points` decides when finished blocks become durable; each at once, if
        left out. The first of the `ranks` reads and writes for all, but for hidden states, of which each has its own.
        """
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._events = events
        self._points = points or Points(0)
        self.ranks = ranks or Ranks()
        self._parts: Parts | None = None
        self._sealed = Sealed(directory, events)
        self._blocks = Blocks(directory, self._sealed)
        # Half-written files of an attempt that died. Should it still run, its rename fails and ends it.
        for leftover in directory.glob("*.tmp") if self.ranks.leads else ():
            leftover.unlink(missing_ok=True)

    @property
    def every_s(self) -> float:
        """Least time between two points; 0 keeps every one that there could be."""
        return self._points.every_s

    def claim(self, fingerprint: Mapping[str, str]) -> None:
        """Write the fingerprint into the folder. Raises CheckpointMismatch if it holds another one."""
        found = self.load_json("fingerprint")
        if found is None and self.ranks.leads:
            if any(self.directory.glob(f"fingerprint.*{DAMAGED}")):
                self._forget()  # it is not known which job they are of
            self.save_json("fingerprint", dict(fingerprint))
        elif found is not None and found != fingerprint:
            names = sorted(k for k in {*found, *fingerprint} if found.get(k) != fingerprint.get(k))
            raise CheckpointMismatch(
                f"the resume points in {self.directory.name} were made with another {', '.join(names)}",
                "run with an empty checkpoint directory to start over, or put back what changed",
            )

    def of_try(self, number: int) -> Checkpoint:
        """The resume points of a further try, in a folder of their own."""
        return Checkpoint(self.directory / f"try-{number}", self._events, self._points, self.ranks)

    def forget_result(self) -> None:
        """Remove what one try alone needed: its allocation, blocks, their inputs, and its training."""
        once = ("fitted", "allocation", "outside", "tuning", "expert-tokens", "betas")
        patterns = (*(f"{name}.*" for name in once), "blocks-*", "hidden-*")
        for pattern in patterns if self.ranks.leads else ():
            for path in self.directory.glob(pattern):
                path.unlink(missing_ok=True)

    def save_json(self, name: str, value: Any) -> None:
        """Keep the JSON-serialisable result of a whole stage."""
        if self.ranks.leads:
            text = json.dumps(value, indent=1, sort_keys=True)
            self._sealed.write(name, ".json", lambda path: path.write_text(text), durable=True)

    def load_json(self, name: str) -> Any | None:
        """The value that `save_json` kept, or None."""

        def read() -> Any | None:
            while path := self._sealed.find(name, ".json"):
                with suppress(FileNotFoundError):  # a newer one has taken its place: look again
                    return json.loads(path.read_text())
            return None

        return self.ranks.first(read)

    def remove_json(self, name: str) -> None:
        """Forget what `save_json` kept, if it did."""
        for path in self.directory.glob(f"{name}.*.json") if self.ranks.leads else ():
            path.unlink(missing_ok=True)

    def save_scores(self, scores: Sequence[Mapping[str, Sequence[float]]]) -> None:
        """Keep the scores of units: of each block, by kind."""
        tensors = {
            f"{block}/{kind}": torch.tensor(values, dtype=torch.float64)
            for block, of_block in enumerate(scores)
            for kind, values in of_block.items()
        }
        self._save(_SCORES, tensors, {"blocks": str(len(scores))})

    def load_scores(self) -> list[dict[str, list[float]]] | None:
        """The scores that `save_scores` kept, or None."""

        def read() -> list[dict[str, list[float]]] | None:
            while path := self._sealed.find(_SCORES, _TENSORS):
                with suppress(FileNotFoundError), safe_open(path, framework="pt") as file:
                    found: list[dict[str, list[float]]] = [{} for _ in range(int(file.metadata()["blocks"]))]
                    for name in [*file.keys()]:
                        block, _, kind = name.partition("/")
                        found[int(block)][kind] = file.get_tensor(name).tolist()
                    return found
            return None

        return self.ranks.first(read)

    def outside(self) -> Path:
        """File of the tensors that belong to no block; it exists once `save_outside` has returned."""
        return self._tensors("outside")

    def save_outside(self, tensors: Mapping[str, Tensor]) -> None:
        self._save("outside", tensors)

    def block(self, index: int) -> dict[str, Slice]:
        """Where the tensors of a finished, durable block lie. Raises KeyError."""
        return self._blocks.find(index)

    @contextmanager
    def adding_blocks(self) -> Iterator[None]:
        """Context within which blocks are added. At its end all are durable, or an error of writing them is raised."""
        if self.ranks.count > 1:
            self._parts = Parts(self.ranks, self._keep_part)
        try:
            yield
            self._points.settle()
        finally:
            self._points.give_up()
            self._blocks.discard()

    def add_block(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the next finished block. It is durable with a point that is written after it."""
        if self.ranks.leads:
            self._blocks.add(index, tensors)

    def offer_point(self, done: int, states: Held | None, written: Callable[[], None]) -> None:
        """Offer a resume point after `done` blocks, `states` being the inputs of the next; it is written when due.

        `states` are closed when they are no longer needed for it; `written` is called once it is durable. Raises an
        error of writing an earlier point.
        """

        parts = self._parts if states is not None else None
        if not self.ranks.leads:
            if parts is not None and states is not None:
                parts.hold(done, states)
            return

        def write() -> None:
            others = parts.write(done) if parts is not None else None
            self._blocks.seal(named=states is None)
            if states is not None:
                with states.as_file(self.new_hidden) as file:
                    self.keep_hidden(done, file)
                if others is not None:
                    others.result()  # until then the point before is the latest
                    self._forget_hidden(done)
            written()

        def drop() -> None:
            if states is not None:
                states.close()
            if parts is not None:
                parts.drop(done)

        self._points.offer(write, drop)

    def grams(self, block: int) -> Path:
        """File of the Gram matrices of a dense block's inputs; it exists once `save_grams` has returned."""
        return self._tensors(f"grams-{block:05d}")

    def save_grams(self, block: int, tensors: Mapping[str, Tensor]) -> None:
        self._save(f"grams-{block:05d}", tensors, durable=False)

    def new_tensor(self, block: int, number: int) -> Path:
        """File of one of the tensors of a block that is added; it exists once `save_new_tensor` has returned."""
        return self._tensors(f"new-{block:05d}-{number:05d}")

    def save_new_tensor(self, block: int, number: int, tensors: Mapping[str, Tensor]) -> None:
        self._save(f"new-{block:05d}-{number:05d}", tensors)

    def new_hidden(self) -> BinaryIO:
        """An empty file for hidden states; `keep_hidden` makes it a resume point. Readable while it is written."""
        return temporary_for(self.directory / "hidden").open("w+b", buffering=0)

    def keep_hidden(self, block: int, file: BinaryIO) -> None:
        """Make the file the input of `block`; if it holds all windows, inputs of earlier blocks are removed."""
        self._sealed.adopt(self._hidden_stem(block), ".bin", Path(file.name), durable=True)
        if self.ranks.total == 1:
            self._forget_hidden(block)

    def latest_hidden(self, at_most: int | None = None) -> tuple[int, BinaryIO] | None:
        """(block, its input) of the furthest resume point, not beyond block `at_most`; None if there is none."""
        blocks = self.ranks.first(lambda: sorted({index for index, _ in self._hidden()}, reverse=True))
        for index in blocks:
            if at_most is None or index <= at_most:
                path = self._sealed.find(self._hidden_stem(index), ".bin")
                file, gone = None, False
                try:
                    file = path.open("rb", buffering=0) if path is not None else None
                except FileNotFoundError:
                    gone = True
                found = self.ranks.gather((file is not None, gone))
                if all(there for there, _ in found) and file is not None:
                    return index, file
                if file is not None:
                    file.close()
                if any(gone for _, gone in found):
                    # Another process deletes this file only after writing a further one: look again.
                    return self.latest_hidden(at_most)
        return None

    def save_training(self, name: str, tensors: Mapping[str, Tensor], state: Any) -> None:
        """Keep a point of the training `name`: tensors and a JSON-serialisable state, in one file."""
        self._save(name, tensors, metadata={"state": json.dumps(state, sort_keys=True)})

    def load_training(self, name: str) -> tuple[dict[str, Tensor], Any] | None:
        """(tensors on the CPU, state) that `save_training` kept last, or None. The same on all ranks."""
        find = partial(self._sealed.find, name, _TENSORS)
        while path := self.ranks.first(find):
            found = None
            with suppress(FileNotFoundError), safe_open(path, framework="pt") as stored:
                state = json.loads(stored.metadata()["state"])
                found = {name: stored.get_tensor(name) for name in stored.keys()}, state  # noqa: SIM118
            if all(self.ranks.gather(found is not None)):  # else a newer one has taken its place: look again
                return found
        return None

    def scratch_file(self) -> BinaryIO:
        """A file without a name, gone when closed."""
        return tempfile.TemporaryFile(dir=self.directory, buffering=0)

    def finished_blocks(self) -> int:
        """How many blocks, counted from the first, are durable and whole."""
        return self.ranks.first(self._blocks.count)

    def _forget(self) -> None:
        """Remove every resume point, also those of further tries."""
        for path in self.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != DAMAGED:
                path.unlink(missing_ok=True)

    def _hidden(self) -> list[tuple[int, Path]]:
        """(block, file) of the inputs that are there, of all ranks."""
        return [(int(path.name[7:12]), path) for path in self.directory.glob("hidden-?????[.-]*.bin")]

    def _hidden_stem(self, block: int) -> str:
        ranks = self.ranks
        return f"hidden-{block:05d}" + (f"-{ranks.rank + 1}of{ranks.total}" if ranks.total > 1 else "")

    def _forget_hidden(self, before: int) -> None:
        """Remove the inputs of earlier blocks."""
        for index, path in self._hidden():
            if index < before:
                path.unlink(missing_ok=True)

    def _keep_part(self, block: int, states: Held) -> None:
        with states.as_file(self.new_hidden) as file:
            self.keep_hidden(block, file)

    def _tensors(self, stem: str) -> Path:
        """The file of a stem, or a path where none is."""
        return self.ranks.first(lambda: self._sealed.find(stem, _TENSORS)) or self.directory / f"{stem}{_TENSORS}"

    def _save(
        self, stem: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None, *, durable: bool = True
    ) -> None:
        if self.ranks.leads:
            self._sealed.write(stem, _TENSORS, lambda path: save_file(dict(tensors), path, metadata), durable=durable)

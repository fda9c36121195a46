"""Placement: where the hidden states between two blocks lie.

In the device's memory while there is room, then in the host's (pinned where the device is a GPU), then in a file, which
the page cache may hold. Where they lie changes no byte.
N = windows, B = windows of a batch, T = tokens of a window, D = hidden size.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch

from workers.engine.files.safetensors_bytes import fill
from workers.engine.files.tensors import bytes_of, write_all
from workers.engine.model.transfers import to_host

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.memory import Place, Room

NewFile = Callable[[], BinaryIO]
"""Opens an empty, unbuffered file for reading and writing."""


class States(ABC):
    """Hidden states [N, T, D] of all windows: written once, batch after batch, and read any number of times."""

    def __init__(self) -> None:
        self._holders, self._lock = 1, threading.Lock()

    @abstractmethod
    def append(self, hidden_BTD: Tensor) -> None:
        """Write the next windows."""

    @abstractmethod
    def read(self, windows: slice) -> Tensor:
        """[B, T, D] of consecutive windows, on the device, the caller's own. Raises OSError if they are not there."""

    @abstractmethod
    def as_file(self, new_file: NewFile) -> AbstractContextManager[BinaryIO]:
        """A file that holds them, window after window, without a header."""

    @abstractmethod
    def _release(self) -> None:
        """Give back what they take."""

    def share(self) -> None:
        """Add a holder: the states are released when every holder has closed them."""
        with self._lock:
            self._holders += 1

    def close(self) -> None:
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._release()


def placed(
    shape_NTD: tuple[int, int, int], dtype: torch.dtype, device: torch.device, room: Room, new_file: NewFile
) -> States:
    """Hidden states to be written, in the nearest place that has room for all of them."""
    size = math.prod(shape_NTD) * dtype.itemsize
    place = room.take(size)
    if place == "file":
        return InFile(new_file(), shape_NTD[1:], dtype, device)
    return InMemory(shape_NTD, dtype, device, place, lambda: room.give_back(place, size))


class InMemory(States):
    """On the device, or in the host's memory."""

    def __init__(
        self,
        shape_NTD: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        place: Place,
        released: Callable[[], None],
    ) -> None:
        super().__init__()
        on_gpu = device.type == "cuda"
        self._states_NTD: Tensor | None = torch.empty(
            shape_NTD, dtype=dtype, device=device if place == "device" else "cpu", pin_memory=on_gpu and place == "host"
        )
        self._device, self._released, self._written = device, released, 0

    def append(self, hidden_BTD: Tensor) -> None:
        begin, self._written = self._written, self._written + len(hidden_BTD)
        # In the order of the device's stream, in which they are read again.
        self._values()[begin : self._written].copy_(hidden_BTD, non_blocking=True)

    def read(self, windows: slice) -> Tensor:
        if windows.stop > self._written:
            raise OSError(f"hidden states of {self._written} windows end before window {windows.stop}")
        # A copy, as from a file: a block may compute in place.
        return self._values()[windows].to(self._device, non_blocking=True, copy=True)

    @contextmanager
    def as_file(self, new_file: NewFile) -> Iterator[BinaryIO]:
        if self._device.type == "cuda":
            # This thread waits, for what has been computed: not for the device, on which another may be recording.
            torch.cuda.current_stream(self._device).synchronize()
        # As they are now, on a stream of their own: else each would wait for all that is given to the device meanwhile.
        windows = [to_host({"": window_TD}) for window_TD in self._values()[: self._written]]
        with new_file() as file:
            try:
                for window in windows:
                    write_all(file, bytes_of(window()[""]))
                yield file
            finally:
                _forget_nameless(file)

    def _values(self) -> Tensor:
        assert self._states_NTD is not None  # nobody uses them when all have closed them
        return self._states_NTD

    def _release(self) -> None:
        self._states_NTD = None
        self._released()


class InFile(States):
    """In an open, unbuffered file."""

    def __init__(
        self, file: BinaryIO, window_shape_TD: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self._file, self._shape_TD, self._dtype, self._device = file, window_shape_TD, dtype, device
        self._window_bytes = math.prod(window_shape_TD) * dtype.itemsize

    def append(self, hidden_BTD: Tensor) -> None:
        write_all(self._file, bytes_of(hidden_BTD.to("cpu", self._dtype).contiguous()))

    def read(self, windows: slice) -> Tensor:
        hidden_BTD = torch.empty(windows.stop - windows.start, *self._shape_TD, dtype=self._dtype)
        fill(bytes_of(hidden_BTD), self._file, windows.start * self._window_bytes)
        return hidden_BTD.to(self._device)

    @contextmanager
    def as_file(self, new_file: NewFile) -> Iterator[BinaryIO]:
        yield self._file

    def _release(self) -> None:
        self._file.close()
        _forget_nameless(self._file)


def _forget_nameless(file: BinaryIO) -> None:
    """Remove a file that still has its first name: nobody has given it a lasting one."""
    if str(file.name).endswith(".tmp"):
        Path(file.name).unlink(missing_ok=True)

"""Activations: hidden states on their way from block to block.

The windows enter block 0 as the model's own forward pass would feed it, and go from block to block by themselves. They
lie in a file (the page cache is the bounded cache), so that only the batch at hand takes memory, however much text.
N = windows, B = windows of a batch, T = tokens of a window, D = hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from workers.engine.files.safetensors_bytes import fill
from workers.engine.model.loaded import LoadedModel, bytes_of, filled, tensors_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.engine.model.calibration import Calibration


class Hidden:
    """Hidden states [N, T, D] of all windows in an open, unbuffered file, window after window, without a header."""

    def __init__(self, file: BinaryIO, window_shape_TD: tuple[int, int], dtype: torch.dtype) -> None:
        self.file = file
        self._shape_TD = window_shape_TD
        self._dtype = dtype
        self._window_bytes = math.prod(window_shape_TD) * dtype.itemsize

    def append(self, hidden_BTD: Tensor) -> None:
        """Write the next windows."""
        left = bytes_of(hidden_BTD.to("cpu", self._dtype).contiguous())
        while left:
            left = left[self.file.write(left) :]

    def read(self, windows: slice) -> Tensor:
        """[B, T, D] of consecutive windows. Raises OSError if the file ends before."""
        hidden_BTD = torch.empty(windows.stop - windows.start, *self._shape_TD, dtype=self._dtype)
        fill(bytes_of(hidden_BTD), self.file, windows.start * self._window_bytes)
        return hidden_BTD


@dataclass(frozen=True)
class Call:
    """What the model hands to a block beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Captured(Exception):
    """The last block was reached: nothing after it is of interest."""


@dataclass
class Activations:
    """The windows of a text, and how the model calls its blocks on them."""

    model: LoadedModel
    windows_NT: Tensor
    batches: list[slice]
    calls: dict[int, list[Call]] = field(default_factory=dict, repr=False)
    """Batch size -> call of each block. Windows have no padding, so nothing else about a batch matters."""

    def hidden(self, file: BinaryIO) -> Hidden:
        """The states in a file, or to be written into it."""
        shape_TD = (self.windows_NT.shape[1], self.model.architecture.hidden_size)
        return Hidden(file, shape_TD, self.model.dtype)

    def embed(self, into: Hidden | None) -> None:
        """Note how the model calls every block, and write the input of the first one, if wanted."""
        embedding = self.model.architecture.layout.embedding
        with filled(self.model, embedding, tensors_of(self.model, embedding)):
            for batch in self.batches:
                ids_BT = self.windows_NT[batch]
                if into is not None or len(ids_BT) not in self.calls:
                    first_BTD, self.calls[len(ids_BT)] = capture(self.model, ids_BT.to(self.model.device))
                    if into is not None:
                        into.append(first_BTD)

    def run(self, block: int, module: nn.Module, hidden_BTD: Tensor) -> Tensor:
        """Output [B, T, D] of `module` as block `block` for one batch on the device."""
        call = self.calls[len(hidden_BTD)][block]
        output = module(hidden_BTD, *call.args, **call.kwargs)
        # A tensor in newer transformers, a tuple in older ones.
        return output[0] if isinstance(output, tuple) else output

    def forward(self, block: int, module: nn.Module, hidden: Hidden) -> Iterator[Tensor]:
        """Outputs [B, T, D] of `module` as block `block`, batch by batch over all windows."""
        for batch in self.batches:
            yield self.run(block, module, hidden.read(batch).to(self.model.device))

    def advance(self, block: int, module: nn.Module, hidden: Hidden, into: Hidden) -> None:
        """Write the block's outputs, the inputs of the next."""
        for output_BTD in self.forward(block, module, hidden):
            into.append(output_BTD)


def activations_of(model: LoadedModel, text: Calibration) -> Activations:
    """The activations of a text; `embed` comes first."""
    return Activations(model, text.windows_NT, list(text.batches(model.batch_tokens)))


def capture(model: LoadedModel, ids_BT: Tensor) -> tuple[Tensor, list[Call]]:
    """Input of block 0, and every block's call, taken whole: what a block is given differs between families.

    The embedding is filled.
    """
    blocks = list(model.skeleton.get_submodule(model.architecture.layout.blocks).children())
    inputs: list[Tensor] = []
    calls: list[Call] = []

    def record(hidden_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        inputs.append(hidden_BTD)
        calls.append(Call(args, kwargs))
        if len(calls) == len(blocks):
            raise _Captured
        return hidden_BTD

    for block in blocks:
        # On the instance, so that attributes of the block which the model looks at stay where they are.
        block.forward = record
    try:
        model.skeleton(input_ids=ids_BT, use_cache=False)
    except _Captured:
        pass
    finally:
        for block in blocks:
            del block.forward
    return inputs[0], calls

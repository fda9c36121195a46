"""The walk: a text goes through a model's blocks, one block and one batch at a time.

Pruning, statistics, gradients and streamed losses all use it. The windows enter block 0 as in the model's own forward
pass. The walk makes the batches, calls the blocks and places the hidden states between them; its callers pass a
function that is called at each block. N = windows, B = windows of a batch, T = tokens of a window, D = hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeVar

from workers.engine.model.loaded import LoadedModel, block_tensors, filled, filled_before, sent_block, tensors_of
from workers.engine.model.placement import InFile, NewFile, States, placed
from workers.engine.model.views import Held, held

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Layout
    from workers.engine.model.calibration import Calibration

R = TypeVar("R")


@dataclass(frozen=True)
class Call:
    """The arguments that the model passes to a block beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def of(self, block: nn.Module, hidden_BTD: Tensor) -> Tensor:
        """The block's output [B, T, D]."""
        output = block(hidden_BTD, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple | list) else output


class _Captured(Exception):
    """Raised at the last block, to end the forward pass."""


@dataclass
class Walk:
    """A text and a model that it is run through. As a context it releases all its hidden states at the end."""

    model: LoadedModel
    windows_NT: Tensor
    """Token ids, on the device."""
    batches: list[slice]
    new_file: NewFile
    """For hidden states that memory has no room for."""
    all_experts: bool = False
    """Whether each expert of a mixture reads all tokens where statistics are taken."""
    calls: dict[int, list[Call]] = field(default_factory=dict, repr=False)
    """Batch size -> call of each block. Windows have no padding, so nothing else about a batch matters."""
    _open: list[States] = field(default_factory=list, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release all hidden states."""
        while self._open:
            self._open.pop().close()

    def enter(self) -> States:
        """The inputs of block 0. Records how the model calls its blocks."""
        return self._embed(self.states())

    def resume(self, file: BinaryIO) -> States:
        """The inputs of a later block, from a file of `States.as_file`. Records how the model calls its blocks."""
        self._embed(None)
        window_shape_TD = (self.windows_NT.shape[1], self.model.architecture.hidden_size)
        self._open.append(InFile(file, window_shape_TD, self.model.dtype, self.model.device))
        return self._open[-1]

    def states(self) -> States:
        """Hidden states of all windows, to be written."""
        model = self.model
        shape_NTD = (*self.windows_NT.shape, model.architecture.hidden_size)
        self._open.append(placed(shape_NTD, model.dtype, model.device, model.room, self.new_file))
        return self._open[-1]

    def drop(self, states: States) -> None:
        """Release hidden states of this walk."""
        self._open.remove(states)
        states.close()

    def ids(self, batch: slice) -> Tensor:
        """Token ids [B, T] on the device."""
        return self.windows_NT[batch]

    @contextmanager
    def at(self, block: int, inputs: States, tensors: Mapping[str, Tensor], *, wanted: bool = True) -> Iterator[At]:
        """A block that holds `tensors` (full names) within the context. `wanted`: its outputs are needed."""
        with filled(self.model, self.model.architecture.layout.block(block), tensors) as module:
            yield At(self, block, module, tensors, inputs, wanted)

    def through(self, block: int, inputs: States, tensors: Mapping[str, Tensor]) -> States:
        """The outputs of a block that holds `tensors`."""
        with self.at(block, inputs, tensors) as at:
            at.advance()
        assert at.outputs is not None  # they are wanted
        return at.outputs

    def blocks(
        self,
        inputs: States,
        visit: Callable[[At], R],
        blocks: Sequence[int] | None = None,
        *,
        last_wanted: bool = False,
        keep: bool = False,
        ahead: bool = False,
    ) -> Iterator[tuple[int, States | None, R]]:
        """(block, its outputs, the value of `visit`) of these `blocks`, all if None; `inputs` enter the first.

        The outputs are the inputs of the next block, whatever `visit` did to the block before it let them pass; of the
        last block there are some only if they are `last_wanted`. Inputs are given up after their block, unless `keep`.
        `ahead` reads the next block's weights meanwhile: one more block in memory.
        """
        blocks = range(self.model.architecture.blocks) if blocks is None else blocks
        current: States | None = inputs
        for block, tensors in dense_blocks(self.model, blocks, ahead=ahead):
            assert current is not None  # of every block but the last one
            with self.at(block, current, tensors, wanted=last_wanted or block != blocks[-1]) as at:
                found = visit(at)
            outputs = at.outputs
            del tensors, at  # in memory for no longer than its turn
            yield block, outputs, found
            if not keep:
                self.drop(current)
            current = outputs

    def _embed(self, into: States | None) -> Any:
        with filled_before(self.model, lambda name: tensors_of(self.model, name)):
            for batch in self.batches:
                size = len(self.windows_NT[batch])
                if into is not None or size not in self.calls:
                    first_BTD, self.calls[size] = capture(self.model, self.ids(batch))
                    if into is not None:
                        into.append(first_BTD)
        return into


@dataclass
class At:
    """The block that is being computed: its weights are in place and may be changed, its inputs can be read."""

    walk: Walk
    block: int
    module: nn.Module
    dense: Mapping[str, Tensor]
    """Full name -> tensor as it was given, on the device."""
    inputs: States
    wanted: bool
    """Whether the outputs are needed."""
    outputs: States | None = None
    """The outputs kept so far."""

    @property
    def model(self) -> LoadedModel:
        return self.walk.model

    @property
    def batches(self) -> list[slice]:
        return self.walk.batches

    def run(self, hidden_BTD: Tensor, module: nn.Module | None = None) -> Tensor:
        """Output [B, T, D] for one batch of inputs; of another `module` in the block's place, if one is given."""
        return self.walk.calls[len(hidden_BTD)][self.block].of(module or self.module, hidden_BTD)

    @cached_property
    def held(self) -> Mapping[str, Held]:
        """Full name -> where the module holds the block's tensor."""
        architecture = self.model.architecture
        return held(self.module, architecture, architecture.layout.block(self.block))

    def view(self, tensor: str) -> Tensor:
        """The values of one of the block's tensors (full name) where the module holds them; of the tensor's elements in
        order, perhaps with more axes."""
        found = self.held[tensor]
        return found.view(self.module.get_parameter(found.parameter).data)

    def keep(self, output_BTD: Tensor) -> None:
        """Take the outputs of the next batch as inputs of the next block."""
        if self.outputs is None:
            self.outputs = self.walk.states()
        self.outputs.append(output_BTD)

    def advance(self) -> None:
        """Run all windows through the block as it is now, if its outputs are needed."""
        if self.wanted:
            self.run_all()

    def run_all(self) -> None:
        """Run all windows through the block as it is now; the outputs are kept if they are needed."""
        if self.wanted and not self.batches:  # a text of fewer windows than ranks
            self.outputs = self.walk.states()
        for batch in self.batches:
            output_BTD = self.run(self.inputs.read(batch))
            if self.wanted:
                self.keep(output_BTD)


def passed(layout: Layout, hidden_BTD: Tensor) -> Tensor | tuple[Tensor, None]:
    """The value that a block returns which hands on its inputs."""
    return (hidden_BTD, None) if layout.returns_tuple else hidden_BTD


def walk(model: LoadedModel, text: Calibration, new_file: NewFile, batches: list[slice] | None = None) -> Walk:
    """The walk of this rank's share of a text; `enter` or `resume` comes first. What is found in it is of these windows
    alone. `batches`: slices of the share, if not the model's usual."""
    share = text.share(model.ranks)
    batches = batches or list(share.batches(model.batch_tokens))
    return Walk(model, share.windows_NT.to(model.device), batches, new_file, text.all_experts)


def dense_blocks(
    model: LoadedModel, blocks: Sequence[int], *, ahead: bool = False
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """(block, its stored tensors on the device) of these blocks. `ahead`: the next is read meanwhile."""
    if not ahead:
        for block in blocks:
            yield block, block_tensors(model, block)
        return
    with ThreadPoolExecutor(1) as reader:
        reading = [reader.submit(sent_block, model, block) for block in blocks[:1]]
        for index, block in enumerate(blocks):
            tensors = reading.pop().result()()
            reading += [reader.submit(sent_block, model, after) for after in blocks[index + 1 : index + 2]]
            yield block, tensors
            del tensors


def capture(model: LoadedModel, ids_BT: Tensor) -> tuple[Tensor, list[Call]]:
    """Input of block 0, and every block's call with all arguments, which differ between families.

    What computes before the blocks is filled.
    """
    layout = model.architecture.layout
    blocks = list(model.skeleton.get_submodule(layout.in_module(layout.blocks)).children())
    inputs: list[Tensor] = []
    calls: list[Call] = []

    def record(hidden_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        inputs.append(hidden_BTD)
        calls.append(Call(args, kwargs))
        if len(calls) == len(blocks):
            raise _Captured
        return passed(layout, hidden_BTD)

    for block in blocks:
        # On the instance, so that the block keeps attributes that the model reads.
        block.forward = record
    try:
        model.skeleton(input_ids=ids_BT, use_cache=False)
    except _Captured:
        pass
    finally:
        for block in blocks:
            del block.forward
    return inputs[0], calls

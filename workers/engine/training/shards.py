"""Shards: a model in training divided over the ranks of a job, by torch's FSDP2 (`fully_shard`).

Each rank holds a part of every parameter, of its gradient and of AdamW's moments, and gathers the whole parameters of
one block while it is computed. Every rank trains on its part of a step's windows. What a method keeps in a parameter's
shape is divided like it; what it adds to a model, gates or adapters, is small, and whole on every rank. B = windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from workers.engine.model.loaded import architecture_of, in_parts
from workers.engine.model.memory import return_large_blocks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.ranks import Ranks


class Shards:
    """How trainings of a job are divided. With one rank nothing is, and no call communicates."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.ranks = ranks
        self.divided = ranks.count > 1
        self._mesh = init_device_mesh(device.type, (ranks.count,)) if self.divided else None
        if self.divided and device.type == "cpu":
            return_large_blocks()

    def in_parts(
        self, folder: Path, device: torch.device, dtype: torch.dtype
    ) -> tuple[PreTrainedModel, Iterator[int | None]]:
        """The model in a folder, without weights yet, and an iterator that reads it part by part, as
        `model/loaded.in_parts`: this rank keeps its part of a block when the next one is asked for. Blocks are gathered
        one by one; what is outside of them, a tied embedding too, together."""
        model, parts = in_parts(folder, device, dtype)
        return model, self._divided(model, architecture_of(folder), parts) if self.divided else parts

    def _divided(
        self, model: PreTrainedModel, architecture: Architecture, parts: Iterator[int | None]
    ) -> Iterator[int | None]:
        for block in parts:
            yield block
            fully_shard(model.get_submodule(part_of(architecture, block)), mesh=self._mesh)

    def loaded(self, folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """The same, read."""
        model, parts = self.in_parts(folder, device, dtype)
        for _ in parts:
            pass
        return model

    def divided_dense(self, dense: LoadedModel) -> PreTrainedModel:
        """The dense model in the type computed in, divided: the teacher of a training."""
        return self.loaded(dense.path, dense.device, dense.dtype)

    def gather_anew(self, model: nn.Module) -> None:
        """Leave of a divided model nothing gathered: what is outside of blocks is, after a forward pass."""
        if isinstance(model, FSDPModule):
            model.reshard()

    def like(self, parameter: Tensor, whole: Tensor) -> Tensor:
        """This rank's part of a tensor of a parameter's shape, which all ranks have; itself if it is divided."""
        return _part(whole, parameter) if isinstance(parameter, DTensor) and not isinstance(whole, DTensor) else whole

    def mine(self, ids_BT: Tensor) -> Tensor:
        """This rank's part of the windows, as many on all; their number must be a multiple of that of the ranks."""
        return ids_BT[self.ranks.share(len(ids_BT))]

    def padded(self, ids_BT: Tensor) -> tuple[Tensor, int]:
        """(this rank's part of any number of windows, filled up to as many on all ranks; how many of them count)."""
        ranks = self.ranks
        most = -(-len(ids_BT) // ranks.count)
        mine_BT = ids_BT[ranks.share(len(ids_BT))]
        missing = most - len(mine_BT)
        return torch.cat([mine_BT, ids_BT[:1].expand(missing, -1)]), len(mine_BT)

    def gathered(self, values: Tensor) -> Tensor:
        """The numbers of all ranks, one after the other, on the CPU."""
        return torch.cat(self.ranks.gather(values.cpu()))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks, in place."""
        self.ranks.add(values)
        return values.div_(self.ranks.count) if self.divided else values

    def mean_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The same of the gradients of parameters that every rank holds whole; FSDP2 has seen to the others'."""
        own = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)] if self.divided else []
        if own:
            means = self.mean(torch.cat([gradient.flatten() for gradient in own]))
            for gradient, mean in zip(own, means.split([gradient.numel() for gradient in own]), strict=True):
                gradient.copy_(mean.view_as(gradient))


def kept(parameter: Tensor) -> Tensor:
    """A copy, on the CPU; of a divided parameter this rank's part of one, where the parameter is."""
    found = parameter.detach()
    return found.clone() if isinstance(found, DTensor) else found.to("cpu", copy=True)


def own(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, where it lies: what is written to it is written to the tensor."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank. All ranks must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def written(tensor: Tensor) -> Iterator[Tensor]:
    """All of a tensor, as `whole`, to be written to within the context: every rank writes the same, and keeps its part
    of it."""
    everything = whole(tensor)
    yield everything
    if isinstance(tensor, DTensor):
        tensor.copy_(_part(everything, tensor))


@contextmanager
def part_by_part(
    model: nn.Module, architecture: Architecture, merged: Callable[[str, Tensor], Tensor]
) -> Iterator[Callable[[str, Tensor], Tensor]]:
    """`merged(tensor name, stored tensor)` of a model that may be divided: its parameters in the part that holds the
    tensor, a block or all that is outside of blocks, are whole meanwhile, those of all others divided. All ranks must
    ask for tensors of the same parts in the same order."""
    if not isinstance(model, FSDPModule):
        yield merged
        return
    model.reshard()  # what is outside of blocks is as the last forward pass has gathered it, not as it is now
    opened: list[nn.Module] = []

    def close() -> None:
        while opened:
            opened.pop().reshard()  # type: ignore[operator]  # an FSDPModule too

    def found(name: str, stored: Tensor) -> Tensor:
        within = architecture.layout.split(name)
        block = within[0] if within is not None and within[0] < architecture.blocks else None
        part = model.get_submodule(part_of(architecture, block))
        if part not in opened:
            close()
            part.unshard()  # type: ignore[operator]
            opened.append(part)
        tensor = merged(name, stored)
        return tensor if tensor is stored else tensor.clone()  # it may lie in what is freed with the part

    try:
        yield found
    finally:
        close()


def part_of(architecture: Architecture, block: int | None) -> str:
    """Path of a block; of the model for what is outside of blocks."""
    layout = architecture.layout
    return "" if block is None else layout.in_module(layout.block(block))


def sharing(parameter: Tensor) -> int:
    """The number of ranks that a parameter is divided over; 1 where it is whole."""
    return parameter.device_mesh.size() if isinstance(parameter, DTensor) else 1


def mean_over(parameter: Tensor, values: Tensor) -> None:
    """Average the values of the ranks that a parameter is divided over, in place; nothing where it is whole."""
    if isinstance(parameter, DTensor):
        total = DTensor.from_local(values, parameter.device_mesh, [Partial()]).full_tensor()
        values.copy_(total.div_(sharing(parameter)))


def _part(whole: Tensor, parameter: DTensor) -> DTensor:
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole.to(parameter.device), mesh, placements, src_data_rank=None)

"""AdamW's moments in resume points, and as numbers where they are kept in 8 bits (`training/eight_bit.py`).

A moment in 8 bits is a torchao tensor: codes, one byte each in the parameter's shape, and a float32 scale for each 256
of them. Of a parameter that is divided over ranks it is the local part of a DTensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from workers.engine.training.shards import own

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Kind = bool | Literal["codes"]
"""Of a moment in a resume point: whether it is one number, else of the parameter's shape; or codes and scales."""
BLOCK = 256
"""Codes that share a scale."""
_SCALES = "/scales"


@runtime_checkable
class MakesMoments(Protocol):
    """An optimizer that keeps moments in another form than the parameter's."""

    def moment(self, parameter: Tensor, *, signed: bool) -> Tensor:
        """Zeros, as its first step would make them."""


def in_full(moment: Tensor) -> Tensor:
    """The moment's numbers in float32, divided like it."""
    local: Any = own(moment)
    if not _is_coded(local):
        return moment
    numbers: Tensor = local.dequantize()
    if not isinstance(moment, DTensor):
        return numbers
    mesh, placements = moment.device_mesh, moment.placements
    return DTensor.from_local(
        numbers, mesh, placements, run_check=False, shape=moment.shape, stride=moment.stride()
    )  # fmt: skip


def stored(moment: Tensor) -> tuple[dict[str, Tensor], Kind]:
    """(the tensors of a moment in a resume point, by the ends of their names; their kind).

    Codes are kept as they are on one device. Parts of a divided moment are kept as numbers: another number of ranks
    cuts them elsewhere than between two scales.
    """
    if not isinstance(moment, DTensor) and _is_coded(moment):
        coded: Any = moment
        return {"": coded.codes, _SCALES: coded.scale}, "codes"
    return {"": in_full(moment)}, moment.dim() == 0


def room(parameter: Tensor, kind: Kind) -> dict[str, Tensor]:
    """Tensors for what `stored` gave to be read into. Codes and scales are whole, of a divided parameter too."""
    if kind == "codes":
        codes = torch.zeros(parameter.shape, dtype=torch.uint8)
        return {"": codes, _SCALES: torch.zeros(codes.numel() // BLOCK)}
    return {"": torch.zeros(()) if kind else torch.zeros_like(parameter)}


def put_back(moment: Tensor, read: Mapping[str, Tensor], *, signed: bool) -> Tensor:
    """`moment`, as an optimizer makes it for a parameter, with what was read into `room`."""
    if _SCALES not in read:
        return moment.copy_(read[""])
    from torchao.optim.subclass_8bit import OptimState8bit

    coded = OptimState8bit.zeros(read[""].shape, signed, BLOCK)
    coded.codes.copy_(read[""])
    coded.scale.copy_(read[_SCALES])
    if not isinstance(moment, DTensor):
        return moment.copy_(coded)
    numbers = coded.dequantize().to(moment.device)
    return moment.copy_(distribute_tensor(numbers, moment.device_mesh, moment.placements, src_data_rank=None))


def _is_coded(local: Tensor) -> bool:
    return hasattr(local, "codes")

"""Convert tensors to the type they are shipped in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from workers.engine.errors import NumericalFailure
from workers.engine.maths.selection import finite

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.facts import LayerTask
    from workers.engine.spec import CompressionSpec


def as_stored(stored_dtype: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the type they are shipped in, where they are. Raises NumericalFailure where that overflows."""
    if stored_dtype == "source":
        return {name: tensor.contiguous() for name, tensor in tensors.items()}
    dtype = getattr(torch, stored_dtype)
    found = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in found.items():
        if not finite(tensor) and finite(tensors[name]):
            raise NumericalFailure(
                f"{name} holds values beyond the range of {stored_dtype}",
                "package as `source`, bfloat16 or float32",
                field="/package/dtype",
            )
    return found


def as_shipped(spec: CompressionSpec, task: LayerTask, weight_OI: Tensor) -> Tensor:
    """Float32 weights straight in the type that ships, so that they are rounded once. Raises NumericalFailure."""
    if not finite(weight_OI):
        raise NumericalFailure(
            f"{task.name}: {spec.edit.method} made infinite or NaN weights",
            "raise its dampening, calibrate on more text, or use another pruner",
            field=f"/{spec.editor.stage}",
        )
    return weight_OI if spec.package.dtype != "source" else weight_OI.to(task.weight_OI.dtype)

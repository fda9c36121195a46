"""Before and after the loop, for `tune` and `train`: the model made ready, its weights written, its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from workers.engine.errors import NumericalFailure
from workers.engine.files.tensors import overwrite, read_tensor
from workers.engine.maths.selection import finite
from workers.engine.model.memory import give_back
from workers.engine.report import TunePoint
from workers.engine.store.clock import peak_resident_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from workers.engine.files.safetensors_bytes import Slice
    from workers.engine.training.loop import Loop, Setting

_CURVE_POINTS = 100


def make_ready(model: PreTrainedModel, setting: Setting) -> None:
    """Turn on gradient checkpointing where it is asked for, and let go of weights that became codes."""
    if setting.params.gradient_checkpointing:
        model.activation_checkpointing_enable()
    give_back()


def overwrite_trained(slices: Mapping[str, Slice], merged: Callable[[str, Tensor], Tensor], setting: Setting) -> None:
    """Write trained tensors over those in the files, each rounded once to its stored type. Raises NumericalFailure.

    All ranks ask for the tensors, and the first writes; what others read of the files then is no matter."""
    for name, piece in slices.items():
        stored = read_tensor(piece)
        exact = stored.to(setting.device, torch.float32)
        found = merged(name, exact)
        if found is exact or not setting.shards.ranks.leads:
            continue
        tensor = found.to("cpu", stored.dtype).contiguous()
        if not finite(tensor):
            field, remedy = setting.rate
            if setting.stage == "tune":  # `train` writes the source's types
                field, remedy = "/package/dtype", "package as float32 or bfloat16, or lower `learning_rate`"
            raise NumericalFailure(
                f"{name} holds values beyond the range of {piece.facts.dtype} after {setting.name}", remedy, field=field
            )
        overwrite(piece, tensor)


def reported(loop: Loop, trained: Iterable[nn.Parameter]) -> dict[str, Any]:
    """Fields of the report that every training has."""
    setting, state, curve = loop.setting, loop.state, loop.state.curve
    every = -(-len(curve) // _CURVE_POINTS)
    shown = (state.best_step, state.step)
    device = setting.device
    return {
        "curve": [TunePoint(**point) for i, point in enumerate(curve) if i % every == 0 or point["step"] in shown],
        "tokens_per_s": loop.tokens_per_s,
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "train_windows": setting.text.train_windows,
        "holdout_windows": len(setting.text.holdout_NT),
        "peak_memory_bytes": peak_resident_bytes(),
        "device_peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "resumed_step": loop.resumed_step,
    }

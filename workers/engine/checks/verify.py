"""Verify that the result computes the same as the model it was made from.

One window goes through the result, as transformers loads it from its files, and through the models it must equal.
Families differ in what depends on a block's number, on widths or on the config, which no list says completely. Float32,
whatever the spec computes in. T = tokens.
"""

from __future__ import annotations

import filecmp
import gc
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from workers.engine import artifact
from workers.engine.architectures.per_layer import MODELING
from workers.engine.checks.trace import LOGITS, REMEDY, Trace, compare, difference, shown, streamed, trace
from workers.engine.errors import EngineError, ResultMismatch, UnsupportedModel
from workers.engine.failures import translated
from workers.engine.model.loaded import (
    architecture_of,
    filled,
    filled_before,
    head_tensors,
    in_float32,
    load_result,
    result_of,
    tensors_of,
)
from workers.engine.model.memory import memory_budget
from workers.engine.model.walk import capture
from workers.engine.planning.predictions import predicted_peak_memory_bytes, whole_float32_bytes
from workers.engine.report import ResultCheck

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.checks.masked import MaskedModel
    from workers.engine.checks.tuned import TunedTraces
    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.spec import CompressionSpec

TOKENS = 128
_SLIDING = ("sliding_window", "window_size", "local_attention")
"""Config entries that tell how long the attention window of some blocks is."""
MOST_TOKENS = 1056
"""Most tokens of the window. It is longer than a sliding attention window, so that it shows which blocks use one."""

WHOLE_ANYWAY_BYTES = 2**26
"""The result may take so much more than the rest of the job and still be loaded whole: predictions err by as much."""


def verify(
    spec: CompressionSpec, model: LoadedModel, masked: MaskedModel, folder: Path, ids_T: Tensor
) -> list[ResultCheck]:
    """Compare the result in `folder` with the walked and with the masked dense model.

    Raises ResultMismatch, saying where they differ first, and NumericalFailure where outputs are not finite.
    """
    found = result_trace(spec, model, folder, ids_T)
    walked, expected = (_as_of_result(of(masked, ids_T), masked) for of in (_walked_trace, _masked_trace))
    rounding = 0.0
    if masked.rounds:
        exact = _masked_trace(replace(masked, unrounded=True), ids_T)
        rounding = difference(found[LOGITS], exact[LOGITS])
    return [
        _check(model, "masked dense model", found, expected, rounding, ids_T),
        _check(model, "walked model", found, walked, rounding, ids_T),
    ]


def verify_tuned(
    spec: CompressionSpec, model: LoadedModel, tuned: TunedTraces, folder: Path, ids_T: Tensor
) -> ResultCheck:
    """Compare the tuned result in `folder` with the model as it was trained. Raises ResultMismatch."""
    gc.collect()  # the trained model must be gone before the result is loaded
    found = result_trace(spec, model, folder, ids_T)
    check = _check(model, "tuned model", found, tuned.as_stored, difference(found[LOGITS], tuned.merged[LOGITS]), ids_T)
    return check.model_copy(update={"difference": max(check.difference, tuned.difference)})


def window(spec: CompressionSpec, model: LoadedModel, text: Calibration | None) -> Tensor:
    """Token ids [T], on the device: of the calibration text, or drawn by the seed where there is none."""
    tokens = TOKENS
    for name in _SLIDING:
        if isinstance(sliding := model.source.config.get(name), int):
            tokens = max(tokens, min(sliding + 32, MOST_TOKENS))
    tokens = min(tokens, model.architecture.context_length)
    if text is not None:
        return text.windows_NT.flatten()[:tokens].to(model.device)
    drawn = torch.Generator().manual_seed(spec.seed)
    return torch.randint(model.architecture.vocabulary, (tokens,), generator=drawn).to(model.device)


def result_trace(spec: CompressionSpec, model: LoadedModel, folder: Path, ids_T: Tensor) -> Trace:
    """The trace of the result: loaded whole where that takes no more memory than the rest of the job, else in parts."""
    if (folder / MODELING).exists():
        ours = Path(artifact.__file__).parent / MODELING
        if not filecmp.cmp(folder / MODELING, ours, shallow=False):
            raise ResultMismatch(f"the result's {MODELING} is not the one that is tried here", REMEDY)
    try:
        with translated(), ExitStack() as open_files:
            if _fits_whole(spec, model):
                loaded = load_result(folder, model.device, torch.float32)
            else:
                result = in_float32(result_of(model, folder))
                loaded = open_files.enter_context(streamed(result, lambda name: stored_tensors(result, name)))
            return trace(loaded, architecture_of(folder), ids_T)
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, EngineError) and not isinstance(error, UnsupportedModel):
            raise
        raise ResultMismatch(f"the result does not load and compute: {error}", REMEDY) from error


def stored_tensors(model: LoadedModel, module: str) -> Mapping[str, Tensor]:
    """Stored tensors of a module; a tied head's are the embedding's."""
    tied = model.skeleton.config.get_text_config().tie_word_embeddings
    return head_tensors(model) if module == model.architecture.layout.head and tied else tensors_of(model, module)


def _check(
    model: LoadedModel, against: str, found: Trace, expected: Trace, rounding: float, ids_T: Tensor
) -> ResultCheck:
    difference = compare(found, expected, model.architecture, against)
    return ResultCheck(against=against, tokens=len(ids_T), difference=difference, rounding=rounding)


def _fits_whole(spec: CompressionSpec, model: LoadedModel) -> bool:
    rest = predicted_peak_memory_bytes(spec, model.source, model.architecture) + WHOLE_ANYWAY_BYTES
    return whole_float32_bytes(model.source) <= min(rest, memory_budget(spec.compute.memory_budget, model.device))


def _masked_trace(masked: MaskedModel, ids_T: Tensor) -> Trace:
    filled_in_turn = streamed(masked.model, masked.tensors, masked.blocks)
    with masked.without_dimensions(), masked.without_experts(), masked.without_blocks(), filled_in_turn as skeleton:
        return trace(skeleton, masked.model.architecture, ids_T)


def _walked_trace(masked: MaskedModel, ids_T: Tensor) -> Trace:
    """The trace of the walk: block by block, each with the arguments that the model passed."""
    model, layout, found = masked.model, masked.model.architecture.layout, {}
    with masked.without_dimensions(), masked.without_experts(), torch.no_grad():
        with filled_before(model, masked.tensors):
            hidden_1TD, calls = capture(model, ids_T[None])
        for block in masked.blocks:
            name = layout.block(block)
            with filled(model, name, masked.tensors(name)) as module:
                hidden_1TD = calls[block].of(module, hidden_1TD)
            found[name] = shown(hidden_1TD[0])
    return found


def _as_of_result(expected: Trace, masked: MaskedModel) -> Trace:
    """The trace under the result's names, in its hidden dimensions."""
    found = {}
    for name, output_PD in expected.items():
        renamed, layout = name, masked.model.architecture.layout
        if (within := layout.split(name)) is not None:
            if within[0] not in masked.blocks:
                continue
            renamed = layout.in_block(name, masked.blocks[within[0]])
        whole = masked.mask.dimensions is None or name == LOGITS
        found[renamed] = output_PD if whole else output_PD[:, masked.mask.dimensions]
    return found

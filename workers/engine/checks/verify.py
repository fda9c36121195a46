"""Verify that the result computes the same as the model it was made from.

One window goes through the result, as transformers loads it from its files, and through the models it must equal.
Families differ in what depends on a block's number, on widths or on the config, which no list says completely. Float32,
whatever the spec computes in. T = tokens.
"""

from __future__ import annotations

import filecmp
import gc
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from workers.engine import artifact
from workers.engine.architectures.per_layer import MODELING
from workers.engine.checks.trace import LOGITS, REMEDY, Trace, compare, difference, left_out, shown, streamed, trace
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
from workers.engine.planning.predictions import checks_whole
from workers.engine.report import ResultCheck

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture
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


def verify(
    spec: CompressionSpec, model: LoadedModel, masked: MaskedModel, folder: Path, ids_T: Tensor
) -> list[ResultCheck]:
    """Compare the result in `folder` with the walked model and, new blocks left out, with the masked dense model.

    Raises ResultMismatch, saying where they differ first, and NumericalFailure where outputs are not finite.
    """
    found = result_trace(spec, model, folder, ids_T)
    new = masked.outcome.new
    kept = result_trace(spec, model, folder, ids_T, without=new) if new else found
    walked = _walked_trace(masked, ids_T)
    expected = _as_of_result(_in_its_dimensions(_masked_trace(masked, ids_T), masked), masked)
    rounding = 0.0
    if masked.rounds:
        exact = _masked_trace(replace(masked, unrounded=True), ids_T)
        rounding = difference(kept[LOGITS], exact[LOGITS])
    result = architecture_of(folder)
    return [
        _check(result, "masked dense model", kept, expected, rounding, ids_T),
        _check(result, "walked model", found, walked, rounding, ids_T),
    ]


def verify_tuned(
    spec: CompressionSpec, model: LoadedModel, tuned: TunedTraces, folder: Path, ids_T: Tensor
) -> ResultCheck:
    """Compare the tuned result in `folder` with the model as it was trained. Raises ResultMismatch."""
    gc.collect()  # the trained model must be gone before the result is loaded
    found = result_trace(spec, model, folder, ids_T)
    rounding = difference(found[LOGITS], tuned.merged[LOGITS])
    check = _check(architecture_of(folder), "tuned model", found, tuned.as_stored, rounding, ids_T)
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


def result_trace(
    spec: CompressionSpec, model: LoadedModel, folder: Path, ids_T: Tensor, without: Sequence[int] = ()
) -> Trace:
    """The trace of the result: loaded whole where that takes no more memory than the rest of the job, else in parts.
    Blocks that it is traced `without` pass on what they read."""
    if (folder / MODELING).exists():
        ours = Path(artifact.__file__).parent / MODELING
        if not filecmp.cmp(folder / MODELING, ours, shallow=False):
            raise ResultMismatch(f"the result's {MODELING} is not the one that is tried here", REMEDY)
    try:
        with translated(), ExitStack() as open_files:
            budget = memory_budget(spec.compute.memory_budget, model.device)
            if checks_whole(spec, model.source, model.architecture, budget):
                loaded = load_result(folder, model.device, torch.float32)
            else:
                result = in_float32(result_of(model, folder))
                loaded = open_files.enter_context(streamed(result, lambda name: stored_tensors(result, name)))
            result_architecture = architecture_of(folder)
            open_files.enter_context(left_out(loaded, result_architecture.layout, without))
            return trace(loaded, result_architecture, ids_T)
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, EngineError) and not isinstance(error, UnsupportedModel):
            raise
        raise ResultMismatch(f"the result does not load and compute: {error}", REMEDY) from error


def stored_tensors(model: LoadedModel, module: str) -> Mapping[str, Tensor]:
    """Stored tensors of a module; a tied head's are the embedding's."""
    tied = model.skeleton.config.tie_word_embeddings
    return head_tensors(model) if module == model.architecture.layout.head and tied else tensors_of(model, module)


def _check(
    architecture: Architecture, against: str, found: Trace, expected: Trace, rounding: float, ids_T: Tensor
) -> ResultCheck:
    difference = compare(found, expected, architecture, against)
    return ResultCheck(against=against, tokens=len(ids_T), difference=difference, rounding=rounding)


def _masked_trace(masked: MaskedModel, ids_T: Tensor) -> Trace:
    filled_in_turn = streamed(masked.model, masked.tensors, masked.outcome.numbers)
    with masked.without_dimensions(), masked.without_experts(), masked.without_blocks(), filled_in_turn as skeleton:
        return trace(skeleton, masked.model.architecture, ids_T)


def _walked_trace(masked: MaskedModel, ids_T: Tensor) -> Trace:
    """The trace of the walk: block by block, each with the arguments that the model passed."""
    model, layout, found = masked.model, masked.model.architecture.layout, {}
    with masked.without_dimensions(), masked.without_experts(), torch.no_grad():
        with filled_before(model, masked.tensors):
            hidden_1TD, calls = capture(model, ids_T[None])
        for index, block in enumerate(masked.outcome.blocks):
            name = layout.block(block)
            tensors = masked.new_block(index) if index in masked.outcome.new else masked.tensors(name)
            with filled(model, name, tensors) as module:
                hidden_1TD = calls[block].of(module, hidden_1TD)
            found[layout.block(index)] = shown(hidden_1TD[0])
    return _in_its_dimensions(found, masked)


def _as_of_result(expected: Trace, masked: MaskedModel) -> Trace:
    """The trace of blocks that stay under the result's names."""
    layout, numbers = masked.model.architecture.layout, masked.outcome.numbers
    found = {}
    for name, output_PD in expected.items():
        within = layout.split(name)
        if within is None:
            found[name] = output_PD
        elif within[0] in numbers:
            found[layout.in_block(name, numbers[within[0]])] = output_PD
    return found


def _in_its_dimensions(found: Trace, masked: MaskedModel) -> Trace:
    """The trace in the result's hidden dimensions."""
    if masked.mask.dimensions is None:
        return found
    return {name: out if name == LOGITS else out[:, masked.mask.dimensions] for name, out in found.items()}

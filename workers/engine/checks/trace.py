"""Trace: run one window through a model of transformers' classes and record the outputs of its parts, in float32.

The model is whole, or a skeleton whose parts hold their weights only while they compute.
T = tokens of the window, P = positions compared, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from workers.engine.errors import NumericalFailure, ResultMismatch
from workers.engine.model.loaded import filled, outside
from workers.engine.model.replaced import replaced
from workers.engine.model.walk import passed

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from workers.engine.architectures.architecture import Architecture, Layout
    from workers.engine.model.loaded import LoadedModel

Trace = dict[str, "Tensor"]
"""Module -> its outputs [P, D] on the CPU, in the order of the forward pass; last `LOGITS`, [P, V]."""
LOGITS = "logits"
POSITIONS = 16
"""Number of positions compared, spread evenly over the window; each attends to all before it."""
TOLERANCE = 1e-4
"""Relative. Float32 sums in another order differ by about 1e-6, a wrong structure by 1e-3 or more."""
REMEDY = (
    "nothing was shipped. A family that computes with block numbers, head counts or widths does not bear that they "
    "change: prune single weights, with `mask` or `sparsegpt`; where you did, report it with the job's log"
)


def trace(model: PreTrainedModel, architecture: Architecture, ids_T: Tensor) -> Trace:
    """Outputs of the embedding, of each block and its layers that write into the hidden vector, and of the head."""
    found: Trace = {}

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple | list) else output
            found[name] = shown(tensor[0] if tensor.dim() == 3 else tensor)  # [T, D] beside experts, and in OPT's MLP

        return hook

    with ExitStack() as hooks:
        layout = architecture.layout
        for name in _recorded(architecture):
            module = model.get_submodule(layout.in_module(name))
            hooks.callback(module.register_forward_hook(record(name)).remove)
        # Of a few positions: logits of all can be larger than the model.
        head = model.get_submodule(layout.in_module(layout.head))
        hooks.callback(head.register_forward_pre_hook(lambda _, args: (args[0][:, _positions(args[0][0])],)).remove)
        with torch.no_grad():
            logits_1PV = model(input_ids=ids_T[None], use_cache=False).logits
    return found | {LOGITS: logits_1PV[0].to("cpu", torch.float32)}


def shown(output_TD: Tensor) -> Tensor:
    """The compared positions, [P, D]."""
    return output_TD[_positions(output_TD)].to("cpu", torch.float32, copy=True)


def compare(found: Trace, expected: Trace, architecture: Architecture, against: str) -> float:
    """The largest relative difference at a position, of embedding, blocks and logits. Both have the names of
    `architecture`.

    Raises ResultMismatch where it is above TOLERANCE, naming the first module that differs; NumericalFailure where what
    is expected is not finite.
    """
    errors = {}
    for name, expected_PD in expected.items():
        if not expected_PD.isfinite().all():
            raise NumericalFailure(
                f"{name}: the {against} puts out infinities or NaN",
                "check the weights of the dense model, or lower the sparsity",
            )
        if name not in found or found[name].shape != expected_PD.shape:
            shape = list(found[name].shape) if name in found else "nothing"
            raise ResultMismatch(
                f"{name}: the result puts out {shape}, the {against} {list(expected_PD.shape)}", REMEDY
            )
        errors[name] = difference(found[name], expected_PD)
    within_blocks = {name for block in range(architecture.blocks) for name in _writers(architecture, block)}
    judged = {name: error for name, error in errors.items() if name not in within_blocks}
    worst = max(judged, key=lambda name: judged[name])
    if judged[worst] > TOLERANCE:
        first = next(name for name, error in errors.items() if error > TOLERANCE)
        raise ResultMismatch(
            f"the result does not compute what the {against} does: first the outputs of {first} differ, by "
            f"{errors[first]:.2g} of their norm, and most those of {worst}, by {judged[worst]:.2g}",
            REMEDY,
        )
    return judged[worst]


def difference(found_PD: Tensor, expected_PD: Tensor) -> float:
    """The largest norm of the difference at a position, relative to the norm of the expected output."""
    apart_P = (found_PD - expected_PD).double().norm(dim=1)
    norm_P = expected_PD.double().norm(dim=1)
    return (apart_P / norm_P.where(norm_P > 0, 1)).nan_to_num(torch.inf).max().item()


@contextmanager
def left_out(model: nn.Module, layout: Layout, blocks: Iterable[int]) -> Iterator[None]:
    """The model whose blocks of these numbers pass on what they read, within the context."""
    with ExitStack() as undo:
        for number in blocks:
            block = model.get_submodule(layout.in_module(layout.block(number)))
            undo.enter_context(replaced(block, lambda hidden_BTD, *_, **__: passed(layout, hidden_BTD)))
        yield


@contextmanager
def in_turn(
    model: nn.Module, layout: Layout, blocks: Iterable[int], opened: Callable[[str], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Enter `opened(name)` while a part of the model computes: one of these blocks, or another part with weights."""
    parts = [*(layout.block(block) for block in blocks), *outside(model, layout)]
    turn, of_embedding = ExitStack(), ExitStack()

    def begin(name: str, turn: ExitStack) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            turn.enter_context(opened(name))

        return hook

    with turn, of_embedding, ExitStack() as hooks:
        for name in parts:
            part = model.get_submodule(layout.in_module(name))
            first, own = part, turn
            if name == layout.embedding:  # Llama 4 asks for the device of its weight before it computes
                first, own = model, of_embedding  # and wrappers compute it before their decoder
            hooks.callback(first.register_forward_pre_hook(begin(name, own)).remove)
            hooks.callback(part.register_forward_hook(lambda *_, own=own: own.close()).remove)
        yield


@contextmanager
def streamed(
    model: LoadedModel, tensors: Callable[[str], Mapping[str, Tensor]], blocks: Iterable[int] | None = None
) -> Iterator[PreTrainedModel]:
    """The skeleton, able to compute as a whole. `tensors` gives those of a module by full name, on the device; `blocks`
    are the ones that compute, all if None.
    """
    blocks = range(model.architecture.blocks) if blocks is None else blocks
    with in_turn(model.skeleton, model.architecture.layout, blocks, lambda name: filled(model, name, tensors(name))):
        yield model.skeleton


def _positions(output_TD: Tensor) -> Tensor:
    tokens = len(output_TD)
    return torch.linspace(0, tokens - 1, min(POSITIONS, tokens), device=output_TD.device).round().long()


def _recorded(architecture: Architecture) -> list[str]:
    names = [architecture.layout.embedding]
    for block in range(architecture.blocks):
        names += [architecture.layout.block(block), *_writers(architecture, block)]
    return names


def _writers(architecture: Architecture, block: int) -> list[str]:
    """Linear modules of a block that write into the hidden vector, by canonical names, in the order of the forward
    pass."""
    layout = architecture.layout
    layers = (layer for layer in architecture.writing("hidden", block) if not layout.of_experts(layer))
    return list(dict.fromkeys(layout.from_module(layout.host(layer.name)) for layer in layers))

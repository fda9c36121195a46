"""The parts that blocks of many layouts have, under the names that a layout gives their layers. Import-light."""

from __future__ import annotations

from workers.engine.architectures.architecture import Part, Projection
from workers.engine.architectures.fused import EACH, Fused

_AND_BIAS = ("weight", "bias")


def attention(module: str, query: str, key: str, value: str, output: str) -> Part:
    """Attention of four linear layers, by their names below the module."""
    return Part(
        module,
        (
            Projection(f"{module}.{query}", "attention_input", reads="hidden", writes="head"),
            Projection(f"{module}.{key}", "attention_input", reads="hidden", writes="head", cached=True),
            Projection(f"{module}.{value}", "attention_input", reads="hidden", writes="head", cached=True),
            Projection(f"{module}.{output}", "attention_output", reads="head", writes="hidden"),
        ),
    )


def gated(module: str, gate: str, up: str, down: str) -> Part:
    """An MLP whose channels are a product of two linear layers."""
    return Part(
        module,
        (
            Projection(f"{module}.{gate}", "mlp_input", reads="hidden", writes="channel"),
            Projection(f"{module}.{up}", "mlp_input", reads="hidden", writes="channel"),
            Projection(f"{module}.{down}", "mlp_hidden", reads="channel", writes="hidden"),
        ),
    )


def plain(module: str, up: str, down: str, stream: str = "mlp_input") -> Part:
    """An MLP without a gate. `stream`: that of the attention, where both read the same input. An empty module stands
    for the block itself."""
    below = f"{module}." if module else ""
    return Part(
        module,
        (
            Projection(f"{below}{up}", stream, reads="hidden", writes="channel"),
            Projection(f"{below}{down}", "mlp_hidden", reads="channel", writes="hidden"),
        ),
    )


def experts(
    module: str,
    gate: str,
    up: str,
    down: str,
    *,
    kept: tuple[str, ...],
    shared: Part | None = None,
) -> Part:
    """A mixture of gated MLPs; the names of their layers hold `EACH`. `shared`: an MLP that all tokens go through."""
    of_expert = f"expert_{EACH}"
    return Part(
        module,
        (
            Projection(f"{module}.{gate}", f"{of_expert}_input", reads="hidden", writes=f"{of_expert}_channel"),
            Projection(f"{module}.{up}", f"{of_expert}_input", reads="hidden", writes=f"{of_expert}_channel"),
            Projection(f"{module}.{down}", f"{of_expert}_hidden", reads=f"{of_expert}_channel", writes="hidden"),
            *(() if shared is None else shared.layers),
        ),
        kept=tuple(f"{module}.{name}" for name in kept),
    )


def fused(
    layer: str, parts: tuple[str, ...], widths: tuple[str, ...] = ("rest",), *, repeats: bool = False
) -> tuple[Fused, ...]:
    """A linear layer that holds the rows of several, and its bias."""
    return tuple(
        Fused(f"{layer}.{end}", tuple(f"{part}.{end}" for part in parts), widths, repeats=repeats) for end in _AND_BIAS
    )


def transposed(layer: str, parts: tuple[str, ...] = (), widths: tuple[str, ...] = ("rest",)) -> tuple[Fused, ...]:
    """A layer that stores [I, O], as GPT-2's Conv1D, and its bias."""
    names = parts or (layer,)
    return tuple(
        Fused(f"{layer}.{end}", tuple(f"{name}.{end}" for name in names), widths, transposed=True)
        for end in _AND_BIAS
        if end == "weight" or parts
    )


def stacked(tensor: str, parts: tuple[str, ...], *, repeats: bool = False, transposed: bool = False) -> Fused:
    """A tensor [E, ...] of all experts that holds one or several matrices of each."""
    widths = ("1",) if repeats else ("rest",)
    return Fused(tensor, tuple(f"{part}.weight" for part in parts), widths, repeats=repeats, transposed=transposed)

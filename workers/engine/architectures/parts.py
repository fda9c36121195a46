"""The parts that blocks of many layouts have, under the names that a layout gives their layers. Import-light."""

from __future__ import annotations

from workers.engine.architectures.architecture import Part, Projection
from workers.engine.architectures.fused import EACH, Fused

GATE_UP, UP, DOWN = "gate_up_proj", "up_proj", "down_proj"
"""Parameters of transformers' modules that compute all experts of a block; of the first two they have one."""
_AND_BIAS = ("weight", "bias")


def attention(
    module: str,
    query: str,
    key: str,
    value: str,
    output: str,
    gate: str | None = None,
    kept: tuple[str, ...] = (),
) -> Part:
    """Attention of four linear layers, by their names below the module; of five, where a `gate` multiplies its output
    head by head. `kept`: its other matrices, by their names too."""
    gates = () if gate is None else (Projection(f"{module}.{gate}", "attention_input", reads="hidden", writes="head"),)
    return Part(
        module,
        (
            Projection(f"{module}.{query}", "attention_input", reads="hidden", writes="head"),
            Projection(f"{module}.{key}", "attention_input", reads="hidden", writes="head", cached=True),
            Projection(f"{module}.{value}", "attention_input", reads="hidden", writes="head", cached=True),
            *gates,
            Projection(f"{module}.{output}", "attention_output", reads="head", writes="hidden"),
        ),
        kept=tuple(f"{module}.{name}" for name in kept),
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
    gate: str | None,
    up: str,
    down: str,
    *,
    routers: tuple[str, ...] = ("gate.weight",),
    shared: Part | None = None,
    kept: tuple[str, ...] = (),
    others: tuple[tuple[str, int], ...] = (),
    reads_all: bool = False,
) -> Part:
    """A mixture of MLPs, with a `gate` or without. The names of their layers, below the module, hold `EACH`. An empty
    module stands for the block itself.

    `routers`: tensors below the module with an entry along the first axis for each expert. `shared`: an MLP that all
    tokens go through. `kept`: paths of other matrices below the block. `others`: (tensor below the block, its axis of
    experts) of those that lie elsewhere or along another axis. `reads_all`: each expert is given all tokens.
    """
    one, below = f"expert_{EACH}", f"{module}." if module else ""
    each = tuple(f"{below}{name}" for name in routers)
    return Part(
        module,
        (
            *(
                Projection(f"{below}{name}", f"{one}_input", reads="hidden", writes="expert_channel")
                for name in (gate, up)
                if name is not None
            ),
            Projection(f"{below}{down}", f"{one}_hidden", reads="expert_channel", writes="hidden"),
            *(() if shared is None else shared.layers),
        ),
        kept=(*(name.removesuffix(".weight") for name in each), *kept),
        of_each_expert=(*((name, 0) for name in each), *others),
        reads_all=reads_all,
    )


def shared_mlp(module: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Part:
    """The MLP of a mixture that all tokens go through, beside the experts."""
    return Part(
        module,
        (
            Projection(f"{module}.{gate}", "shared_input", reads="hidden", writes="shared_channel"),
            Projection(f"{module}.{up}", "shared_input", reads="hidden", writes="shared_channel"),
            Projection(f"{module}.{down}", "shared_hidden", reads="shared_channel", writes="hidden"),
        ),
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


def stacked(
    tensor: str, parts: tuple[str, ...], *, repeats: bool = False, transposed: bool = False, end: str = "weight"
) -> Fused:
    """A tensor [E, ...] of all experts that holds one or several matrices of each, or with `end` their biases."""
    widths = ("1",) if repeats else ("rest",)
    return Fused(tensor, tuple(f"{part}.{end}" for part in parts), widths, repeats=repeats, transposed=transposed)

"""Parameters, bytes and multiplications of a result, from its structure alone. Import-light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.architectures.mixtures import expert_of
from workers.engine.files.safetensors_bytes import DTYPE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.removals.outcome import Outcome
    from workers.engine.sources.resolve import ModelSource

_STORED_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def parameters_after(source: ModelSource, outcome: Outcome) -> int:
    """Parameters of the result; a head tied to the embedding is not counted twice."""
    left, head = outcome.parameters(source.tensors), source.layout.head_weight
    return sum(count for name, count in left.items() if not (source.shares_head and name == head))


def stored_bytes(stored_dtype: str, source: ModelSource, outcome: Outcome) -> int:
    """Weight bytes of the result, packaged as `stored_dtype` of a spec. Zeros take as much room as other weights."""
    dtype = None if stored_dtype == "source" else _STORED_DTYPES[stored_dtype]
    left = outcome.parameters(source.tensors)
    return sum(count * DTYPE_BYTES[dtype or source.tensors[name].dtype] for name, count in left.items())


def macs_after(source: ModelSource, architecture: Architecture, outcome: Outcome, tokens: int) -> int:
    """`forward_macs` of the result."""
    shapes, left = outcome.tensor_shapes(source.tensors), outcome.parameters(source.tensors)
    linear, embedding = _met(architecture, left), source.layout.embedding_weight
    read = sum(
        left[layer.weight] // shapes[layer.weight][0] for layer in architecture.reading("head") if layer.weight in left
    )
    # A head tied to the embedding is as wide as it.
    head = architecture.vocabulary * architecture.hidden_size * left[embedding] // source.tensors[embedding].parameters
    return forward_macs(linear + head, read, tokens)


def macs(architecture: Architecture, tokens: int) -> int:
    """Of one sequence of so many tokens through a model as it is."""
    whole = {layer.weight: layer.parameters for layer in architecture.layers}
    linear = _met(architecture, whole) + architecture.vocabulary * architecture.hidden_size
    read = sum(layer.shape[1] for layer in architecture.reading("head"))
    return forward_macs(linear, read, tokens)


def _met(architecture: Architecture, left: Mapping[str, int]) -> int:
    """The weights of the blocks' linear layers that a token meets: all, but of experts only those that it is sent to.
    `left`: weight -> its parameters."""
    shared, of_experts = 0, dict[int, int]()
    experts: dict[int, set[int]] = {}
    for layer in architecture.layers:
        count, expert = left.get(layer.weight, 0), expert_of(architecture.layout, layer.name)
        if expert is None:
            shared += count
        elif count:
            of_experts[layer.block] = of_experts.get(layer.block, 0) + count
            experts.setdefault(layer.block, set()).add(expert)
    return shared + sum(count * architecture.sent // len(experts[block]) for block, count in of_experts.items())


def forward_macs(linear_parameters: int, attention_width: int, tokens: int) -> int:
    """Multiply-accumulate operations of one sequence through linear layers of so many weights, output head included.

    Scores and weighted values take `tokens`^2 for each number that attention puts out, `attention_width`
    of them in all blocks.
    """
    return tokens * linear_parameters + 2 * tokens * tokens * attention_width

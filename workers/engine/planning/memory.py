"""Memory of a process as plans count it, needed and mapped, and sizes that predictions share.

Import-light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from workers.engine.planning.mixture_counts import expert_width, sent_to

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Architecture
    from workers.engine.sources.resolve import ModelSource

PROCESS_BYTES = 420 * 2**20
"""Python with torch and transformers imported."""
TOKENIZER_BYTES = 80 * 2**20
COMPUTE_BYTES = {"float32": 4, "bfloat16": 2}
PASSING_BYTES = 4
"""Per number of a forward pass, whatever the model computes in: bfloat16 took as much as float32."""
_STORED = {"float32": "F32", "bfloat16": "BF16"}
_STACKING = 1.5
"""Of a block's experts in the type computed in: copies of them while they are put into one tensor, beside that. 1.0 by
us and 1.3 by transformers were measured."""


class Memory(NamedTuple):
    """Of one process at one time, bytes. What decides whether a job fits is `needed`, wherever that is asked."""

    needed: int
    """Bytes that must be resident."""
    mapped: int = 0
    """Pages of mapped weight files beside it, as many as there is room for: they are clean, so the system takes them
    back before a limit is reached."""

    @property
    def resident(self) -> int:
        """With all that is mapped."""
        return self.needed + self.mapped

    def within(self, budget: int | None) -> Memory:
        """With no more mapped than a budget leaves room for."""
        return self if budget is None else Memory(self.needed, max(0, min(self.mapped, budget - self.needed)))

    def and_then(self, other: Memory) -> Memory:
        """The most of two times, of all of it and of what is needed."""
        needed = max(self.needed, other.needed)
        return Memory(needed, max(self.resident, other.resident) - needed)


def loaded_result(source: ModelSource, architecture: Architecture, dtype: str, *, beside: int = 0) -> Memory:
    """The process with a result as transformers loads it, in a compute type, and so many bytes beside it.

    Its files are mapped. Tensors that ship in that type are the mapped pages themselves and no copies, which the
    model computes with, so they are needed; others are copied.
    """
    files = source.tensor_bytes
    copied = architecture.has_experts or any(facts.dtype != _STORED[dtype] for facts in source.tensors.values())
    weights = source.parameters * COMPUTE_BYTES[dtype]
    return Memory(PROCESS_BYTES + TOKENIZER_BYTES + weights + beside, files if copied else 0)


def stacking_bytes(architecture: Architecture, of_each: int) -> int:
    """Bytes that loading a model whole takes beside it, with so many for each weight: of a mixture, its largest block's
    experts."""
    return int(_STACKING * of_each * max(architecture.expert_parameters))


def token_numbers(architecture: Architecture) -> int:
    """Numbers that a block's forward pass holds per token: of a mixture, for each expert that it is sent to."""
    plain = 6 * max(outputs for outputs, _ in architecture.shapes) + 12 * architecture.hidden_size
    if not architecture.has_experts:
        return plain
    return plain + sent_to(architecture) * (4 * expert_width(architecture) + 2 * architecture.hidden_size)


def looked_at_bytes(architecture: Architecture) -> int:
    """Bytes of a forward pass for each token, where its loss is all that is kept: its logits, or what a block computes
    of it."""
    return max(architecture.vocabulary * 4 * 3, PASSING_BYTES * token_numbers(architecture))

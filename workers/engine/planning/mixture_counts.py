"""Counts of a mixture of experts that predictions share: what a token meets of it. Import-light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.architectures.mixtures import mixtures

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Architecture
    from workers.engine.sources.resolve import ModelSource


def sent_to(architecture: Architecture) -> int:
    """Experts of a mixture that compute on a token."""
    if any(part.reads_all for part in architecture.layout.mlps):
        return most_experts(architecture)
    return architecture.sent


def expert_width(architecture: Architecture) -> int:
    return max(layer.shape[1] for layer in architecture.layers if layer.reads == "expert_channel")


def active(source: ModelSource, architecture: Architecture) -> int:
    """Parameters that a token meets, with embedding and head."""
    return source.parameters - architecture.prunable_parameters + met(architecture, sent_to(architecture))


def met(architecture: Architecture, sent: int) -> int:
    """The weights of the blocks' linear layers that a token meets where it is sent to so many experts."""
    if not architecture.has_experts:
        return architecture.prunable_parameters
    facts = mixtures(architecture)
    sizes = {mixture.block: architecture.expert_parameters[mixture.block] for mixture in facts}
    of_sent = sum(sizes[mixture.block] * min(sent, mixture.experts) // mixture.experts for mixture in facts)
    return architecture.prunable_parameters - sum(sizes.values()) + of_sent


def most_experts(architecture: Architecture) -> int:
    """Experts of the block that has most; 0 without any."""
    return max((facts.experts for facts in mixtures(architecture)), default=0)

"""DLP: prunes the blocks more whose Wanda scores are higher on average (Chen et al. 2025, arXiv:2505.23807).

O = output features, I = input features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.maths.spreading import by_block, in_unit_range, parameters, shifted_blocks
from workers.engine.registry import allocator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.engine.contracts.facts import AllocationFacts, DenseBlock


class DlpParams(MethodParams):
    """Sparsity grows with the mean Wanda score of a block."""

    unmeasured: ClassVar[frozenset[str]] = frozenset({"spread"})

    method: Literal["dlp"] = Field("dlp", description="Sparsity by each block's mean score; needs calibration data.")
    spread: float = Field(
        0.15, ge=0, le=0.5, description="Half the distance between the least and the most pruned block (its alpha)."
    )


def measure(block: DenseBlock, params: DlpParams) -> Mapping[str, float]:
    """Mean of all scores |W| * rms(input) of the block, >= 0; the same for each layer.

    The mean of the released code; the paper writes of the median.
    """
    total = 0.0
    for layer in block.layers:
        total += float(block.stats[layer.stream].weighted(block.weights[layer.name]).mean()) * layer.parameters
    mean = total / parameters(block.layers)
    return dict.fromkeys((layer.name for layer in block.layers), mean)


@allocator(DlpParams, paper="arXiv:2505.23807", needs=Stat.INPUT_SQ_MEAN, measure=measure)
def allocate(facts: AllocationFacts, sparsity: float, params: DlpParams) -> Mapping[str, float]:
    """Sparsity of each block, linear in its mean score: the most pruned gets 2 * spread more than the least.

    The paper's importance is one less the block's share of all mean scores, scaled to the same range: linear in the
    score, so the share drops out. Departures: the mean is weighted by parameters, and what would leave [0, 0.99] is
    spread over the other blocks.
    """
    blocks = by_block(facts.layers)
    standing = in_unit_range([facts.metrics[block[0].name] for block in blocks])
    return shifted_blocks(blocks, [2 * params.spread * z for z in standing], sparsity)

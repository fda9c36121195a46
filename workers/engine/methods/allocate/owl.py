"""OWL: prunes less where more of a block's scores are outliers (Yin et al. 2023, arXiv:2310.05175).

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

    from torch import Tensor

    from workers.engine.architectures.architecture import LinearFacts
    from workers.engine.contracts.facts import AllocationFacts, DenseBlock


class OwlParams(MethodParams):
    """Sparsity falls with the share of a block's Wanda scores that stand out."""

    unmeasured: ClassVar[frozenset[str]] = frozenset({"spread"})

    method: Literal["owl"] = Field("owl", description="Sparsity by each block's outlier ratio; needs calibration data.")
    outlier_multiple: float = Field(
        5.0, ge=1, le=1000, description="A score above this many times the block's mean is an outlier (the paper's M)."
    )
    spread: float = Field(
        0.08, ge=0, le=0.5, description="Half the distance between the least and the most pruned block (its lambda)."
    )


def measure(block: DenseBlock, params: OwlParams) -> Mapping[str, float]:
    """Percent of outliers among all scores |W| * rms(input) of the block, in [0, 100]; the same for each layer.

    The scores are computed twice, for the mean and for the count: to keep them would take as much memory as the block.
    """

    def score(layer: LinearFacts) -> Tensor:
        return block.stats[layer.stream].weighted(block.weights[layer.name])

    entries = parameters(block.layers)
    mean = sum(float(score(layer).mean()) * layer.parameters for layer in block.layers) / entries
    outliers = sum(int((score(layer) > params.outlier_multiple * mean).sum()) for layer in block.layers)
    return dict.fromkeys((layer.name for layer in block.layers), 100 * outliers / entries)


@allocator(OwlParams, paper="arXiv:2310.05175", needs=Stat.INPUT_SQ_MEAN, measure=measure)
def allocate(facts: AllocationFacts, sparsity: float, params: OwlParams) -> Mapping[str, float]:
    """Sparsity of each block, linear in its outlier ratio: the most pruned gets 2 * spread more than the least.

    As the released code; the paper states the range [sparsity - spread, sparsity + spread], which holds only where the
    ratios lie evenly about their mean. Departures: the mean is weighted by parameters, and what would leave [0, 0.99]
    is spread over the other blocks.
    """
    blocks = by_block(facts.layers)
    standing = in_unit_range([facts.metrics[block[0].name] for block in blocks])
    return shifted_blocks(blocks, [-2 * params.spread * z for z in standing], sparsity)

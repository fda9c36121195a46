"""NAEE: keeps the experts of each block with which what its mixture gives changes least.

Lu et al. 2024 (Not All Experts are Equal, arXiv:2402.14800, section 3.2). Every set of experts is tried, with the
block's own router on the experts that are left; where there are too many sets, experts go one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.registry import unit_scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import DenseUnits


class NaeeParams(MethodParams):
    """The set of experts without which the outputs change least."""

    method: Literal["naee"] = Field("naee", description="The experts whose loss changes a block's outputs least.")
    order: Literal["layerwise", "progressive"] = Field(
        "layerwise",
        description="`layerwise` looks at each block as it is in the dense model; `progressive` behind the blocks that "
        "have lost their experts already, and compares with the dense outputs.",
    )

    @property
    def waives(self) -> Stat:
        return Stat.NONE if self.order == "progressive" else Stat.PRUNED_INPUTS


def measure(block: DenseUnits, params: NaeeParams) -> Mapping[str, Tensor]:
    """`expert` -> 0 for those that go, else 1; `loss` -> the change of the block's outputs without them."""
    import torch

    from workers.engine.maths.experts import least_missed

    if (experts := block.experts) is None:
        return {}
    count = len(experts.tokens_E)
    gone, loss = least_missed(count, experts.dropped, experts.losses)
    if experts.go_on_without is not None:
        experts.go_on_without(gone)
    kept_E = torch.ones(count, dtype=torch.float64)
    kept_E[gone] = 0
    return {"expert": kept_E, "loss": torch.tensor(loss, dtype=torch.float64)}


@unit_scorer(
    NaeeParams,
    paper="arXiv:2402.14800",
    units=("expert",),
    needs=Stat.ROUTING | Stat.EXPERT_SETS | Stat.PRUNED_INPUTS,
    measure=measure,
)
def score(measured: Sequence[Mapping[str, Tensor]], params: NaeeParams) -> list[Mapping[str, Tensor]]:
    """1 for the experts of the best set."""
    return [{"expert": block["expert"]} if block else {} for block in measured]

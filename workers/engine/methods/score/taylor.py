"""Taylor: importance of units by the change of the loss without them, to first or second order (LLM-Pruner).

Ma et al. 2023, arXiv:2305.11627, section 3.2. Query heads count towards the key/value head they share; the released
code adds theirs to others where heads are grouped. Biases are left out, as there.
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


class TaylorParams(MethodParams):
    """How much the loss depends on a unit, by gradients on the calibration text."""

    method: Literal["taylor"] = Field("taylor", description="First or second order Taylor series of the loss.")
    order: Literal["first", "second", "mixed"] = Field(
        "first",
        description="`first`: |w g|; `second`: w^2 times the mean square of every window's gradient; `mixed`: both, "
        "the paper's equation 5. The last two take the gradients window by window.",
    )
    form: Literal["element", "vector"] = Field(
        "element", description="`element` adds up absolute values of weights; `vector` of whole rows and columns."
    )
    aggregate: Literal["sum", "mean", "max", "prod", "first", "last"] = Field(
        "sum",
        description="How the matrices of a unit are combined: `first` and `last` take that one alone. The first "
        "writes queries or the gate, the last reads the heads or channels; of a hidden dimension the attention output "
        "and the second matrix of the MLP; of a block its first and last matrix.",
    )

    @property
    def waives(self) -> Stat:
        if self.order == "first":
            return Stat.SQUARED_GRADIENT
        return Stat.GRADIENT if self.order == "second" else Stat.NONE


def measure(block: DenseUnits, params: TaylorParams) -> Mapping[str, Tensor]:
    """Unit kind -> importance [U]."""
    from workers.engine.maths.taylor import unit_importance, weight_importance

    found: dict[str, Tensor] = {}
    for family in block.families:
        names = [member.tensor for member in family.members]
        importances = {
            name: weight_importance(
                block.tensors[name],
                block.gradients[0].get(name) if block.gradients else None,
                block.squared_gradients[0].get(name) if block.squared_gradients else None,
                params.order,
            )
            for name in names
        }
        values_MUW = unit_importance(importances, family, params.form)
        values_UW = {
            "sum": lambda v: v.sum(dim=0),
            "mean": lambda v: v.mean(dim=0),
            "max": lambda v: v.amax(dim=0),
            "prod": lambda v: v.prod(dim=0),
            "first": lambda v: v[0],
            "last": lambda v: v[-1],
        }[params.aggregate](values_MUW)
        found[family.kind] = values_UW.sum(dim=1)
    return found


@unit_scorer(
    TaylorParams,
    paper="arXiv:2305.11627",
    units=("head", "channel", "hidden", "layer", "expert_channel"),
    needs=Stat.GRADIENT | Stat.SQUARED_GRADIENT,
    measure=measure,
)
def score(measured: Sequence[Mapping[str, Tensor]], params: TaylorParams) -> list[Mapping[str, Tensor]]:
    """The importance as measured: in units of the loss, comparable between blocks and kinds."""
    return list(measured)

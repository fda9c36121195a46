"""SAAP-style: element- and vector-wise importance fused without a coefficient, times their stability over the text.

After "Structurally-aware adaptive pruning" (arXiv:2412.15127), of which no code and only parts of the formulas are
public. From the paper: two importances as in LLM-Pruner, fused under homoscedastic uncertainty (Kendall et al. 2018,
arXiv:1705.07115); an indicator of how much importance fluctuates; a ranking over all modules, here allocate `ranking`.
Ours: the closed form of the fusion, the coefficient of variation over parts of the text as the indicator, that
importance is damped by it instead of being replaced, and the defaults, which are measured.
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

LEAST = 1e-12
"""Lower bound of a mean importance, for kinds whose importance is zero."""


class SaapParams(MethodParams):
    """Fused importance times a power of its stability."""

    method: Literal["saap"] = Field("saap", description="SAAP-style fused and steadied importance.")
    order: Literal["first", "second", "mixed"] = Field(
        "second",
        description="Taylor order of both importances. `mixed` is the paper's, first and second; `second`, the "
        "empirical Fisher matrix alone, was better here. Its terms have one sign: both importances are then equal.",
    )
    stability: float = Field(
        0.5,
        ge=0,
        le=10,
        description="Power of the stability 1 / (1 + fluctuation) that multiplies importance; 0 leaves it as it is.",
    )
    axis: Literal["inputs", "layers"] = Field(
        "inputs",
        description="What importance fluctuates over: `inputs`, parts of the calibration text, unit by unit; `layers`, "
        "from one block's mean to the next, the same for all units of a block.",
    )
    parts: int = Field(5, ge=2, le=32, description="Parts of the calibration text whose importances are compared.")
    scope: Literal["model", "block"] = Field(
        "model",
        description="Over which units of a kind the means of the two importances are taken: with `block` every block's "
        "units are worth 1 on average, plus the logarithm that the fusion adds.",
    )

    @property
    def splits(self) -> int:
        return self.parts if self.axis == "inputs" else 1

    @property
    def waives(self) -> Stat:
        if self.order == "first":
            return Stat.SQUARED_GRADIENT
        return Stat.GRADIENT if self.order == "second" else Stat.NONE


def measure(block: DenseUnits, params: SaapParams) -> Mapping[str, Tensor]:
    """`kind/form` -> importance by all windows [U], `kind/form/parts` -> by each part of them [P, U]."""
    import torch

    from workers.engine.maths.taylor import unit_importance, weight_importance

    def importances(part: int, name: str) -> Tensor:
        gradient = block.gradients[part][name] if block.gradients else None
        squared = block.squared_gradients[part][name] if block.squared_gradients else None
        return weight_importance(block.tensors[name], gradient, squared, params.order)

    found = {}
    for family in block.families:
        names = [member.tensor for member in family.members]
        parts = [{name: importances(part, name) for name in names} for part in range(params.splits)]
        # Importances are linear in gradients and their squares, and parts are of equal length but for one window.
        whole = {name: torch.stack([part[name] for part in parts]).mean(dim=0) for name in names}
        for form in ("vector", "element"):
            found[f"{family.kind}/{form}"] = unit_importance(whole, family, form).sum(dim=(0, 2))
            found[f"{family.kind}/{form}/parts"] = torch.stack(
                [unit_importance(part, family, form).sum(dim=(0, 2)) for part in parts]
            )
    return found


@unit_scorer(
    SaapParams,
    paper="arXiv:2412.15127",
    units=("head", "channel", "expert_channel"),
    needs=Stat.GRADIENT | Stat.SQUARED_GRADIENT,
    measure=measure,
)
def score(measured: Sequence[Mapping[str, Tensor]], params: SaapParams) -> list[Mapping[str, Tensor]]:
    """Importance >= 0; of each kind the mean over a scope is 1 before stability counts."""
    import torch

    scores: list[dict[str, Tensor]] = [{} for _ in measured]
    for kind in dict.fromkeys(name.partition("/")[0] for block in measured for name in block):
        own = [b for b, block in enumerate(measured) if f"{kind}/vector" in block]
        scopes = [own] if params.scope == "model" else [[b] for b in own]
        fused: dict[int, Tensor] = {}
        parts: dict[int, Tensor] = {}
        for blocks in scopes:
            # Minimising sum I_m / (2 s_m^2) + log s_m over both uncertainties gives s_m^2 = the mean of I_m.
            variances = {
                form: torch.cat([measured[b][f"{kind}/{form}"] for b in blocks]).mean().clamp(min=LEAST)
                for form in ("vector", "element")
            }
            offset = torch.stack(list(variances.values())).log().sum() / 2
            for b in blocks:
                fused[b] = sum(
                    (measured[b][f"{kind}/{form}"] / 2 / v for form, v in variances.items()), torch.zeros(())
                )
                parts[b] = sum(
                    (measured[b][f"{kind}/{form}/parts"] / 2 / v for form, v in variances.items()), torch.zeros(())
                )
                if params.scope == "block":
                    fused[b] = fused[b] + offset
        if params.scope == "block":  # the logarithm may be negative; only differences between blocks count
            least = torch.cat(list(fused.values())).min()
            fused = {b: values_U - least for b, values_U in fused.items()}
        fluctuations = _fluctuations(list(fused.values()), list(parts.values()), params)
        for b, fluctuation_U in zip(own, fluctuations, strict=True):
            scores[b][kind] = fused[b] * (1 + fluctuation_U) ** -params.stability
    return list(scores)


def _fluctuations(fused: list[Tensor], parts: list[Tensor], params: SaapParams) -> list[Tensor]:
    """Per block: relative variation >= 0 of its units' importance, [U] or []; infinite where that is always zero."""
    import torch

    if params.axis == "inputs":
        means = [values_PU.mean(dim=0) for values_PU in parts]
        least = torch.cat(means).median() * 1e-6
        return [
            # A unit whose importance is always 0 counts as unstable, so that it stays the lowest of its scope.
            torch.where(mean > 0, p.std(dim=0) / (mean + least).clamp(min=LEAST), torch.inf)
            for p, mean in zip(parts, means, strict=True)
        ]
    levels = torch.stack([values_U.mean() for values_U in fused])
    before = torch.cat([levels[1:2] if len(levels) > 1 else levels[:1], levels[:-1]])
    return list((levels - before).abs() / ((levels + before) / 2).clamp(min=LEAST))

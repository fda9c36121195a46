"""Merging experts: those that go are averaged into the ones that stay, instead of being dropped.

Li et al. 2024 (M-SMoE of Merge, Then Compress, arXiv:2310.01334): each joins the one whose router logits are most like
its own over the calibration tokens, by the cosine; the weights of a group are averaged in proportion to the tokens that
the dense model sends to each, after their channels are put in the order of the one that stays. The authors' model keeps
the router and sends the tokens of all experts of a group to one; checkpoints of transformers have as many experts as
the router has rows, so here the rows of experts that go are dropped.

E = experts, K = experts that a token is sent to, C = channels of an expert, N = weights of each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from workers.engine.architectures.mixtures import expert_of, renumbered
from workers.engine.contracts.facts import Merge
from workers.engine.errors import NumericalFailure
from workers.engine.maths.alignment import matched_channels
from workers.engine.maths.selection import finite
from workers.engine.model.experts import mixture_in
from workers.engine.model.walk import walk

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Layout, LinearFacts
    from workers.engine.model.calibration import Calibration
    from workers.engine.model.experts import Mixture, Routed
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.model.walk import At
    from workers.engine.store.run import Run

_KEPT = "merges"
"""Resume point."""


def planned_merges(model: LoadedModel, kept: Mapping[int, Sequence[int]], text: Calibration, run: Run) -> list[Merge]:
    """Which expert goes into which, by a pass of the text through the dense model. `kept`: block -> experts that
    stay. Raises NumericalFailure."""
    if (saved := run.checkpoint.load_json(_KEPT)) is not None:
        return [Merge(**merge) for merge in saved]
    found: list[Merge] = []

    def summed(at: At) -> _Routing | None:
        mixture = mixture_in(model, at.block, at.module)
        if mixture is None:
            at.advance()
            return None
        routing = _Routing(mixture, model.device)
        with mixture.watched(routing.add):
            at.run_all()  # the last block too, whose outputs nobody wants
        return routing

    with walk(model, text, run.checkpoint.scratch_file) as way:
        for block, _, routing in way.blocks(way.enter(), summed):
            if routing is not None:
                model.ranks.add(routing.tokens_E, routing.products_EE)
                if not finite(routing.products_EE):
                    raise NumericalFailure(
                        f"block {block}: the logits of its router are infinite or NaN in {model.dtype}",
                        "set /compute/dtype to float32; if it is, the model's weights are broken",
                        field="/compute/dtype",
                    )
                found += merges_of(block, kept[block], routing.tokens_E.cpu(), routing.products_EE.cpu())
    found = model.ranks.first(lambda: found)
    run.checkpoint.save_json(_KEPT, [asdict(merge) for merge in found])
    return found


class _Routing:
    """Running sums over the tokens of a block's mixture."""

    def __init__(self, mixture: Mixture, device: torch.device) -> None:
        self.tokens_E = torch.zeros(mixture.count, dtype=torch.float64, device=device)
        self.products_EE = torch.zeros(mixture.count, mixture.count, dtype=torch.float64, device=device)

    def add(self, routed: Routed) -> None:
        index = routed.index_TK.flatten()
        self.tokens_E.scatter_add_(0, index, torch.ones_like(index, dtype=torch.float64))
        logits_TE = routed.logits_TE.double()
        self.products_EE += logits_TE.T @ logits_TE


def merges_of(block: int, kept: Sequence[int], tokens_E: Tensor, products_EE: Tensor) -> list[Merge]:
    """The merges of a block, from the tokens of each expert and the products of their logits, float64. Of kept experts
    that are equally like one, the first gets it. Experts without tokens change nothing."""
    size_E = products_EE.diagonal().sqrt()
    cosine_EE = products_EE / (size_E[:, None] * size_E[None, :]).clamp(min=torch.finfo(torch.float64).tiny)
    going = [expert for expert in range(len(tokens_E)) if expert not in kept]
    into = {expert: max(kept, key=lambda stays: float(cosine_EE[expert, stays])) for expert in going}
    tokens = tokens_E.clone()
    for expert, stays in into.items():
        tokens[stays] += tokens_E[expert]
    return [
        Merge(block, expert, stays, float(tokens_E[expert] / tokens[stays].clamp(min=1)))
        for expert, stays in into.items()
    ]


def merged(
    layout: Layout,
    layers: Sequence[LinearFacts],
    tensors: Mapping[str, Tensor],
    merges: Sequence[Merge],
) -> dict[str, Tensor]:
    """The tensors of a block's experts that others go into, under their names, float32.

    `layers`, `tensors`: of the block; all its tensors. `merges`: those of the block.
    """
    of_expert: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if (expert := expert_of(layout, name)) is not None:
            of_expert[expert][renumbered(layout, name, 0)] = tensor
    axes = _channel_axes(layout, layers)
    found: dict[str, Tensor] = {}
    for stays in sorted({merge.into for merge in merges}):
        group = [merge for merge in merges if merge.into == stays and merge.weight > 0]
        mine = of_expert[stays]
        mean = {name: tensor.float() * (1 - sum(merge.weight for merge in group)) for name, tensor in mine.items()}
        for merge in group:
            other = of_expert[merge.expert]
            order_C = matched_channels(_by_channel(mine, axes), _by_channel(other, axes))
            for name, tensor in other.items():
                aligned = tensor if (axis := axes.get(name)) is None else tensor.index_select(axis, order_C)
                mean[name] += merge.weight * aligned.float()
        if group:
            found |= {renumbered(layout, name, stays): tensor for name, tensor in mean.items()}
    return found


def written_by(layout: Layout, names: Iterable[str], merges: Sequence[Merge]) -> list[str]:
    """Of the tensors of a model, those that `merged` makes anew."""
    into = {(merge.block, merge.into) for merge in merges if merge.weight > 0}
    return [name for name in names if ((layout.split(name) or (0, ""))[0], expert_of(layout, name)) in into]


def _channel_axes(layout: Layout, layers: Sequence[LinearFacts]) -> dict[str, int]:
    """Tensor of expert 0 -> its axis of channels, of those that have one."""
    axes: dict[str, int] = {}
    for layer in layers:
        if expert_of(layout, layer.name) == 0:
            if layer.reads == "hidden":
                axes |= {f"{layer.name}.{part}": 0 for part in ("weight", "bias")}
            else:
                axes[layer.weight] = 1
    return axes


def _by_channel(expert: Mapping[str, Tensor], axes: Mapping[str, int]) -> list[Tensor]:
    """The weights of an expert's channels, matrices [C, N]."""
    found = [expert[name].movedim(axis, 0) for name, axis in axes.items() if name in expert]
    return [tensor.unsqueeze(1) if tensor.ndim == 1 else tensor for tensor in found]

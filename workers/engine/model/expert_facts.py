"""Measurements of each block's mixture on a calibration text, for scores of experts: tokens, outputs, losses of sets.

N = windows, B = windows of a batch, T = tokens, E = experts, K = experts that a token is sent to, D = hidden size,
S = sets of experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from workers.engine.contracts.facts import ExpertFacts
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Stat
from workers.engine.errors import NumericalFailure
from workers.engine.maths.experts import products, squared_norms
from workers.engine.maths.selection import finite
from workers.engine.model.experts import mixture_in
from workers.engine.model.loaded import block_tensors
from workers.engine.model.walk import walk

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.calibration import Calibration
    from workers.engine.model.experts import Mixture, Routed
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.model.placement import NewFile, States
    from workers.engine.model.walk import At

WINDOWS = 8
"""Windows of a batch in NAEE's script, whose loss is the sum over batches of the norm of the change."""
Blocks = Iterator[tuple[int, ExpertFacts]]


class _Seen(Exception):
    """The mixture was read: what the block makes of it is of no interest."""


def expert_facts(
    model: LoadedModel, text: Calibration, new_file: NewFile, needs: Stat, dropped: Mapping[int, int]
) -> Blocks:
    """(block, its experts) of every block with a mixture, in the order of the forward pass. The functions of the facts
    may be called until the next are asked for. `dropped`: block -> how many of its experts are to go."""
    if Stat.PRUNED_INPUTS in needs:
        return _behind_pruned(model, text, new_file, dropped)
    return _of_dense(model, text, new_file, dropped)


def _of_dense(model: LoadedModel, text: Calibration, new_file: NewFile, dropped: Mapping[int, int]) -> Blocks:
    """Every block reads what it reads in the dense model."""
    blocks = model.architecture.blocks
    with walk(model, text, new_file) as way:
        inputs: States | None = way.enter()
        for block in range(blocks):
            inputs = needed(inputs, "outputs of a block that is not the last")
            with way.at(block, inputs, block_tensors(model, block), wanted=block < blocks - 1) as at:
                mixture = mixture_in(model, block, at.module)
                if mixture is None:
                    at.advance()
                else:
                    sums = _summed(at, mixture)
                    yield block, sums.facts(dropped[block], _losses(at, mixture))
            way.drop(inputs)
            inputs = at.outputs


def _behind_pruned(model: LoadedModel, text: Calibration, new_file: NewFile, dropped: Mapping[int, int]) -> Blocks:
    """Every block reads the outputs of those before it without the experts that the scorer gave up there; its own
    outputs are compared with those of the dense model. Two walks, side by side."""
    blocks = model.architecture.blocks
    with walk(model, text, new_file) as dense, walk(model, text, new_file) as pruned:
        inputs: States | None = dense.enter()
        left: States | None = pruned.enter()
        for block in range(blocks):
            inputs, left = needed(inputs, "inputs of a block"), needed(left, "inputs of a block")
            tensors, wanted = block_tensors(model, block), block < blocks - 1
            outputs = dense.states()
            with dense.at(block, inputs, tensors, wanted=wanted) as at:
                if mixture := mixture_in(model, block, at.module):
                    sums = _summed(at, mixture, outputs)
                else:
                    at.advance()
            with pruned.at(block, left, tensors, wanted=wanted) as own:
                if mixture is None:
                    own.advance()
                else:
                    gone: list[int] = []
                    losses = _losses(own, mixture, outputs)
                    yield block, sums.facts(dropped[block], losses, gone.extend)
                    with mixture.only([expert for expert in range(mixture.count) if expert not in gone]):
                        own.advance()
            dense.drop(outputs)
            dense.drop(inputs)
            pruned.drop(left)
            inputs, left = at.outputs, own.outputs


class _Sums:
    """Running sums over the tokens of a block's mixture."""

    def __init__(self, mixture: Mixture, device: torch.device) -> None:
        self._mixture = mixture
        self.tokens_E, self.weighted_norm_E, self.peak_E = torch.zeros(
            3, mixture.count, dtype=torch.float64, device=device
        )

    def add(self, routed: Routed) -> None:
        """Add a pass through the mixture."""
        for part, output_TKD in self._mixture.outputs(routed.hidden_TD, routed.index_TK):
            index_P = routed.index_TK[part].flatten()
            size_P = torch.linalg.vector_norm(output_TKD.float(), dim=2).flatten()
            weighted_P = size_P.double() * routed.weight_TK[part].flatten().double()
            self.tokens_E.scatter_add_(0, index_P, torch.ones_like(weighted_P))
            self.weighted_norm_E.scatter_add_(0, index_P, weighted_P)
            self.peak_E.scatter_reduce_(0, index_P, output_TKD.abs().amax(dim=2).flatten().double(), "amax")

    def facts(
        self,
        dropped: int,
        losses: Callable[[Sequence[Sequence[int]]], Sequence[float]],
        go_on_without: Callable[[Sequence[int]], None] | None = None,
    ) -> ExpertFacts:
        mean_E = self.weighted_norm_E / self.tokens_E.clamp(min=1)
        return ExpertFacts(dropped, self.tokens_E.cpu(), mean_E.cpu(), self.peak_E.cpu(), losses, go_on_without)


def _summed(at: At, mixture: Mixture, outputs: States | None = None) -> _Sums:
    """Let the windows pass through the block; `outputs` gets what the experts give."""
    sums = _Sums(mixture, at.model.device)
    for batch in at.batches:
        hidden_BTD = at.inputs.read(batch)

        def wrote(output_TD: Tensor, like_BTD: Tensor = hidden_BTD) -> None:
            if outputs is not None:
                outputs.append(output_TD.view_as(like_BTD))

        with mixture.watched(sums.add, wrote):
            output_BTD = at.run(hidden_BTD)
        if at.wanted:
            at.keep(output_BTD)
    ranks = at.model.ranks
    ranks.add(sums.tokens_E, sums.weighted_norm_E)
    sums.peak_E = torch.stack([peak_E.to(sums.peak_E.device) for peak_E in ranks.gather(sums.peak_E.cpu())]).amax(dim=0)
    if not finite(sums.weighted_norm_E):
        raise NumericalFailure(
            f"block {at.block}: the outputs of its experts are infinite or NaN in {at.model.dtype}",
            "set /compute/dtype to float32; if it is, the model's weights are broken",
            field="/compute/dtype",
        )
    return sums


def _losses(
    at: At, mixture: Mixture, outputs: States | None = None
) -> Callable[[Sequence[Sequence[int]]], list[float]]:
    """The losses of sets of experts that go: the sum over batches of WINDOWS windows of the (unsquared) norm of the
    change of what the experts give, against `outputs` or, if None, against what they give in the same pass."""

    def of(sets: Sequence[Sequence[int]]) -> list[float]:
        found: list[Tensor] = [torch.zeros(0, len(sets), dtype=torch.float64)]
        for batch in at.batches:
            hidden_BTD = at.inputs.read(batch)
            dense_TD = outputs.read(batch).flatten(0, 1) if outputs is not None else None

            def read(routed: Routed, windows: int = len(hidden_BTD), dense_TD: Tensor | None = dense_TD) -> None:
                found.append(squared_changes(mixture, routed, sets, windows, dense_TD).cpu())
                raise _Seen

            try:
                with mixture.watched(read):
                    at.run(hidden_BTD)
            except _Seen:
                pass
        squared_NS = torch.cat(at.model.ranks.gather(torch.cat(found)))
        return torch.stack([batch_NS.sum(dim=0).sqrt() for batch_NS in squared_NS.split(WINDOWS)]).sum(dim=0).tolist()

    return of


def squared_changes(
    mixture: Mixture, routed: Routed, sets: Sequence[Sequence[int]], windows: int, dense_TD: Tensor | None = None
) -> Tensor:
    """Squared norm of the change of each window's outputs without each set of experts, float64 [N, S].

    `dense_TD`: outputs that they are compared with; if None, those of the same pass.
    """
    kept = [[expert for expert in range(mixture.count) if expert not in gone] for gone in sets]
    weights = [mixture.weights_of(experts, routed.asked) for experts in kept]
    with_all_TE = mixture.weights(routed.index_TK, routed.weight_TK)
    found_TS = torch.zeros(len(with_all_TE), len(sets), dtype=torch.float64, device=with_all_TE.device)
    for part, output_TED in mixture.outputs(routed.hidden_TD, mixture.every(len(routed.hidden_TD))):
        if dense_TD is None:
            products_TEE = products(output_TED)
            changes = [of_set_TE[part] - with_all_TE[part] for of_set_TE in weights]
        else:  # one more beside the experts' outputs, with the weight -1
            products_TEE = products(torch.cat([output_TED, dense_TD[part].unsqueeze(1)], dim=1))
            changes = [pad(of_set_TE[part], (0, 1), value=-1.0) for of_set_TE in weights]
        for number, change_TE in enumerate(changes):
            found_TS[part, number] = squared_norms(products_TEE, change_TE)
    return found_TS.unflatten(0, (windows, -1)).sum(dim=1)

"""Train: decide what goes while the dense model is trained, and write the trained weights beside it.

The method never cuts: what comes out is a model of the dense shapes in a folder of its own, and the scores of its
units. From there the job goes on as after any score, with that model in the dense one's place. Every attempt writes the
folder anew, from the resume point and to the same bytes.

The model is divided over the ranks before the method prepares it, so that what the method keeps beside the weights is
never whole. At the end all ranks check what was trained, and the first one writes it, block by block.
"""

from __future__ import annotations

import math
import shutil
from typing import TYPE_CHECKING

import torch

from workers.engine.checks.tuned import tuned_traces
from workers.engine.contracts.facts import Allocation, Units
from workers.engine.contracts.needed import needed
from workers.engine.errors import PromiseBroken
from workers.engine.model.loaded import described, result_of
from workers.engine.planning.training_memory import trained_at_once
from workers.engine.ranks import Ranks
from workers.engine.registry import method_of
from workers.engine.removals.base import removal_of
from workers.engine.removals.without_units import sparsity_without, without_units
from workers.engine.report import TrainReport
from workers.engine.sources.resolve import INDEX
from workers.engine.training.loop import Loop, Setting
from workers.engine.training.prompted import prompt_ids, prompted
from workers.engine.training.results import make_ready, overwrite_trained, reported
from workers.engine.training.shards import Shards, part_by_part

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from workers.engine.contracts.training import Procedure, Target
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.run import Run
    from workers.engine.training.text import TuningText

_REMEDY = "this is a bug in the method; the numbers in this message are what to report"


def train(
    spec: CompressionSpec,
    dense: LoadedModel,
    allocation: Allocation | None,
    folder: Path,
    text: TuningText,
    run: Run,
    window_T: Tensor,
) -> tuple[LoadedModel, Units | None, Allocation, TrainReport]:
    """(the trained model, written to `folder`; the units that go, where units do; the sparsity of the layers that
    follows; what is reported). `allocation`: None where the training spreads the sparsity.

    All ranks of the job train, each on a part of the model, where the method `divides`; else the first trains alone.
    Raises NumericalFailure where a loss is not finite, ResultMismatch where the written weights compute something else
    than what was trained, PromiseBroken where the method decided on another number of units than it was to.
    """

    def trained(ranks: Ranks) -> tuple[Units | None, Allocation, TrainReport]:
        training = _Training(spec, dense, allocation, text, run, ranks)
        training.run()
        return training.written(folder, window_T)

    divides = needed(spec.train, "/train").divides
    units, spread, report = trained(dense.ranks) if divides else dense.ranks.first(lambda: trained(Ranks()))
    return result_of(dense, folder), units, spread, report


class _Training:
    def __init__(
        self,
        spec: CompressionSpec,
        dense: LoadedModel,
        allocation: Allocation | None,
        text: TuningText,
        run: Run,
        ranks: Ranks,
    ) -> None:
        """Prepare the model, divided over the ranks, and restore the last resume point, if there is one."""
        self.params, self.dense, self.allocation = needed(spec.train, "/train"), dense, allocation
        at_once = trained_at_once(spec, "train", dense.source, dense.architecture)
        shards = Shards(ranks, dense.device)
        self.setting = Setting("train", self.params, text, dense.device, dense.dtype, at_once, run, shards)
        sparsity = None if allocation is None else allocation.sparsity
        self.target = removal_of(spec).target(spec, dense.source, dense.architecture, sparsity)
        model = self._loaded(shards)
        found, before = self.setting.points.found(), math.nan
        if found is None:
            before = self.setting.weighed(self.setting.holdout_losses(model, "/model/id", "check the dense model"))
            shards.gather_anew(model)
        self._prepare(model)
        self.loop = Loop(self.setting, model, self.procedure, found, before, keeps_best=False)

    def run(self) -> None:
        """Train to the end, of which there is a resume point then."""
        self.loop.run(lambda: self.setting.shards.divided_dense(self.dense))
        self.loop.end()

    def written(self, folder: Path, window_T: Tensor) -> tuple[Units | None, Allocation, TrainReport]:
        """Check what was trained, on all ranks alike, and write it to `folder`."""
        dense, procedure, ranks = self.dense, self.procedure, self.setting.shards.ranks
        trained = procedure.finished()
        units = None if trained.scores is None else Units(self.target.families, trained.scores)
        merged_of, gone = trained.merged, set()
        if units is not None:
            _check(self.target, units)
            merged_of = without_units(merged_of, dense.architecture, units)
            gone = {f.block for f in units.families if f.is_block and units.of(f)[0] < 0}
        ranks.first(lambda: _copy(dense, folder))
        with procedure.evaluating(), part_by_part(self.model, dense.architecture, merged_of) as merged:
            difference = tuned_traces(self.model, merged, dense, folder, window_T, gone).difference
        with part_by_part(self.model, dense.architecture, merged_of) as merged:
            overwrite_trained(described(folder)[1], merged, self.setting)

        def made() -> tuple[Units | None, Allocation, TrainReport]:
            allocation = self.allocation
            if allocation is None:
                sparsity = sparsity_without(dense.architecture, needed(units, "the units' scores"))
                allocation = Allocation(self.target.share, sparsity, {})
            return units, allocation, self._report(difference)

        return ranks.first(made)

    def _report(self, difference: float) -> TrainReport:
        state = self.loop.state
        return TrainReport(
            method=self.params.method,
            steps=state.step,
            holdout_loss_before=state.holdout_loss_before,
            holdout_loss_after=state.curve[-1]["holdout_loss"],
            difference=difference,
            **reported(self.loop, self.procedure.parameters.values()),
        )

    def _loaded(self, shards: Shards) -> PreTrainedModel:
        dense = self.dense
        model = shards.loaded(dense.path, dense.device, torch.float32 if self.params.trains_all else dense.dtype)
        make_ready(model, self.setting)
        return model

    def _prepare(self, model: PreTrainedModel) -> None:
        params, architecture = self.params, self.dense.architecture
        torch.manual_seed(params.seed)
        self.model = model
        self.procedure: Procedure = method_of("train", params).function(model, architecture, self.target, params)
        if params.read_first:
            prompted(model, *prompt_ids(params, self.dense))


def _check(target: Target, units: Units) -> None:
    """Raise PromiseBroken unless as many units go as were to."""
    gone = {(f.block, f.kind): sum(score < 0 for score in units.of(f)) for f in target.families}
    going = target.going or {}
    if any(gone[f.block, f.kind] == f.units and (None, f.kind) not in going for f in target.families):
        raise PromiseBroken("a block would lose all of its units of a kind", _REMEDY, field="/train")
    for (block, kind), count in going.items():
        families = [family for family in target.families if family.kind == kind and block in (None, family.block)]
        of_each = [gone[family.block, kind] for family in families]
        alone = all(family.units == 1 for family in families)  # one in each block, or the same ones in all
        for decided in [sum(of_each)] if alone else of_each:
            if decided != count:
                where = "the model" if block is None else f"block {block}"
                raise PromiseBroken(
                    f"{where}: {count} {kind}s were to go, and the training decided on {decided}",
                    _REMEDY,
                    field="/train",
                )


def _copy(dense: LoadedModel, folder: Path) -> None:
    """Make `folder` a copy of the dense model's weights and config."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in {"config.json", *(piece.file.name for piece in dense.slices.values())}:
        shutil.copyfile(dense.path / name, folder / name)
    if (dense.path / INDEX).exists():
        shutil.copyfile(dense.path / INDEX, folder / INDEX)

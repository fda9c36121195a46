"""Train: decide what goes while the dense model is trained, and write the trained weights beside it.

The method never cuts: what comes out is a model of the dense shapes in a folder of its own, and the scores of its
units. From there the job goes on as after any score, with that model in the dense one's place. Every attempt writes the
folder anew, from the resume point and to the same bytes.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from workers.engine.checks.tuned import tuned_traces
from workers.engine.contracts.facts import Allocation, Units
from workers.engine.contracts.needed import needed
from workers.engine.errors import PromiseBroken
from workers.engine.model.loaded import described, load_model, result_of
from workers.engine.planning.predictions import trained_at_once
from workers.engine.ranks import Ranks
from workers.engine.registry import method_of
from workers.engine.removals.base import removal_of
from workers.engine.removals.without_units import sparsity_without, without_units
from workers.engine.report import TrainReport
from workers.engine.sources.resolve import INDEX
from workers.engine.training.loop import Loop, Setting
from workers.engine.training.prompted import prompt_ids, prompted
from workers.engine.training.results import make_ready, overwrite_trained, reported
from workers.engine.training.shards import Shards

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

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

    Raises NumericalFailure where a loss is not finite, ResultMismatch where the written weights compute something else
    than what was trained, PromiseBroken where the method decided on another number of units than it was to.
    """
    params, removal = needed(spec.train, "/train"), removal_of(spec)
    at_once = trained_at_once(spec, "train", dense.source, dense.architecture)
    shards = Shards(Ranks(), dense.device)  # the first rank trains alone
    setting = Setting("train", params, text, dense.device, dense.dtype, at_once, run, shards)
    sparsity = None if allocation is None else allocation.sparsity
    target = removal.target(spec, dense.source, dense.architecture, sparsity)
    dtype = torch.float32 if params.trains_all else dense.dtype
    model = load_model(dense.path, dense.device, dtype)
    found, before = setting.points.found(), math.nan
    if found is None:
        before = setting.weighed(setting.holdout_losses(model, "/model/id", "check the dense model"))
    torch.manual_seed(params.seed)
    procedure: Procedure = method_of("train", params).function(model, dense.architecture, target, params)
    if params.read_first:
        prompted(model, *prompt_ids(params, dense))
    make_ready(model, setting)
    loop = Loop(setting, model, procedure, found, before, keeps_best=False)
    loop.run(lambda: load_model(dense.path, dense.device, dense.dtype))
    loop.end()
    trained = procedure.finished()
    units = None if trained.scores is None else Units(target.families, trained.scores)
    if units is not None:
        _check(target, units)
        trained = replace(trained, merged=without_units(trained.merged, dense.architecture, units))
    _copy(dense, folder)
    with procedure.evaluating():
        gone = {f.block for f in units.families if f.is_block and units.of(f)[0] < 0} if units is not None else ()
        difference = tuned_traces(model, trained.merged, dense, folder, window_T, gone).difference
    overwrite_trained(described(folder)[1], trained.merged, setting)
    if allocation is None:
        sparsity = sparsity_without(dense.architecture, needed(units, "the units' scores"))
        allocation = Allocation(target.share, sparsity, {})
    report = TrainReport(
        method=params.method,
        steps=loop.state.step,
        holdout_loss_before=loop.state.holdout_loss_before,
        holdout_loss_after=loop.state.curve[-1]["holdout_loss"],
        difference=difference,
        **reported(loop, procedure.parameters.values()),
    )
    return result_of(dense, folder), units, allocation, report


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

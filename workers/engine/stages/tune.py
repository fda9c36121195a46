"""Tune: train the assembled model and write the result over the files it was read from.

The whole model is loaded from its folder, however it was pruned. Every attempt assembles that folder anew, from the
checkpoint and to the same bytes, so a resume point holds the training alone. The order of the windows and the dropout
of a step follow from the seed and the step, so a resumed run ends in the same bytes. Tensors that were not trained keep
theirs, and zeros that pruning left stay zeros. B = windows, T = tokens of one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from workers.engine.checks.tuned import TunedTraces, tuned_traces
from workers.engine.contracts.needed import needed
from workers.engine.contracts.training import Procedure
from workers.engine.model.loaded import described
from workers.engine.model.memory import give_back
from workers.engine.planning.training_memory import trained_at_once
from workers.engine.registry import method_of
from workers.engine.removals.base import removal_of
from workers.engine.report import TuneReport
from workers.engine.training.loop import Loop, Setting
from workers.engine.training.results import make_ready, overwrite_trained, reported
from workers.engine.training.shards import Shards, part_by_part
from workers.engine.training.trainable import has_tied_head, own_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from workers.engine.contracts.facts import Trainable
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.run import Run
    from workers.engine.training.text import TuningText


def tune(
    spec: CompressionSpec,
    dense: LoadedModel,
    folder: Path,
    text: TuningText,
    run: Run,
    window_T: Tensor,
    new: Sequence[int] = (),
) -> tuple[TuneReport, TunedTraces | None]:
    """Train the model in `folder`, and store the state with the lowest held-out loss in it. `dense`: the dense model;
    `new`: the blocks that were added to it, by their numbers in the result.

    Also returns the traces of that state on a window of token ids [T], on the first rank; None on others, which take
    part in the training. Raises NumericalFailure where a loss is not finite, InvalidSpec where the pruned model does
    not fit the method.
    """
    tuning = _Tuning(spec, dense, folder, text, run, new)
    tuning.train()
    traces = tuning.traces(window_T)
    tuning.write()
    return dense.ranks.first(tuning.report), traces if dense.ranks.leads else None


class _Tuning:
    def __init__(
        self,
        spec: CompressionSpec,
        dense: LoadedModel,
        folder: Path,
        text: TuningText,
        run: Run,
        new: Sequence[int],
    ) -> None:
        """Prepare the model, divide it over the ranks, and restore the last resume point, if there is one."""
        self.params, self.dense, self.folder = needed(spec.tune, "/tune"), dense, folder
        at_once = trained_at_once(spec, "tune", dense.source, dense.architecture)
        shards = Shards(dense.ranks, dense.device)
        self.setting = Setting("tune", self.params, text, dense.device, dense.dtype, at_once, run, shards)
        architecture, self.slices = described(folder)
        self.architecture = replace(architecture, new_blocks=frozenset(new))
        found, before = self.setting.points.found(), math.nan
        if not (shards.divided and self.params.block_by_block):
            model = self._loaded()
            if found is None:
                before = self._measured(spec, model)
            self.model, self.trainable = model, self._prepared(model)
        else:  # what a method puts into a block is divided with it: only once it is there can the model be
            unchanged = self.params.begins_unchanged
            if found is None and not unchanged:  # as it was, and then read once more
                before = self._measured(spec, self._loaded())
                give_back()
            self.model, self.trainable = self._prepared_in_parts()
            if found is None and unchanged:
                before = self._measured(spec, self.model)
        make_ready(self.model, self.setting)
        plain = _Plain(self.trainable)
        self.loop = Loop(self.setting, self.model, plain, found, before, keeps_best=True)

    def train(self) -> None:
        """Train, and take the state with the lowest held-out loss."""
        self.loop.run(lambda: self.setting.shards.divided_dense(self.dense), self.params.patience)
        self.loop.end()

    def traces(self, window_T: Tensor) -> TunedTraces:
        """Of the trained model and of its merged weights, on all ranks alike."""
        with self._merged() as merged:
            return tuned_traces(self.model, merged, self.dense, self.folder, window_T)

    def write(self) -> None:
        """Write trained tensors into the folder's files, each rounded once to its stored type."""
        with self._merged() as merged:
            overwrite_trained(self.slices, merged, self.setting)

    def report(self) -> TuneReport:
        params, state, loop = self.params, self.loop.state, self.loop
        return TuneReport(
            method=params.method,
            steps=state.step,
            stopped_early=state.stopped_early,
            best_step=state.best_step,
            holdout_loss_before=state.holdout_loss_before,
            holdout_loss_after=min(point["holdout_loss"] for point in state.curve),
            **reported(loop, self.trainable.parameters.values()),
        )

    def _merged(self) -> AbstractContextManager[Callable[[str, Tensor], Tensor]]:
        return part_by_part(self.model, self.architecture, self.trainable.merged)

    def _loaded(self) -> PreTrainedModel:
        """The model as it was pruned: parameters that are trained in float32, all others in the compute type."""
        params, dense, shards = self.params, self.dense, self.setting.shards
        if params.trains_all:
            return shards.loaded(self.folder, dense.device, torch.float32)
        some = any(params.trains_tensor(self.architecture, name, tied=False) for name in self.slices)
        model, parts = shards.in_parts(self.folder, dense.device, torch.float32 if some else dense.dtype)
        for block in parts:
            tied = has_tied_head(model, self.architecture)
            for name, parameter in own_parameters(model, self.architecture, block):
                parameter.requires_grad_(params.trains_tensor(self.architecture, name, tied=tied))
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dense.dtype)
        return model

    def _measured(self, spec: CompressionSpec, model: PreTrainedModel) -> float:
        """The held-out loss of the model as it was pruned."""
        losses = self.setting.holdout_losses(model, f"/{spec.editor.stage}", removal_of(spec).gentler)
        self.setting.shards.gather_anew(model)
        return self.setting.weighed(losses)

    def _prepared(self, model: PreTrainedModel, *blocks: Iterator[int]) -> Trainable:
        torch.manual_seed(self.params.seed)
        trainable: Trainable = method_of("tune", self.params).function(model, self.architecture, self.params, *blocks)
        return trainable

    def _prepared_in_parts(self) -> tuple[PreTrainedModel, Trainable]:
        """The model, each block of it prepared when it is read and then divided."""
        model, parts = self.setting.shards.in_parts(self.folder, self.dense.device, self.dense.dtype)
        model.requires_grad_(False)
        return model, self._prepared(model, (block for block in parts if block is not None))


class _Plain(Procedure):
    """Nothing but AdamW on the parameters of a tuner."""

    def __init__(self, trainable: Trainable) -> None:
        super().__init__()
        self.parameters, self.masks = trainable.parameters, trainable.masks

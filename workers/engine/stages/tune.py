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
from workers.engine.files.tensors import read_tensor
from workers.engine.model.loaded import described, load_model
from workers.engine.model.views import held
from workers.engine.planning.training_memory import trained_at_once
from workers.engine.registry import method_of
from workers.engine.removals.base import removal_of
from workers.engine.report import TuneReport
from workers.engine.training.loop import Loop, Setting
from workers.engine.training.results import make_ready, overwrite_trained, reported
from workers.engine.training.shards import Shards, whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn
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
    tuning.put_together()
    traces: list[TunedTraces] = []

    def write() -> TuneReport:
        traces.append(tuned_traces(tuning.model, tuning.trainable.merged, dense, folder, window_T))
        tuning.write()
        return tuning.report()

    report = dense.ranks.first(write)
    return report, traces[0] if traces else None


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
        # Tuners put modules of their own into a whole model, but for one that trains just what is there.
        at_first = shards.divided and self.params.trains_all
        self.model: PreTrainedModel = (
            shards.loaded(folder, dense.device, torch.float32)
            if at_first
            else load_model(folder, dense.device, dense.dtype)
        )
        found, before = self.setting.points.found(), math.nan
        if found is None:
            losses = self.setting.holdout_losses(self.model, f"/{spec.editor.stage}", removal_of(spec).gentler)
            before = self.setting.weighed(losses)
            shards.gather_anew(self.model)
        self.trainable = self._prepared()
        parameters = self.trainable.parameters
        if not at_first:
            parameters = shards.divided_parameters(self.model, self.architecture, parameters)
        plain = _Plain(parameters, self.trainable.masks)
        self.loop = Loop(self.setting, self.model, plain, found, before, keeps_best=True)

    def train(self) -> None:
        """Train, and take the state with the lowest held-out loss."""
        self.loop.run(lambda: self.setting.shards.divided_dense(self.dense), self.params.patience)
        self.loop.end()

    def put_together(self) -> None:
        """Where the model was divided, prepare it anew, whole, on the first rank, with what all have trained: one
        parameter after the other, so that they are not there twice."""
        if not self.setting.shards.divided:
            return
        parts, ranks = self.loop.let_go(), self.dense.ranks
        del self.model, self.trainable
        ranks.first(self._prepare_whole)
        for name, part in parts.items():
            all_of_it = whole(part.detach())
            if ranks.leads:
                self.trainable.parameters[name].data.copy_(all_of_it)

    def _prepare_whole(self) -> None:
        self.model = load_model(self.folder, self.dense.device, self.dense.dtype)
        self.trainable = self._prepared()
        self.model.eval()

    def write(self) -> None:
        """Write trained tensors into the folder's files, each rounded once to its stored type."""
        overwrite_trained(self.slices, self.trainable.merged, self.setting)

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

    def _prepared(self) -> Trainable:
        """The model, prepared by the method; trained parameters are float32, read from the stored values."""
        torch.manual_seed(self.params.seed)
        places = held(self.model, self.architecture)
        trainable: Trainable = method_of("tune", self.params).function(self.model, self.architecture, self.params)
        # The model's own were rounded to the compute type when it was loaded.
        rounded = {name: p for name, p in trainable.parameters.items() if p.dtype != torch.float32}
        for parameter in rounded.values():
            parameter.data = parameter.data.float()
        for name, at in places.items():
            if at.parameter in rounded and name in self.slices:
                at.write(rounded[at.parameter].data, read_tensor(self.slices[name]))
        make_ready(self.model, self.setting)
        return trainable


class _Plain(Procedure):
    """Nothing but AdamW on the parameters of a tuner."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.parameters, self.masks = parameters, masks

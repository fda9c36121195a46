"""Prune: what the allocation asks for goes, block by block, into the checkpoint. An `Edit` says what is written.

Each block is loaded, its inputs are looked at, its layers are scored and pruned, and the pruned block, rounded to the
type it will be stored in, makes the inputs of the next: what later layers are calibrated on is what they will see in
use. While a block is at work the next one's weights are read and the previous one is made durable.
O = outputs, I = inputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.engine.contracts.facts import LinearStats
from workers.engine.contracts.params import Stat
from workers.engine.model.activations import activations_of
from workers.engine.model.input_statistics import collect, staged
from workers.engine.model.loaded import LoadedModel, block_tensors, filled, outside_tensors, read_tensor, slices_of
from workers.engine.removals.base import removal_of
from workers.engine.removals.outcome import config_after
from workers.engine.removals.stored import as_stored
from workers.engine.report import LayerReport

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Kind, LinearFacts
    from workers.engine.contracts.facts import Allocation, Units
    from workers.engine.events import Events
    from workers.engine.model.activations import Activations, Hidden
    from workers.engine.model.calibration import Calibration
    from workers.engine.removals.base import Edit
    from workers.engine.removals.outcome import Outcome
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.store.clock import Clock


def prune(
    spec: CompressionSpec,
    model: LoadedModel,
    calibration: Calibration | None,
    units: Units | None,
    allocation: Allocation,
    *,
    checkpoint: Checkpoint,
    clock: Clock,
    events: Events,
) -> tuple[Outcome, int]:
    """The structure of the result, and how many of its blocks were found done.

    Raises NumericalFailure, and InvalidSpec or UnsupportedModel where the structure is not to be had.
    """
    edit = removal_of(spec).edit(spec, model, units, allocation.sparsity, clock)
    config_after(model.source.config, edit.outcome)  # refuses what no config can say, before the work
    if not checkpoint.outside().exists():
        checkpoint.save_outside(as_stored(spec, edit.outside(outside_tensors(model))))
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer, ExitStack() as files:
        walk = _Walk(spec, model, edit, checkpoint, clock, events, reader, writer, files)
        return edit.outcome, walk.blocks(calibration if spec.walk_needs is not Stat.NONE else None)


def layer_reports(
    spec: CompressionSpec, model: LoadedModel, allocation: Allocation, outcome: Outcome, folder: Path
) -> list[LayerReport]:
    """What became of every layer of the dense model, counted in the files of `folder`, the result.

    Raises PromiseBroken where that is not what the allocation asked for.
    """
    reports, slices, layout = [], slices_of(folder), model.architecture.layout
    for index, block in enumerate(outcome.blocks):
        for layer, projection in model.architecture.projections(block):
            piece = slices[layout.in_block(layer.weight, index)]
            weight_OI = read_tensor(piece)
            zeros = weight_OI.numel() - int(weight_OI.count_nonzero())
            removal_of(spec).check_layer(spec, layer, allocation.sparsity[layer.name], weight_OI, zeros)
            reports.append(_layer_report(layer, projection.reads, allocation, piece.facts.shape, zeros))
    for block in sorted({*range(model.architecture.blocks)} - {*outcome.blocks}):
        reports += [
            _layer_report(layer, projection.reads, allocation, (0, 0), 0)
            for layer, projection in model.architecture.projections(block)
        ]
    return sorted(reports, key=lambda report: report.block)


def _layer_report(
    layer: LinearFacts, reads: Kind, allocation: Allocation, shape: Sequence[int], zeros: int
) -> LayerReport:
    return LayerReport(
        name=layer.name,
        block=layer.block,
        reads=reads,
        shape=(shape[0], shape[1]),
        parameters=layer.parameters,
        zeros=zeros,
        target_sparsity=allocation.sparsity[layer.name],
        metric=allocation.metrics.get(layer.name),
        sparsity=1 - (math.prod(shape) - zeros) / layer.parameters,
    )


@dataclass
class _Walk:
    spec: CompressionSpec
    model: LoadedModel
    edit: Edit
    checkpoint: Checkpoint
    clock: Clock
    events: Events
    reader: ThreadPoolExecutor
    """Reads the next block's weights."""
    writer: ThreadPoolExecutor
    """Makes finished blocks durable."""
    files: ExitStack
    """Closes hidden states however the walk ends."""

    def blocks(self, calibration: Calibration | None) -> int:
        """Prune all that are still to do; returns the first of them, by its number in the result."""
        kept = self.edit.outcome.blocks
        start, activations, hidden = self._resume(calibration)
        if start:
            self.events.resume(start)
        self.events.progress(start, len(kept), "block")
        reading = self._read(start)
        durable: Future[None] | None = None
        for index, block in enumerate(kept[start:], start):
            dense, reading = reading.result(), self._read(index + 1)
            into = self._next_hidden(activations, index)
            stored = self._pruned(block, dense, activations, hidden, into)
            if durable is not None:
                durable.result()  # at most one block waits for the disk; an error there ends the walk
            if hidden is not None:
                hidden.file.close()
            durable = self.writer.submit(self._keep, index, stored, into)
            hidden = into
        if durable is not None:
            durable.result()
        return start

    def _resume(self, calibration: Calibration | None) -> tuple[int, Activations | None, Hidden | None]:
        """First block still to do, and the activations that enter it."""
        finished = self.checkpoint.finished_blocks()
        if calibration is None or finished == len(self.edit.outcome.blocks):
            return finished, None, None
        with self.clock.measure("calibrate"):
            activations = activations_of(self.model, calibration)
            if found := self.checkpoint.latest_hidden(finished):  # not behind a block that is missing or damaged
                start, file = found
                activations.embed(None)
                return start, activations, activations.hidden(self.files.enter_context(file))
            hidden = activations.hidden(self.files.enter_context(self.checkpoint.scratch_file()))
            activations.embed(hidden)
            return 0, activations, hidden

    def _read(self, index: int) -> Future[dict[str, Tensor]]:
        kept = self.edit.outcome.blocks
        if index >= len(kept):
            return Future()
        return self.reader.submit(block_tensors, self.model, kept[index])

    def _next_hidden(self, activations: Activations | None, index: int) -> Hidden | None:
        """Where this block's outputs go; the last one's are of no use."""
        if activations is None or index + 1 == len(self.edit.outcome.blocks):
            return None
        return activations.hidden(self.files.enter_context(self.checkpoint.new_hidden()))

    def _keep(self, index: int, stored: Mapping[str, Tensor], into: Hidden | None) -> None:
        layout = self.model.architecture.layout
        self.checkpoint.save_block(index, {layout.in_block(name, index): tensor for name, tensor in stored.items()})
        if into is not None:
            self.checkpoint.keep_hidden(index + 1, into.file)
        self.events.checkpoint(index)
        self.events.progress(index + 1, len(self.edit.outcome.blocks), "block")

    def _pruned(
        self,
        block: int,
        dense: Mapping[str, Tensor],
        activations: Activations | None,
        hidden: Hidden | None,
        into: Hidden | None,
    ) -> dict[str, Tensor]:
        """The block's tensors as they ship, its linear layers pruned; its outputs are written into `into`."""
        streams = self.model.architecture.streams(block)
        if activations is None or hidden is None:
            tensors = dict(dense)
            for layers in streams.values():
                tensors |= self.edit.prune_stream(layers, dense, LinearStats())
            return as_stored(self.spec, self.edit.finish_block(block, tensors))
        weights = {layer.weight for layers in streams.values() for layer in layers}
        stored = as_stored(self.spec, {name: tensor for name, tensor in dense.items() if name not in weights})
        layout = self.model.architecture.layout
        with filled(self.model, layout.block(block), dense) as module:
            for stream, stats in self._streams(activations, block, module, hidden, into):
                pruned = as_stored(self.spec, self.edit.prune_stream(streams[stream], dense, stats))
                for name, weight_OI in pruned.items():
                    module.get_parameter(layout.below(name)).data.copy_(weight_OI)
                stored |= pruned
            if into is not None and self.spec.refresh == "block":
                with self.clock.measure("calibrate"):
                    activations.advance(block, module, hidden, into)
        return as_stored(self.spec, self.edit.finish_block(block, stored))

    def _streams(
        self, activations: Activations, block: int, module: nn.Module, hidden: Hidden, into: Hidden | None
    ) -> Iterator[tuple[str, LinearStats]]:
        """Statistics of each stream, when it is the turn of the layers that read it."""
        needs = self.spec.walk_needs
        if self.spec.refresh == "block":
            with self.clock.measure("calibrate"):
                stats = collect(activations, block, module, hidden, needs)
            # Handed over one by one, and dropped when used: a Gram matrix can be as large as a layer.
            while stats:
                stream = next(iter(stats))
                yield stream, stats.pop(stream)
            return
        dense = copy.deepcopy(module) if Stat.DENSE_INPUTS in needs else None
        passes = staged(activations, block, module, dense, hidden, needs, into)
        while True:
            with self.clock.measure("calibrate"):
                found = next(passes, None)
            if found is None:
                return
            yield found

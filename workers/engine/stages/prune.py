"""Prune: edit the model as the allocation asks, block by block, and write the blocks into the checkpoint.

Each block is loaded, statistics of its inputs are collected, its layers are scored and pruned by an `Edit`, and the
pruned block, rounded to the type it will be stored in, makes the inputs of the next: later layers are calibrated on the
inputs that they will have in use. Meanwhile the next block's weights are read and the previous block is written.
O = outputs, I = inputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from workers.engine.architectures.canonical import in_files
from workers.engine.contracts.facts import LinearStats
from workers.engine.contracts.params import Stat
from workers.engine.files.tensors import read_tensor
from workers.engine.model.input_statistics import LEAST_TOKENS, collect, staged
from workers.engine.model.loaded import LoadedModel, outside_tensors, slices_of
from workers.engine.model.transfers import to_host
from workers.engine.model.walk import At, dense_blocks, walk
from workers.engine.removals.base import removal_of
from workers.engine.removals.outcome import config_after
from workers.engine.removals.stored import as_stored
from workers.engine.report import LayerReport, Reads

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from workers.engine.architectures.architecture import LinearFacts
    from workers.engine.contracts.facts import Allocation, Units
    from workers.engine.model.calibration import Calibration
    from workers.engine.model.placement import States
    from workers.engine.model.transfers import Arrival
    from workers.engine.model.walk import Walk
    from workers.engine.removals.base import Edit
    from workers.engine.removals.outcome import Outcome
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.run import Run


_TOKENS = "expert-tokens"
"""Resume point: the calibration tokens that experts were pruned by."""


def prune(
    spec: CompressionSpec,
    model: LoadedModel,
    calibration: Calibration | None,
    units: Units | None,
    allocation: Allocation,
    run: Run,
) -> tuple[Outcome, int]:
    """(structure of the result, number of its blocks that resume points held already).

    Raises NumericalFailure, and InvalidSpec or UnsupportedModel where the structure is impossible.
    """
    edit = removal_of(spec).edit(spec, model, units, allocation.sparsity, run.clock)
    config_after(model.source.config, edit.outcome)  # refuses what no config can say, before the work
    pruning = _Pruning(spec, model, edit, run, expert_tokens(run))
    model.ranks.first(pruning.outside)
    if calibration is None or spec.walk_needs is Stat.NONE:
        return edit.outcome, model.ranks.first(pruning.unseen)  # as fast as the disk: nothing to share
    return edit.outcome, pruning.blocks(calibration)


def expert_tokens(run: Run) -> dict[str, int]:
    """Layer of an expert -> calibration tokens that it was pruned by."""
    return run.checkpoint.load_json(_TOKENS) or {}


def layer_reports(
    spec: CompressionSpec,
    model: LoadedModel,
    allocation: Allocation,
    outcome: Outcome,
    folder: Path,
    tokens: Mapping[str, int],
) -> list[LayerReport]:
    """Every layer of the dense model as it is in the result, counted in the files of `folder`. `tokens`: of
    `expert_tokens`.

    Raises PromiseBroken where that is not what the allocation asked for.
    """
    slices, removal = slices_of(folder), removal_of(spec)

    def report(layer: LinearFacts) -> LayerReport:
        if (name := outcome.renamed(layer.weight)) is None:
            return _layer_report(layer, allocation, (0, 0), 0)
        weight_OI = read_tensor(slices[name])
        zeros = weight_OI.numel() - int(weight_OI.count_nonzero())
        removal.check_layer(spec, layer, allocation.sparsity[layer.name], weight_OI, zeros)
        found = _layer_report(layer, allocation, slices[name].facts.shape, zeros)
        return found.model_copy(update={"tokens": tokens.get(layer.name)})

    # Four layers take less memory than a block, four tensors that hold all experts of one take more.
    with ThreadPoolExecutor(1 if any(piece.whole for piece in slices.values()) else 4) as pool:
        return list(pool.map(report, model.architecture.layers))


def _layer_report(layer: LinearFacts, allocation: Allocation, shape: Sequence[int], zeros: int) -> LayerReport:
    return LayerReport(
        name=layer.name,
        block=layer.block,
        reads=layer.reads if layer.reads in get_args(Reads) else None,
        shape=(shape[0], shape[1]),
        parameters=layer.parameters,
        zeros=zeros,
        target_sparsity=allocation.sparsity[layer.name],
        metric=allocation.metrics.get(layer.name),
        sparsity=1 - (math.prod(shape) - zeros) / layer.parameters,
    )


@dataclass
class _Pruning:
    spec: CompressionSpec
    model: LoadedModel
    edit: Edit
    run: Run
    tokens: dict[str, int]
    """Layer of an expert -> calibration tokens that it was pruned by."""

    def outside(self) -> None:
        """Write what belongs to no block."""
        if not self.run.checkpoint.outside().exists():
            tensors = as_stored(self.spec.package.dtype, self.edit.outside(outside_tensors(self.model)))
            self.run.checkpoint.save_outside(to_host(tensors)())

    def unseen(self) -> int:
        """Prune all blocks that are still to do, without a text; returns the first, by its number in the result."""
        outcome, finished = self.edit.outcome, self.run.checkpoint.finished_blocks()
        if finished < len(outcome.blocks):
            self.edit.prepare(self.run)
        self._begin(finished)
        with self.run.checkpoint.adding_blocks(), ThreadPoolExecutor(1) as writer:
            keeper = _Keeper(self, writer, finished)
            read = dense_blocks(self.model, outcome.blocks[finished:], ahead=True)
            for index, (block, dense) in enumerate(read, finished):
                new = index in outcome.new
                tensors = self.edit.new_block(index, self.run) if new else self._unseen(block, dense)
                keeper.keep(self._closed(block, tensors), None)
            keeper.settle()
        return finished

    def blocks(self, calibration: Calibration) -> int:
        """The same on the way of a text."""
        kept, finished = self.edit.outcome.blocks, self.run.checkpoint.finished_blocks()
        if finished == len(kept):
            self._begin(finished)
            return finished
        with (
            walk(self.model, calibration, self.run.checkpoint.new_hidden) as way,
            self.run.checkpoint.adding_blocks(),
            ThreadPoolExecutor(1) as writer,
        ):
            with self.run.clock.measure("calibrate"):
                start, inputs = self._resume(way, finished)
            self._begin(start)
            keeper = _Keeper(self, writer, start)
            for block, outputs, stored in way.blocks(inputs, self._pruned, kept[start:], ahead=True):
                keeper.keep(self._closed(block, stored), outputs)
            keeper.settle()
        return start

    def _begin(self, start: int) -> None:
        if start:
            self.run.events.resume(start)
        self.run.events.progress(start, len(self.edit.outcome.blocks), "block")

    def _resume(self, way: Walk, finished: int) -> tuple[int, States]:
        """(first block still to do, its inputs)."""
        # Not beyond a block that is missing or damaged.
        if found := self.run.checkpoint.latest_hidden(finished):
            start, file = found
            return start, way.resume(file)
        return 0, way.enter()

    def _unseen(self, block: int, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The block's tensors, its linear layers pruned without statistics of their inputs."""
        tensors = dict(dense)
        for layers in self.model.architecture.streams(block).values():
            tensors |= self.edit.prune_stream(layers, dense, LinearStats())
        return tensors

    def _pruned(self, at: At) -> dict[str, Tensor]:
        """The block's tensors, its linear layers pruned; its outputs are those of the block so pruned."""
        streams = self.model.architecture.streams(at.block)
        weights = {layer.weight for layers in streams.values() for layer in layers}
        dtype = self.spec.package.dtype
        stored = as_stored(dtype, {name: tensor for name, tensor in at.dense.items() if name not in weights})
        at_once = self.spec.refresh == "block"  # no stream waits for what becomes of the one before
        ours = self._dealt([layer for layers in streams.values() for layer in layers]) if at_once else []
        waiting: list[LinearFacts] = []
        found: dict[str, Tensor] = {}
        for stream, stats in self._streams(at):
            layers = streams[stream]
            self._note_tokens(layers, stats)
            mine = [layer for layer in layers if layer in ours] if at_once else self._dealt(layers)
            found |= self.edit.prune_stream(mine, at.dense, stats) if mine else {}
            waiting += layers
            del stats
            if not at_once or self.model.ranks.count == 1:
                stored |= self._placed(at, waiting, found)
                waiting, found = [], {}
        stored |= self._placed(at, waiting, found)
        if at_once:
            with self.run.clock.measure("calibrate"):
                at.advance()
        self._keep_tokens(at.block)
        return stored

    def _note_tokens(self, layers: Sequence[LinearFacts], stats: LinearStats) -> None:
        """Of the layers of an expert: by how many tokens they are pruned."""
        if self.model.architecture.layout.of_experts(layers[0]) and self.edit.looks_at(layers):
            self.tokens |= {layer.name: stats.tokens for layer in layers}

    def _keep_tokens(self, block: int) -> None:
        """Keep them for the report, and say how many of a block's experts had too few."""
        streams = self.model.architecture.streams(block).values()
        read = (layers[0] for layers in streams if layers[0].reads != "hidden")  # one stream of each expert
        found = [self.tokens[layer.name] for layer in read if layer.name in self.tokens]
        if not found:
            return
        self.run.checkpoint.save_json(_TOKENS, self.tokens)
        if few := sum(tokens < LEAST_TOKENS for tokens in found):
            self.run.events.log(
                f"block {block}: {few} of its {len(found)} experts were sent fewer than {LEAST_TOKENS} tokens: "
                "their weights are judged by magnitude alone. More `samples`, or `all_experts`, help",
                "warning",
            )

    def _dealt(self, layers: Sequence[LinearFacts]) -> list[LinearFacts]:
        """Those that this rank solves. O outputs and I inputs cost I³ to decompose and O·I² to solve."""
        return self.model.ranks.dealt(layers, lambda layer: layer.shape[1] ** 2 * sum(layer.shape))

    def _placed(self, at: At, layers: Sequence[LinearFacts], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of these layers as they ship, of which this rank `found` some, put into the block."""
        if not layers:
            return {}
        new = {name: weight_OI for name, weight_OI in found.items() if weight_OI is not at.dense[name]}
        new = self.model.ranks.exchange(new, self.model.device)
        weights = {layer.weight: new.get(layer.weight, at.dense[layer.weight]) for layer in layers}
        pruned = as_stored(self.spec.package.dtype, weights)
        for name, weight_OI in pruned.items():
            view = at.view(name)
            view.copy_(weight_OI.view(view.shape))
        return pruned

    def _streams(self, at: At) -> Iterator[tuple[str, LinearStats]]:
        """(stream, its statistics), each right before the layers that read it are pruned; first those that the pruner
        does not look at."""
        needs, streams = self.spec.walk_needs, self.model.architecture.streams(at.block)
        seen = [stream for stream, layers in streams.items() if self.edit.looks_at(layers)]
        yield from ((stream, LinearStats()) for stream in streams if stream not in seen)
        if self.spec.refresh == "block":
            with self.run.clock.measure("calibrate"):
                stats = collect(at, needs, only=seen)
            # Yielded one by one and dropped after use: a Gram matrix can be as large as a layer.
            while stats:
                stream = next(iter(stats))
                yield stream, stats.pop(stream)
            return
        passes = staged(at, copy.deepcopy(at.module) if Stat.DENSE_INPUTS in needs else None, needs, only=seen)
        while True:
            with self.run.clock.measure("calibrate"):
                found = next(passes, None)
            if found is None:
                return
            yield found

    def _closed(self, block: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The block's tensors as they ship. The first rank writes them."""
        if not self.model.ranks.leads:
            return {}
        return as_stored(self.spec.package.dtype, self.edit.finish_block(block, tensors))


class _Keeper:
    """Writes finished blocks, under their numbers in the result, while the next one is computed."""

    def __init__(self, pruning: _Pruning, writer: ThreadPoolExecutor, start: int) -> None:
        self._pruning, self._writer, self._next = pruning, writer, start
        self._writing: Future[None] | None = None

    def keep(self, stored: Mapping[str, Tensor], outputs: States | None) -> None:
        self.settle()  # at most one block waits for the disk; an error there ends the walk
        if outputs is not None:
            outputs.share()
        self._writing = self._writer.submit(self._write, self._next, to_host(stored), outputs)
        self._next += 1

    def settle(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write(self, index: int, stored: Arrival, outputs: States | None) -> None:
        checkpoint, events = self._pruning.run.checkpoint, self._pruning.run.events
        layout = self._pruning.model.architecture.layout
        try:
            named = {layout.in_block(name, index): tensor for name, tensor in stored().items()}
            checkpoint.add_block(index, in_files(layout, self._pruning.model.architecture.sizes, named))
        except BaseException:
            if outputs is not None:
                outputs.close()
            raise
        checkpoint.offer_point(index + 1, outputs, lambda: events.checkpoint(index))
        events.progress(index + 1, len(self._pruning.edit.outcome.blocks), "block")

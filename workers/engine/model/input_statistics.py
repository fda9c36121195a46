"""Statistics: what the linear layers of a block read, summed over the calibration text, once per input stream.

`collect` runs a dense block once and gives the statistics of all its streams (the authors' scripts do this).
`staged` runs every batch once too, but holds all of them at each stream in turn, so that the layers which read it can
be pruned before anything reads their output: a better result for less work, and more activations in memory.
B = windows of a batch, T = tokens of a window, I = inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import greenlet
import torch

from workers.engine.contracts.facts import LinearStats
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import OF_NORMS, Stat
from workers.engine.errors import NumericalFailure, UnsupportedModel
from workers.engine.maths.selection import all_finite, finite
from workers.engine.model.expert_streams import by_expert

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Layout, LinearFacts
    from workers.engine.model.walk import At
    from workers.engine.ranks import Ranks

PANEL, GPU_PANEL = 256, 1024
"""Columns of a Gram matrix that are added to at once: wide enough for a fast product."""
LEAST_TOKENS = 32
"""Of an expert's statistics: with fewer, they say less of its inputs than nothing."""
Reader = Callable[[str, "Tensor"], None]
"""Called with a stream's name and its inputs [B, T, I], once per batch."""


class _Seen(Exception):
    """The last stream was read: what the block makes of it is of no interest."""


def collect(
    at: At, needs: Stat, *, advance: bool = False, only: Container[str] | None = None
) -> dict[str, LinearStats]:
    """Stream name -> statistics over all windows, in one pass through the (still dense) block. `only`: of these.

    `advance` lets the windows pass, where a stream is asked for; without it the pass stops at the last stream's inputs.
    Raises NumericalFailure on inputs that are not finite.
    """
    architecture = at.model.architecture
    layers, layout = architecture.block(at.block), architecture.layout
    watched = [layer for layer in layers if only is None or layer.stream in only]
    if not watched:
        return {}
    sums = {layer.stream: InputSums(needs, _least(layer, layout)) for layer in watched}
    seen: set[str] = set()
    windows = 0

    def read(stream: str, x_BTI: Tensor) -> None:
        if stream not in sums:
            return
        sums[stream].add(x_BTI, windows=windows)
        seen.add(stream)
        if not advance and len(seen) == len(sums):
            raise _Seen

    with _watched(at.module, layers, layout, read, every=at.walk.all_experts):
        for batch in at.batches:
            seen.clear()
            hidden_BTD = at.inputs.read(batch)
            windows = len(hidden_BTD)
            try:
                output_BTD = at.run(hidden_BTD)
            except _Seen:
                continue
            at.keep(output_BTD)
    return _finished(sums, at)


def staged(
    at: At, dense: nn.Module | None, needs: Stat, *, only: Container[str] | None = None
) -> Iterator[tuple[str, LinearStats]]:
    """Each stream, or each of those in `only`, with its statistics, in the order of the forward pass.

    The caller prunes the layers of the stream in the block before asking for the next one; the outputs are those of the
    block so pruned. `dense` is a twin of the block that stays as it is, for methods that compare with the inputs of a
    dense block. Raises NumericalFailure.
    """
    architecture = at.model.architecture
    layers, layout = architecture.block(at.block), architecture.layout
    streams = {layer.stream: _least(layer, layout) for layer in layers if only is None or layer.stream in only}
    count = len(at.walk.windows_NT)
    own = greenlet.getcurrent()

    def pause(stream: str, x_BTI: Tensor) -> None:
        if stream in streams:
            own.switch((stream, x_BTI))

    def paused(runs: nn.Module, batch: slice) -> greenlet.greenlet:
        return greenlet.greenlet(lambda: at.run(at.inputs.read(batch), runs))

    passes = [paused(at.module, batch) for batch in at.batches]
    twins = [paused(dense, batch) for batch in at.batches] if dense is not None else None
    every = at.walk.all_experts
    watched = _watched(at.module, layers, layout, pause, every=every)
    with watched, _watched(dense, layers, layout, pause, every=every):
        for number in range(len(streams)):
            stream, total = "", None
            for index, running in enumerate(passes):
                stream, x_BTI = running.switch()
                total = total or InputSums(needs, streams[stream])
                z_BTI = twins[index].switch()[1] if twins is not None and number else None
                # An expert of the dense block may be sent other tokens: then there is nothing to compare.
                windows = len(range(*at.batches[index].indices(count)))
                total.add(x_BTI, z_BTI if total.least == 1 else None, windows=windows)
            if number == 0 and twins is not None:
                for twin in twins:  # the first stream is the same in both: no need to look
                    twin.switch()
            if total is None:  # a text of fewer windows than ranks
                stream = list(streams)[number]
                total = InputSums(needs, streams[stream])
            yield stream, _finished({stream: total}, at)[stream]
        for running in passes:
            if at.wanted:
                at.keep(running.switch())
        # Stopped before a layer whose output is not needed.
        for running in [*passes, *(twins or ())]:
            running.throw()


_SUMS = ("squares_I", "sum_I", "magnitudes_I", "fourths_I", "gram_II", "dense_gram_II", "cross_gram_II")
"""Of `InputSums`: what is added over windows and ranks."""


class InputSums:
    """Running sums over the tokens of one stream."""

    def __init__(self, needs: Stat, least: int = 1) -> None:
        """`least`: with fewer tokens, nothing is known of the inputs."""
        self.needs, self.least = needs, least
        self.windows = self.tokens = 0
        self.squares_I: Tensor | None = None
        self.sum_I: Tensor | None = None
        self.magnitudes_I: Tensor | None = None
        self.fourths_I: Tensor | None = None
        self.largest_I: Tensor | None = None
        self.gram_II: Tensor | None = None
        self.dense_gram_II: Tensor | None = None
        self.cross_gram_II: Tensor | None = None

    def add(self, x_BTI: Tensor, z_BTI: Tensor | None = None, *, windows: int | None = None) -> None:
        """Add a batch of inputs, and what they are in the dense block where that differs. `windows`: of the batch, if
        not `B`: an expert's inputs, and those of OPT's MLP, are [N, I]."""
        self.windows += len(x_BTI) if windows is None else windows
        x_NI = x_BTI.flatten(0, -2)
        self.tokens += len(x_NI)
        if Stat.GRAM in self.needs:
            self.gram_II = _add_gram(self.gram_II, x_NI)
        if Stat.DENSE_INPUTS in self.needs and z_BTI is not None:
            z_NI = z_BTI.flatten(0, -2)
            self.dense_gram_II = _add_gram(self.dense_gram_II, z_NI)
            self.cross_gram_II = _add_product(self.cross_gram_II, z_NI, x_NI)
        if Stat.GRAM not in self.needs:  # else they are its diagonal
            squares_I = _squares(x_NI)
            self.squares_I = squares_I if self.squares_I is None else self.squares_I + squares_I
        if Stat.INPUT_MOMENTS in self.needs:
            sum_I = x_NI.float().sum(dim=0).double()
            self.sum_I = sum_I if self.sum_I is None else self.sum_I + sum_I
        if self.needs & OF_NORMS:
            self._add_norms(x_NI.float().abs())

    def _add_norms(self, magnitude_NI: Tensor) -> None:
        largest_I = magnitude_NI.amax(dim=0) if len(magnitude_NI) else magnitude_NI.new_zeros(magnitude_NI.shape[1])
        if Stat.INPUT_ABS_MAX in self.needs:
            self.largest_I = largest_I if self.largest_I is None else torch.maximum(self.largest_I, largest_I)
        if Stat.INPUT_ABS_MEAN in self.needs:
            sum_I = magnitude_NI.sum(dim=0).double()
            self.magnitudes_I = sum_I if self.magnitudes_I is None else self.magnitudes_I + sum_I
        if Stat.INPUT_FOURTH_MEAN in self.needs:  # of fractions of the largest: float32 holds no fourth power of 1e10
            shares_NI = magnitude_NI / largest_I.clamp_min(torch.finfo(torch.float32).tiny)
            fourths_I = shares_NI.square().square().sum(dim=0).double() * largest_I.double() ** 4
            self.fourths_I = fourths_I if self.fourths_I is None else self.fourths_I + fourths_I

    def merge(self, other: InputSums) -> None:
        """Add the sums over other windows of the same stream; they are used up."""
        self.windows += other.windows
        self.tokens += other.tokens
        for name in _SUMS:
            mine, others = getattr(self, name), getattr(other, name)
            if others is not None:
                setattr(self, name, others if mine is None else mine.add_(others))
        if other.largest_I is not None:
            mine = other.largest_I if self.largest_I is None else self.largest_I
            self.largest_I = torch.maximum(mine, other.largest_I)

    def add_ranks(self, ranks: Ranks) -> None:
        """Add the sums of the other ranks, each over its own windows of the same stream."""
        counts = ranks.gather((self.windows, self.tokens))
        self.windows, self.tokens = (sum(count) for count in zip(*counts, strict=True))
        ranks.add(*(tensor for name in _SUMS if (tensor := getattr(self, name)) is not None))
        if self.largest_I is not None:
            self.largest_I = torch.stack(ranks.gather(self.largest_I.cpu())).amax(dim=0).to(self.largest_I)

    def finish(self) -> LinearStats:
        """The means; the sums are used up. Of too few tokens: those of inputs that are alike and independent, where
        weights count by their magnitude."""
        if self.tokens < self.least:
            return self._unknown()
        gram_II = None if self.gram_II is None else _mirrored(self.gram_II).div_(self.tokens)
        sq_mean_I = gram_II.diagonal().double() if gram_II is not None else None
        if self.squares_I is not None:
            sq_mean_I = self.squares_I / self.tokens
        mean_I = None if self.sum_I is None else self.sum_I / self.tokens
        variance_I = None
        if mean_I is not None and sq_mean_I is not None:
            variance_I = (sq_mean_I - mean_I.square()).clamp(min=0).float()
        return LinearStats(
            tokens=self.tokens,
            window_tokens=max(1, self.tokens // self.windows),
            input_sq_mean_I=None if sq_mean_I is None else sq_mean_I.float(),
            input_mean_I=None if mean_I is None else mean_I.float(),
            input_variance_I=variance_I,
            input_abs_mean_I=None if self.magnitudes_I is None else (self.magnitudes_I / self.tokens).float(),
            input_fourth_root_I=None if self.fourths_I is None else (self.fourths_I / self.tokens).pow(0.25).float(),
            input_abs_max_I=self.largest_I,
            gram_II=gram_II,
            dense_gram_II=None if self.dense_gram_II is None else _mirrored(self.dense_gram_II).div_(self.tokens),
            cross_gram_II=None if self.cross_gram_II is None else self.cross_gram_II.div_(self.tokens),
        )

    def _unknown(self) -> LinearStats:
        some = next(x for x in (self.gram_II, self.squares_I) if x is not None)
        ones_I = some.new_ones(some.shape[-1], dtype=torch.float32)
        moments = Stat.INPUT_MOMENTS in self.needs
        return LinearStats(
            tokens=self.tokens,
            window_tokens=1,
            input_sq_mean_I=ones_I,
            input_mean_I=ones_I.new_zeros(len(ones_I)) if moments else None,
            input_variance_I=ones_I if moments else None,
            input_abs_mean_I=ones_I if Stat.INPUT_ABS_MEAN in self.needs else None,
            input_fourth_root_I=ones_I if Stat.INPUT_FOURTH_MEAN in self.needs else None,
            input_abs_max_I=ones_I if Stat.INPUT_ABS_MAX in self.needs else None,
            gram_II=torch.diag(ones_I) if self.gram_II is not None else None,
        )


def _add_gram(sum_II: Tensor | None, x_NI: Tensor) -> Tensor:
    """sum + xᵀx on and above the diagonal, some columns at a time: little more than half of the product's work."""
    inputs = x_NI.shape[1]
    if sum_II is None:
        sum_II = x_NI.new_zeros(inputs, inputs, dtype=torch.float32)
    x_NI, panel = _factor(x_NI), PANEL if x_NI.is_cpu else GPU_PANEL
    for begin in range(0, inputs, panel):
        end = min(begin + panel, inputs)
        _add_transposed_product(sum_II[:end, begin:end], x_NI[:, :end], x_NI[:, begin:end])
    return sum_II


def _add_product(sum_II: Tensor | None, a_NI: Tensor, b_NI: Tensor) -> Tensor:
    """sum + aᵀb."""
    if sum_II is None:
        sum_II = a_NI.new_zeros(a_NI.shape[1], b_NI.shape[1], dtype=torch.float32)
    _add_transposed_product(sum_II, _factor(a_NI), _factor(b_NI))
    return sum_II


def _factor(x_NI: Tensor) -> Tensor:
    """Inputs in the type they are multiplied in: as they are on a GPU, whose products of 16-bit numbers are exact."""
    return x_NI.float() if x_NI.is_cpu else x_NI


def _add_transposed_product(sum_AB: Tensor, a_NA: Tensor, b_NB: Tensor) -> None:
    """Add aᵀb, in place, float32."""
    if a_NA.dtype == torch.float32:
        sum_AB.addmm_(a_NA.T, b_NB)
    else:
        sum_AB.add_(torch.mm(a_NA.T, b_NB, out_dtype=torch.float32))


def _squares(x_NI: Tensor) -> Tensor:
    """Sum over tokens of x_i squared, float64 [I]. On a GPU in one pass through the inputs, without a copy of them."""
    if not x_NI.is_cpu:
        return torch.linalg.vector_norm(x_NI, dim=0, dtype=torch.float32).double().square()
    return x_NI.float().square().sum(dim=0).double()


def _mirrored(upper_II: Tensor) -> Tensor:
    """The symmetric matrix, in place, of which the upper panels are given."""
    inputs = upper_II.shape[0]
    for begin in range(0, inputs, PANEL):
        end = min(begin + PANEL, inputs)
        upper_II[begin:end, :begin] = upper_II[:begin, begin:end].T
    return upper_II


def _finished(sums: Mapping[str, InputSums], at: At) -> dict[str, LinearStats]:
    """The means, over the windows of all ranks. Looked at once for all streams, which is when the device is waited for.
    Raises NumericalFailure."""
    for total in sums.values():
        total.add_ranks(at.model.ranks)
    found = {stream: total.finish() for stream, total in sums.items()}
    if not all_finite(_sq_mean(stats) for stats in found.values()):
        stream = next(stream for stream, stats in found.items() if not finite(_sq_mean(stats)))
        raise NumericalFailure(
            f"block {at.block}: the {stream} of the linear layers is infinite or NaN in {at.model.dtype}",
            "set /compute/dtype to float32; if it is, the model's weights are broken",
            field="/compute/dtype",
        )
    return found


def _sq_mean(stats: LinearStats) -> Tensor:
    return needed(stats.input_sq_mean_I, "Stat.INPUT_SQ_MEAN")


@contextmanager
def _watched(
    module: nn.Module | None, layers: Sequence[LinearFacts], layout: Layout, read: Reader, *, every: bool
) -> Iterator[None]:
    """Call `read` at the layer of every stream that is computed first; the others must see the same tensor."""
    if module is None:
        yield
        return
    # The storage is not freed while its reader runs, so its address identifies it.
    seen: dict[tuple[int, str], tuple[int, set[str]]] = {}
    first: dict[str, LinearFacts] = {}
    for layer in layers:
        first.setdefault(layer.stream, layer)

    def watch(layer: LinearFacts) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            key = (id(greenlet.getcurrent()), layer.stream)
            if key not in seen or layer.name in seen[key][1]:  # the first of its stream, or of another pass
                seen[key] = args[0].data_ptr(), {layer.name}
                # Latents may have an axis of heads, of which there is one.
                read(layer.stream, args[0].flatten(1, -2) if args[0].dim() > 3 else args[0])
                return
            address, readers = seen[key]
            readers.add(layer.name)
            if address != args[0].data_ptr():
                raise UnsupportedModel(
                    f"{layer.name} does not read the same {layer.stream} as {first[layer.stream].name}",
                    "this model's blocks are wired in another way than their names say",
                    field="/model/id",
                )

        return hook

    hosts: set[str] = set()
    with ExitStack() as undo:
        for layer in layers:
            host = layout.below(layout.host(layer.name))
            if host in hosts:  # it computes several layers at once
                continue
            hosts.add(host)
            computes = module.get_submodule(host)
            if layout.of_experts(layer):
                undo.enter_context(by_expert(computes, read, every=every))
            else:
                undo.callback(computes.register_forward_pre_hook(watch(layer)).remove)
        yield


def _least(layer: LinearFacts, layout: Layout) -> int:
    """With fewer tokens than this, nothing is known of a layer's inputs."""
    return LEAST_TOKENS if layout.of_experts(layer) else 1

"""Calibrate: what the layers' inputs look like while the model reads text.

The windows enter block 0 as the model's own forward pass would feed it, and go from block to block by themselves.
N = windows, B = windows of a batch, T = tokens of a window, D = hidden size, I = inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from workers.engine.architectures.llama import BLOCKS, EMBEDDING
from workers.engine.data import ids_digest, load_tokens, random_windows
from workers.engine.errors import NumericalFailure, UnsupportedModel
from workers.engine.estimate import BATCH_TOKENS
from workers.engine.registry import Stat, method_of
from workers.engine.stages.load import LoadedModel, filled, tensors_of
from workers.engine.stats import LinearFacts, LinearStats

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.engine.sources import Sources
    from workers.engine.spec import CompressionSpec

CHARACTERS_PER_TOKEN = 16
"""Read this much text per token wanted: four times what English takes, so that random windows have a choice."""


@dataclass(frozen=True)
class Calibration:
    """The text a model is calibrated on."""

    windows_NT: Tensor
    """Token ids, int64."""
    label: str
    """Of the text they come from."""

    @property
    def digests(self) -> dict[str, str]:
        """`calibrate/<label>` -> `sha256:` digest of the windows."""
        return {f"calibrate/{self.label}": ids_digest(self.windows_NT)}

    def batches(self) -> Iterator[slice]:
        """Slices of windows that make one forward pass each."""
        count, length = self.windows_NT.shape
        step = max(1, BATCH_TOKENS // length)
        return (slice(start, min(start + step, count)) for start in range(0, count, step))


def calibration(spec: CompressionSpec, model: LoadedModel, sources: Sources) -> Calibration | None:
    """The windows of the spec, or None if its score looks at no activations. Raises what reading data raises."""
    if method_of("score", spec.score).needs is Stat.NONE:
        return None
    assert spec.calibrate is not None  # the spec's validator saw to it
    wanted = spec.calibrate.samples * spec.calibrate.sequence_length
    tokens = load_tokens(
        spec.calibrate, model.tokenizer, sources, "/calibrate", max_characters=wanted * CHARACTERS_PER_TOKEN
    )
    windows_NT = random_windows(
        tokens,
        spec.calibrate.sequence_length,
        count=spec.calibrate.samples,
        seed=spec.calibrate.seed,
        field="/calibrate",
    )
    return Calibration(windows_NT, spec.calibrate.label)


@dataclass(frozen=True)
class Call:
    """What the model hands to a block beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Captured(Exception):
    """The last block was reached: nothing after it is of interest."""


@dataclass
class Activations:
    """The hidden states between two blocks, and how the model calls its blocks."""

    model: LoadedModel
    batches: list[slice]
    hidden_NTD: Tensor
    """In the compute type, in host memory; a batch at a time goes to the device."""
    calls: dict[int, list[Call]] = field(repr=False)
    """Batch size -> call of each block. Windows have no padding, so nothing else about a batch matters."""

    def forward(self, block: int, module: nn.Module) -> Iterable[tuple[slice, Tensor]]:
        """Run `module` as block `block` over all windows, batch by batch: (windows, output [B, T, D])."""
        for batch in self.batches:
            hidden_BTD = self.hidden_NTD[batch].to(self.model.device)
            call = self.calls[len(hidden_BTD)][block]
            with torch.no_grad():
                output = module(hidden_BTD, *call.args, **call.kwargs)
            # A tensor in newer transformers, a tuple in older ones.
            yield batch, output[0] if isinstance(output, tuple) else output

    def advance(self, block: int, module: nn.Module) -> None:
        """Replace the hidden states by the block's outputs, in place."""
        for batch, output_BTD in self.forward(block, module):
            self.hidden_NTD[batch] = output_BTD.to("cpu")


def capture(model: LoadedModel, calibration: Calibration, hidden_NTD: Tensor | None = None) -> Activations:
    """Run the model up to its first block and note how it calls every block.

    With `hidden_NTD` (from a resume point) only the calls are noted.
    """
    batches = list(calibration.batches())
    count, length = calibration.windows_NT.shape
    calls: dict[int, list[Call]] = {}
    embed = hidden_NTD is None
    if hidden_NTD is None:
        hidden_NTD = torch.empty(count, length, model.architecture.hidden_size, dtype=model.dtype)
    with filled(model, EMBEDDING, tensors_of(model, EMBEDDING)):
        for batch in batches:
            ids_BT = calibration.windows_NT[batch]
            if embed or len(ids_BT) not in calls:
                first_BTD, calls[len(ids_BT)] = _capture_batch(model, ids_BT.to(model.device))
                if embed:
                    hidden_NTD[batch] = first_BTD.to("cpu")
    return Activations(model, batches, hidden_NTD, calls)


def _capture_batch(model: LoadedModel, ids_BT: Tensor) -> tuple[Tensor, list[Call]]:
    """Input of block 0, and every block's call, taken whole: what a block is given differs between families."""
    blocks = list(model.skeleton.get_submodule(BLOCKS).children())
    inputs: list[Tensor] = []
    calls: list[Call] = []

    def record(hidden_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        inputs.append(hidden_BTD)
        calls.append(Call(args, kwargs))
        if len(calls) == len(blocks):
            raise _Captured
        return hidden_BTD

    for block in blocks:
        # On the instance, so that attributes of the block which the model looks at stay where they are.
        block.forward = record
    try:
        with torch.no_grad():
            model.skeleton(input_ids=ids_BT, use_cache=False)
    except _Captured:
        pass
    finally:
        for block in blocks:
            del block.forward
    return inputs[0], calls


def collect(model: LoadedModel, activations: Activations, block: int, module: nn.Module) -> dict[str, LinearStats]:
    """Stream name -> statistics of its inputs over all windows, in one pass through the (still dense) block.

    Raises NumericalFailure on inputs that are not finite.
    """
    layers = model.architecture.block(block)
    sums: dict[str, Tensor] = {}
    with _input_square_sums(module, layers, sums):
        for _ in activations.forward(block, module):
            pass
    tokens = activations.hidden_NTD.shape[0] * activations.hidden_NTD.shape[1]
    stats = {}
    for stream, sum_I in sums.items():
        if not sum_I.isfinite().all():
            raise NumericalFailure(
                f"block {block}: the {stream} of the linear layers is infinite or NaN in {model.dtype}",
                "set /compute/dtype to float32; if it is, the model's weights are broken",
                field="/compute/dtype",
            )
        stats[stream] = LinearStats(tokens, (sum_I / tokens).float())
    return stats


@contextmanager
def _input_square_sums(module: nn.Module, layers: Sequence[LinearFacts], sums: dict[str, Tensor]) -> Iterator[None]:
    """Add up x² of every stream once, at the first of the layers that read it; the others must see the same tensor."""
    seen: dict[str, Tensor] = {}

    def watch(layer: LinearFacts) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x_BTI = args[0]
            previous = seen.get(layer.stream)
            if layer is first[layer.stream]:
                seen[layer.stream] = x_BTI
                total_I = x_BTI.float().square().sum(dim=(0, 1)).double()
                sums[layer.stream] = sums[layer.stream] + total_I if layer.stream in sums else total_I
            elif previous is None or previous.data_ptr() != x_BTI.data_ptr():
                raise UnsupportedModel(
                    f"{layer.name} does not read the same {layer.stream} as {first[layer.stream].name}",
                    "this model's blocks are wired in another way than their names say",
                    field="/model/id",
                )

        return hook

    first: dict[str, LinearFacts] = {}
    handles = []
    for layer in layers:
        first.setdefault(layer.stream, layer)
        linear = module.get_submodule(layer.name.removeprefix(f"{BLOCKS}.{layer.block}."))
        handles.append(linear.register_forward_pre_hook(watch(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

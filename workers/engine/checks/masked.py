"""The masked dense model: in the dense shapes, removed units zero or left out. The result must compute the same.

Made from the dense model's files and the decision of what is removed. Weights that a pruner wrote come from the
finished blocks. Nothing here depends on how tensors are cut or assembled, or on the result's config. I = inputs, D =
hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from workers.engine.architectures.built import sizes_of
from workers.engine.architectures.canonical import canonical_slices
from workers.engine.checks.trace import REMEDY, left_out
from workers.engine.contracts.needed import needed
from workers.engine.errors import ResultMismatch
from workers.engine.files.safetensors_bytes import read_header
from workers.engine.files.tensors import read_tensor
from workers.engine.model.experts import mixture_in
from workers.engine.model.loaded import as_head, in_float32
from workers.engine.removals.base import removal_of
from workers.engine.removals.outcome import config_after

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.engine.contracts.facts import Units
    from workers.engine.files.safetensors_bytes import Slice
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.removals.base import Mask
    from workers.engine.removals.outcome import Outcome
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint


@dataclass(frozen=True)
class MaskedModel:
    """The tensors of the masked dense model, and the hooks that leave out of its forward pass what is removed."""

    model: LoadedModel
    """The dense model, to be filled in float32."""
    stored: Mapping[str, Slice]
    """Tensors of the finished blocks, and of what is outside of them, by their names in the result."""
    outcome: Outcome
    """Structure of the result."""
    mask: Mask
    """Parts left out beside blocks."""
    unrounded: bool = False
    """Whether values that were only rounded by storing are those before rounding."""

    def tensors(self, module: str) -> dict[str, Tensor]:
        """Every tensor of a module of the dense model, float32, on the device. Raises ResultMismatch."""
        found = {name: self._tensor(name) for name in self.model.source.tensors if name.startswith(f"{module}.")}
        layout = self.model.architecture.layout
        if module == layout.head and layout.head_weight not in found:  # tied
            return {**found, **as_head(layout, self.tensors(layout.embedding))}
        return found

    def new_block(self, index: int) -> dict[str, Tensor]:
        """Every tensor of a block that the dense model does not have, under the names of the one that it is made like,
        float32, on the device."""
        layout, like = self.model.architecture.layout, self.outcome.blocks[index]
        mine = {name: piece for name, piece in self.stored.items() if name.startswith(f"{layout.block(index)}.")}
        return {layout.in_block(name, like): self._read(piece).float() for name, piece in mine.items()}

    @contextmanager
    def without_blocks(self) -> Iterator[None]:
        """The skeleton without the removed blocks, within the context."""
        gone = {*range(self.model.architecture.blocks)} - {*self.outcome.numbers}
        with left_out(self.model.skeleton, self.model.architecture.layout, gone):
            yield

    @contextmanager
    def without_dimensions(self) -> Iterator[None]:
        """The skeleton with zeros in the removed hidden dimensions, within the context."""
        with ExitStack() as undo:
            if self.mask.dimensions is not None:
                kept_D = torch.zeros(self.model.architecture.hidden_size, device=self.model.device)
                kept_D[self.mask.dimensions] = 1

                def hook(_: nn.Module, __: Any, output_BTD: Tensor) -> Tensor:
                    return output_BTD * kept_D

                architecture = self.model.architecture
                into_hidden = [layer.name for b in self.outcome.numbers for layer in architecture.writing("hidden", b)]
                for name in (architecture.layout.embedding, *into_hidden):
                    module = self.model.skeleton.get_submodule(architecture.layout.in_module(name))
                    undo.callback(module.register_forward_hook(hook).remove)
            yield

    @contextmanager
    def without_experts(self) -> Iterator[None]:
        """The skeleton that sends no tokens to removed experts, within the context."""
        with ExitStack() as undo:
            for block, kept in self.mask.experts.items():
                layout = self.model.architecture.layout
                module = self.model.skeleton.get_submodule(layout.in_module(layout.block(block)))
                undo.enter_context(needed(mixture_in(self.model, block, module), "a mixture").only(kept))
            yield

    @property
    def rounds(self) -> bool:
        """Whether storing may have rounded values that were only copied."""
        dense = {name: facts for name, facts in self.model.source.tensors.items() if self.outcome.renamed(name)}
        return bool(self.mask.dimensions) or any(
            self._piece(name).facts.dtype != facts.dtype for name, facts in dense.items()
        )

    def _tensor(self, name: str) -> Tensor:
        """Float32, on the device, zero in the inputs that were only cut."""
        whole = self._with_inputs(name)
        if (kept_I := self.mask.inputs.get(name)) is None:
            return whole
        index_I = torch.tensor(kept_I, device=whole.device)
        return torch.zeros_like(whole).index_copy_(1, index_I, whole[:, index_I])

    def _with_inputs(self, name: str) -> Tensor:
        """The same before that. Reads no more than it takes: the models are larger than what is computed of them."""
        kept_I = self.mask.written.get(name)
        written = name in self.mask.written
        if written and kept_I is None and not self.unrounded:
            return self._read(self._piece(name)).float()
        source = self._read(self.model.slices[name])
        if self.outcome.renamed(name) is None:
            return source.float()
        if self.unrounded and not written:
            return source.float()
        stored = self._read(self._piece(name))
        rounded = source.to(stored.dtype).float()
        if written:
            whole = stored.float()
            if kept_I is not None:
                index_I = torch.tensor(kept_I, device=whole.device)
                whole = torch.zeros_like(rounded).index_copy_(1, index_I, whole)
            return whole.where(whole != rounded, source.float()) if self.unrounded else whole
        return self._with_stored_gains(name, stored, source.float()) if self.mask.dimensions else rounded

    def _read(self, piece: Slice) -> Tensor:
        device = self.model.device
        return read_tensor(piece, pinned=device.type == "cuda").to(device, non_blocking=True)

    def _with_stored_gains(self, name: str, stored: Tensor, source: Tensor) -> Tensor:
        """Stored gains of norms, divided by the factor sqrt(D / K) of fewer dimensions.

        Only where they equal the source's up to rounding.
        """
        rounded = source.to(stored.dtype).float()
        path = self.model.architecture.layout.in_module(name.rpartition(".")[0])
        module = self.model.skeleton.get_submodule(path)
        kept_dimensions = needed(self.mask.dimensions, "hidden dimensions that stay")
        if "norm" not in type(module).__name__.lower() or stored.shape != (len(kept_dimensions),):
            return rounded
        kept = torch.tensor(kept_dimensions, device=source.device)
        gains = stored.float() / math.sqrt(len(source) / len(kept))
        tolerance = 2 * torch.finfo(stored.dtype).eps
        if not torch.allclose(gains, source[kept], rtol=tolerance, atol=0):
            return rounded
        return rounded.index_copy(0, kept, gains)

    def _piece(self, name: str) -> Slice:
        """Slice of the result that holds a tensor of the dense model. Raises ResultMismatch."""
        renamed = needed(self.outcome.renamed(name), f"{name} in the result")
        if renamed not in self.stored:
            raise ResultMismatch(f"the result has no tensor {renamed}", REMEDY)
        return self.stored[renamed]


def masked_model(
    spec: CompressionSpec, model: LoadedModel, outcome: Outcome, units: Units | None, checkpoint: Checkpoint
) -> MaskedModel:
    """The masked model of a result made of the finished blocks in `checkpoint`."""
    parts = [read_header(checkpoint.outside()), *(checkpoint.block(index) for index in range(len(outcome.blocks)))]
    sizes = sizes_of(config_after(model.source.config, outcome))
    stored = canonical_slices(outcome.layout, sizes, {name: piece for part in parts for name, piece in part.items()})
    mask = removal_of(spec).mask(spec, model, units, outcome)
    return MaskedModel(in_float32(model), stored, outcome, mask)

"""Check that the dense model's weights are finite, so that errors name the model and not the pruning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.engine.architectures.wrappers import of_towers
from workers.engine.errors import NumericalFailure
from workers.engine.files.tensors import read_tensor
from workers.engine.maths.selection import finite

if TYPE_CHECKING:
    from workers.engine.model.loaded import LoadedModel


@dataclass
class Dense:
    """Holds the dense model, once it is loaded."""

    model: LoadedModel | None = None


@contextmanager
def naming_broken_tensors() -> Iterator[Dense]:
    """Let a NumericalFailure name the dense model's tensor that is not finite, if there is one."""
    dense = Dense()
    try:
        yield dense
    except NumericalFailure as error:
        if dense.model is not None and (found := broken(dense.model, vectors=False)) is not None:
            raise found from error
        raise


def check_vectors(model: LoadedModel) -> None:
    """Raise NumericalFailure for norms and biases that are not finite: some kilobytes, checked before any work."""
    if (found := broken(model, vectors=True)) is not None:
        raise found


def broken(model: LoadedModel, *, vectors: bool) -> NumericalFailure | None:
    """The first tensor of the dense model, of vectors or of all, with values that are infinite or NaN, as a failure."""
    for name in sorted(model.slices):
        piece = model.slices[name]
        if vectors and len(piece.facts.shape) > 1:
            continue
        if name.startswith(of_towers(model.source.config)):  # which are not computed, and may hold bounds
            continue
        values = read_tensor(piece)
        if values.is_floating_point() and not finite(values):
            count = values.numel() - int(values.isfinite().sum())
            return NumericalFailure(
                f"{name}: {count:,} of its {values.numel():,} values are infinite or NaN in the dense model",
                "the model's files are broken, whatever is pruned: copy or download it again, or use another revision",
                field="/model/id",
            )
    return None

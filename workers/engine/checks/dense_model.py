"""Sound: whether the dense model's own weights are numbers, so that its faults are not laid on the pruning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.engine.errors import NumericalFailure
from workers.engine.files.tensors import read_tensor
from workers.engine.maths.selection import finite

if TYPE_CHECKING:
    from workers.engine.model.loaded import LoadedModel


@dataclass
class Suspect:
    """The dense model, once there is one."""

    model: LoadedModel | None = None


@contextmanager
def blaming() -> Iterator[Suspect]:
    """Where numbers fail and the dense model holds values that are none, say so in place of what showed it."""
    suspect = Suspect()
    try:
        yield suspect
    except NumericalFailure as error:
        if suspect.model is not None and (found := broken(suspect.model, vectors=False)) is not None:
            raise found from error
        raise


def check_vectors(model: LoadedModel) -> None:
    """Refuse norms and biases that are not numbers, some kilobytes, before any work. Raises NumericalFailure."""
    if (found := broken(model, vectors=True)) is not None:
        raise found


def broken(model: LoadedModel, *, vectors: bool) -> NumericalFailure | None:
    """The first tensor of the dense model, of vectors or of all, with values that are infinite or NaN, as a failure."""
    for name in sorted(model.slices):
        piece = model.slices[name]
        if vectors and len(piece.facts.shape) > 1:
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

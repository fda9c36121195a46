"""Canonical tensors of a model, found in what its files or transformers' modules hold. Import-light."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from workers.engine.architectures.fused import EACH
from workers.engine.errors import UnsupportedModel
from workers.engine.files.places import Place
from workers.engine.files.safetensors_bytes import Slice, TensorFacts

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Layout
    from workers.engine.architectures.fused import Fused, Sizes


def canonical_facts(
    layout: Layout, sizes: Sizes, stored: Mapping[str, TensorFacts], *, strict: bool = True
) -> Mapping[str, TensorFacts]:
    """Canonical name -> facts, of tensors as files hold them. Raises UnsupportedModel for one that is not made of its
    parts, unless not `strict`: then it stays as it is."""
    if not layout.stored:
        return stored
    shapes = {name: facts.shape for name, facts in stored.items()}
    return {
        name: stored[whole] if place is None else TensorFacts(stored[whole].dtype, place.shape(stored[whole].shape))
        for name, (whole, place) in canonical_places(layout, layout.stored, sizes, shapes, strict=strict).items()
    }


def canonical_slices(layout: Layout, sizes: Sizes, stored: Mapping[str, Slice]) -> Mapping[str, Slice]:
    """Canonical name -> where its bytes lie. Raises UnsupportedModel."""
    if not layout.stored:
        return stored
    shapes = {name: piece.facts.shape for name, piece in stored.items()}
    return {
        name: stored[whole] if place is None else stored[whole].part(place)
        for name, (whole, place) in canonical_places(layout, layout.stored, sizes, shapes).items()
    }


def canonical_places(
    layout: Layout, table: Sequence[Fused], sizes: Sizes, shapes: Mapping[str, Sequence[int]], *, strict: bool = True
) -> dict[str, tuple[str, Place | None]]:
    """Canonical name -> (the tensor that holds it, where; None where it is the whole). `shapes`: tensor name -> shape;
    `table`: what of a block is fused. Raises UnsupportedModel."""
    by_tensor = {row.tensor: row for row in table}
    ends = tuple(by_tensor)
    found: dict[str, tuple[str, Place | None]] = {}
    for name, shape in shapes.items():
        inside = layout.split(name) if name.endswith(ends) else None
        row = by_tensor.get(inside[1]) if inside is not None else None
        if row is None or inside is None:
            found[name] = name, None
            continue
        try:
            for part, place in row.places(shape, sizes):
                found[f"{layout.block(inside[0])}.{part}"] = name, place
        except (ValueError, KeyError) as error:
            if strict:
                raise UnsupportedModel(
                    f"{name}: {error}", "check that config.json belongs to the weights", field="/model/id"
                ) from error
            found[name] = name, None
    return found


def in_files(layout: Layout, sizes: Sizes, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as files hold them, of canonical ones: of whole blocks, or from outside of blocks."""
    return _joined(layout, layout.stored, sizes, tensors)


def in_modules(layout: Layout, sizes: Sizes, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same as transformers' modules hold them, under the names of their parameters."""
    joined = _joined(layout, layout.in_modules, sizes, tensors)
    return (
        {layout.in_module(name): tensor for name, tensor in joined.items()}
        if layout.renamed or layout.moved
        else joined
    )


def _joined(layout: Layout, table: Sequence[Fused], sizes: Sizes, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    left = dict(tensors)
    for row in table:
        for block in sorted({found[0] for name in tensors if (found := layout.split(name)) is not None}):
            below = f"{layout.block(block)}."
            parts = {name: left.pop(below + name) for name in _present(row, below, left)}
            if parts:
                left[below + row.tensor] = _whole(row, sizes, parts)
    return left


def _present(row: Fused, below: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """The canonical names below a block, of those given, that the tensor of a row holds: expert by expert."""
    if not row.stacked:
        return [part for part in row.parts if below + part in tensors]
    found = []
    for expert in _numbers(row.parts[0], below, tensors):
        found += [part.replace(EACH, str(expert)) for part in row.parts]
    return found


def _numbers(part: str, below: str, names: Iterable[str]) -> Iterator[int]:
    pattern = re.compile(re.escape(below + part).replace(re.escape(EACH), r"(\d+)"), re.ASCII)
    yield from sorted(int(found[1]) for name in names if (found := pattern.fullmatch(name)))


def _whole(row: Fused, sizes: Sizes, parts: Mapping[str, Tensor]) -> Tensor:
    """The tensor that holds these parts."""
    count = len(row.parts)
    each = list(parts.values())
    shapes = [tuple(part.shape) for part in each[:count]]
    outputs = sum(shape[0] for shape in shapes)
    inner = (outputs, *shapes[0][1:])
    inner = inner[::-1] if row.transposed else inner
    whole = each[0].new_empty((len(each) // count, *inner) if row.stacked else inner)
    widths = row.width_of(sizes) if row.repeats else [shape[0] for shape in shapes]
    for number, part in enumerate(each):
        expert, own = divmod(number, count)
        start = sum(widths[:own])
        Place(
            expert if row.stacked else None, row.transposed and part.dim() > 1, start, widths[own], sum(widths)
        ).write(whole, part)
    return whole

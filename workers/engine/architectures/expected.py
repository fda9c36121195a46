"""Tensors and shapes that transformers saves of a model, by its config; weights that do not fit are refused.

Import-light. Blocks of one model may be of several kinds: which kind a block is of is read off its tensors' names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.built import FLOATS, block_count, evaluate, is_set, known_family, ties_head
from workers.engine.architectures.fused import EACH
from workers.engine.architectures.wrappers import WHOLE
from workers.engine.errors import UnsupportedModel
from workers.engine.files.model_files import shown
from workers.engine.files.safetensors_bytes import TensorFacts

Sizes = tuple[int | None, ...]
"""A shape; None for an axis of which it is not known what it follows from."""
Axes = Mapping[str, Sequence[str | int | None] | None]
_OLD_BUFFERS = (r"rotary_emb\.inv_freq$",)
"""Tensors of old checkpoints that follow from the config."""
_HINT = "check that config.json belongs to the weights, and that the copy or download is complete"


def expected(config: Mapping[str, Any], names: Collection[str] = (), turned: Collection[str] = ()) -> dict[str, Sizes]:
    """Tensor name -> shape, of all tensors that transformers saves by a config that `check_config` has passed.

    `names`: those of the model's tensors, which show the kinds of its blocks where there are several. `turned`: those
    below a block that its files hold transposed to that.
    """
    return {name: _sizes(axes, config) for name, axes in axes_of(config, names, turned)}


def axes_of(
    config: Mapping[str, Any], names: Collection[str] = (), turned: Collection[str] = ()
) -> Iterator[tuple[str, Sequence[str | int | None]]]:
    """The same as expressions of config entries, one for each axis; None for one that follows from nothing known."""
    row = _described(config)
    prefix = row["blocks"]
    yield from ((name, axes) for name, axes in row["outside"].items() if axes is not None)
    inside = _below(prefix, names)
    for block in range(block_count(config) or 0):
        there = inside.get(block, ())
        for name, axes in _of_block(row, there):
            if name in turned:
                axes = [*axes[:-2], axes[-1], axes[-2]]
            for single in _numbered(name, row, config, len(there) + 1 if names else None):
                yield f"{prefix}.{block}.{single}", axes


def fits(shape: Sequence[int], wanted: Sizes) -> bool:
    """Whether a shape is one that is expected."""
    return len(shape) == len(wanted) and all(want in (None, size) for size, want in zip(shape, wanted, strict=True))


def check_tensors(layout: Layout, config: Mapping[str, Any], tensors: Mapping[str, TensorFacts]) -> None:
    """Refuse weights that do not fit their config: missing, of other shapes, surplus, not floats. UnsupportedModel."""
    model_type, wanted = config["model_type"], expected(config, tensors, layout.turned)
    row = known_family(model_type)
    for name, shape in wanted.items():
        facts = tensors.get(name)
        if facts is None and name == layout.head_weight:
            if ties_head(config):
                continue
            raise _misfit(
                model_type,
                f"the weights hold no `{name}`, and config.json does not tie the head to the embedding: a base model "
                "without its language-modelling head, or a config of another model",
            )
        if facts is None:
            raise _misfit(model_type, f"the weights lack `{name}`, {_said(shape)} by config.json")
        if not fits(facts.shape, shape):
            raise _misfit(
                model_type, f"`{name}` should be {_said(shape)} by config.json, and is {shown(list(facts.shape))}"
            )
        if facts.dtype not in FLOATS:
            raise _misfit(model_type, f"`{name}` is stored as {facts.dtype}, not as {', '.join(FLOATS)}")
    idle = re.compile("|".join([*_OLD_BUFFERS, *row["ignored"]]))
    for name in tensors:
        of_tower = WHOLE in config and not name.startswith(tuple(f"{part}." for part in (layout.blocks, layout.head)))
        if name not in wanted and not idle.search(name) and not of_tower:
            raise _surplus(model_type, name)


def names_below(row: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a tensor of a block of the family may have a name, below the block."""
    parts = [row["parts"], *(changes.get("parts", {}) for _, changes in row["switches"].values() if changes)]
    variants = [
        variant
        for part in parts
        for found in part.values()
        for variant in (found if isinstance(found, list) else found.get("each") or found["all"])
    ]
    names = {name for variant in variants for name in variant}
    return lambda below: _folded(below, row["counts"]) in names


def _described(config: Mapping[str, Any]) -> dict[str, Any]:
    """The family's row, with what its config's switches change."""
    row = dict(known_family(config["model_type"]))
    for switch, (usual, changes) in row["switches"].items():
        if is_set(config, switch) == usual or changes is None:  # null is false
            continue
        row |= {name: {**row[name], **changes[name]} for name in ("outside", "counts") if name in changes}
        if "kinds" in changes:
            row["kinds"] = _changed_kinds(known_family(config["model_type"])["kinds"], changes["kinds"], row["kinds"])
        parts = dict(row["parts"])
        for part, change in changes.get("parts", {}).items():
            before = parts.get(part, [{}] * len(change.get("each", ())))
            if "all" in change or len(before) != len(change["each"]):
                parts[part] = change.get("all", before)
            else:
                parts[part] = [{**was, **now} for was, now in zip(before, change["each"], strict=True)]
        row["parts"] = parts
    return row


def _changed_kinds(
    usual: Sequence[Sequence[str]], changed: Sequence[Sequence[str]], now: Sequence[Sequence[str]]
) -> Sequence[Sequence[str]]:
    """The parts of each kind of block, with what one switch adds and takes away, where others have changed some."""
    if not len(usual) == len(changed) == len(now):
        return changed
    return [
        sorted({*own, *({*new} - {*old})} - ({*old} - {*new}))
        for old, new, own in zip(usual, changed, now, strict=True)
    ]


def _of_block(row: Mapping[str, Any], names: Collection[str]) -> Iterator[tuple[str, Any]]:
    """(name below the block, axes) of the tensors of a block with those names."""
    folded = {_folded(name, row["counts"]) for name in names}
    there = {name.partition(".")[0] for name in folded}
    kind = min(row["kinds"], key=lambda parts: len({*parts} ^ there))
    for part in kind:
        mine = {name for name in folded if name.partition(".")[0] == part}
        variants = [{n: axes for n, axes in variant.items() if axes is not None} for variant in row["parts"][part]]
        best = min(variants, key=lambda variant: len({*variant} ^ mine))
        alike = [variant for variant in variants if variant.keys() == best.keys()]
        axes = {name: _common([variant[name] for variant in alike]) for name in best}
        for name, of_weight in [(name, axes.get(f"{name.removesuffix('.bias')}.weight")) for name in axes]:
            if of_weight and name.endswith(".bias") and axes[name][0] not in of_weight:
                axes[name] = [None]  # a switch added it, and another changed its weight
        yield from axes.items()


def _common(sizes: Sequence[Sequence[str | int | None]]) -> Sequence[str | int | None]:
    """The axes of a tensor that has other sizes in other blocks: those that are the same in all."""
    return [axes[0] if len({*axes}) == 1 else None for axes in zip(*sizes, strict=True)]


def _folded(name: str, counts: Collection[str]) -> str:
    """The name with `EACH` for the number of a part that is there several times."""
    for match in re.finditer(r"(?<=\.)\d+(?=\.)", name, re.ASCII):
        if (folded := f"{name[: match.start()]}{EACH}{name[match.end() :]}") in counts:
            return folded
    return name


def _numbered(name: str, row: Mapping[str, Any], config: Mapping[str, Any], most: int | None) -> Iterable[str]:
    """The names of what is there several times; at most so many, which is enough to miss one."""
    if name not in row["counts"]:
        return [name]
    count = evaluate(row["counts"][name], config) or 0
    return (name.replace(EACH, str(number)) for number in range(count if most is None else min(count, most)))


def _below(prefix: str, names: Iterable[str]) -> dict[int, list[str]]:
    """Block -> names below it."""
    found: dict[int, list[str]] = {}
    for name in names:
        number, dot, below = name.removeprefix(f"{prefix}.").partition(".")
        if dot and name.startswith(f"{prefix}.") and number.isascii() and number.isdigit():
            found.setdefault(int(number), []).append(below)
    return found


def _sizes(axes: Sequence[str | int | None], config: Mapping[str, Any]) -> Sizes:
    return tuple(evaluate(axis, config) for axis in axes)


def _said(shape: Sizes) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def _surplus(model_type: str, name: str) -> UnsupportedModel:
    if name.partition(".")[0] in ("score", "classifier", "qa_outputs", "v_head", "value_head"):
        return _misfit(
            model_type,
            f"it is a classifier or reward model: `{shown(name)}` stands where a language model has its head",
            "use the language model that it was made of",
        )
    return _misfit(
        model_type,
        f"the weights hold `{shown(name)}`, for which transformers has no place in a model of this config",
        "use weights of a plain model of the family: what is not known to be carried along is not pruned around",
    )


def _misfit(model_type: str, why: str, hint: str = _HINT) -> UnsupportedModel:
    return UnsupportedModel(f"{model_type}: {why}", hint, field="/model/id")

"""Make an `Architecture` from config and weight headers, or refuse the model by its kind. Import-light."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, NamedTuple

from workers.engine.architectures.architecture import Architecture, Layout, LinearFacts, Part
from workers.engine.architectures.built import FLOATS, block_count, context_length, sizes_of, value
from workers.engine.architectures.canonical import canonical_facts
from workers.engine.architectures.fused import EACH
from workers.engine.architectures.kinds import SUPPORTED, other_blocks
from workers.engine.architectures.layouts import layouts
from workers.engine.architectures.mixtures import chosen
from workers.engine.architectures.wrappers import in_wrapper
from workers.engine.errors import UnsupportedModel
from workers.engine.files.model_files import shown
from workers.engine.files.safetensors_bytes import TensorFacts

_MOST_BLOCKS = 1024
_MOST_DIGITS = 6

Blocks = Mapping[int, Mapping[str, TensorFacts]]
"""Block -> tensor name below it -> facts."""


def recognise(config: Mapping[str, Any], stored: Mapping[str, TensorFacts]) -> Architecture:
    """The structure of a model, of the tensors as its files hold them. Raises UnsupportedModel, naming a tensor that is
    missing or surplus."""
    model_type = config["model_type"]
    layout = layout_of(config, stored)
    sizes = sizes_of(config)
    tensors = canonical_facts(layout, sizes, stored)
    by_block = _by_block(layout, tensors)
    first = min(by_block)
    layers = _block_layers(layout, model_type, first, by_block[first])  # which layout it is, before its numbers
    _check_numbers(model_type, config, by_block)
    for block in range(1, len(by_block)):
        layers += _block_layers(layout, model_type, block, by_block[block])
    embedding = tensors.get(layout.embedding_weight)
    if embedding is None or len(embedding.shape) != 2:
        raise _unsupported(model_type, f"no matrix `{layout.embedding_weight}`")
    vocabulary = embedding.shape[0]
    hidden_size = next(layer.shape[1] for layer in layers if layer.reads == "hidden")  # the embedding's may be smaller
    context = context_length(config)
    if context is None:
        raise _unsupported(model_type, "config.json has no `max_position_embeddings`, the length of its context")
    sent = chosen(config) if any(layout.of_experts(layer) for layer in layers) else 0
    return Architecture(
        layout, model_type, len(by_block), tuple(layers), hidden_size, vocabulary, context, sizes, sent=sent
    )


def layout_of(config: Mapping[str, Any], stored: Mapping[str, TensorFacts]) -> Layout:
    """The layout whose parts make up every block; else the one that has most in common with the first, so that the
    error can name the missing layers. Raises UnsupportedModel where no layout has blocks at that path."""
    nearest: tuple[tuple[int, int], Layout] | None = None
    by_path: dict[str, _Different] = {}
    for layout in layouts():
        if config["model_type"] not in (layout.model_types or (config["model_type"],)):
            continue
        if layout.blocks not in by_path:
            by_path[layout.blocks] = _different_blocks(layout, stored)
        blocks, below, kinds = by_path[layout.blocks]
        if not blocks:
            continue
        if layout.stored:
            kinds = _kinds(_by_block(layout, canonical_facts(layout, sizes_of(config), blocks, strict=False)))
        # Where it has matrices apart that the layout has in one, it is of another.
        fused = {part for row in layout.stored for part in row.parts if part != row.tensor}
        apart_too = not fused.isdisjoint(below)
        if not apart_too and all(_parts(layout, kind) is not None for kind in kinds):
            return in_wrapper(_as_stored(layout.of(config["model_type"]), config, blocks), config)
        apart = min(
            (-len(names & kinds[0]), len(names - kinds[0]))
            for mixer in layout.mixers
            for mlp in layout.mlps
            if (names := {layer.name for part in (mixer, mlp) for layer in part.projections(1)})
        )
        if nearest is None or apart < nearest[0]:
            nearest = apart, layout
    if nearest is None:
        raise other_blocks(config, min(stored, default="nothing"))
    return in_wrapper(nearest[1].of(config["model_type"]), config)


def _as_stored(layout: Layout, config: Mapping[str, Any], blocks: Mapping[str, TensorFacts]) -> Layout:
    """The layout with the tensors of experts turned that are stored so, as transformers tells: by the hidden size."""
    if not layout.may_turn:
        return layout
    reading = {f"{layer.name}.weight" for layer in layout.layers if layer.reads == "hidden"}
    hidden_axis = {row.tensor: 2 if reading.issuperset(row.parts) else 1 for row in layout.stored if row.stacked}
    turned = {
        below
        for name, facts in blocks.items()
        if (below := layout.below(name)) in hidden_axis
        and len(facts.shape) == 3
        and facts.shape[hidden_axis[below]] != value(config, "hidden_size")
    }
    rows = (replace(row, transposed=True) if row.tensor in turned else row for row in layout.stored)
    return replace(layout, stored=tuple(rows), turned=tuple(sorted(turned)))


class _Different(NamedTuple):
    """One block of each kind of those at a path."""

    tensors: Mapping[str, TensorFacts]
    """By their full names."""
    below: Set[str]
    """Names below the blocks."""
    kinds: Sequence[Set[str]]
    """The matrices of each block, as they are stored."""


def _different_blocks(layout: Layout, stored: Mapping[str, TensorFacts]) -> _Different:
    by_block = _by_block(layout, stored)
    alike = {frozenset(inside): block for block, inside in sorted(by_block.items(), reverse=True)}
    kept = {block: by_block[block] for block in alike.values()}
    tensors = {
        f"{layout.block(block)}.{name}": facts for block, inside in kept.items() for name, facts in inside.items()
    }
    return _Different(tensors, {name for names in alike for name in names}, _kinds(kept))


def _kinds(by_block: Blocks) -> list[set[str]]:
    return [_matrices(inside) for _, inside in sorted(by_block.items())]


def _parts(layout: Layout, matrices: Collection[str]) -> tuple[Part, Part, int] | None:
    """(mixer, MLP, number of experts) of a block with these matrices, by their paths below it."""
    for mixer in layout.mixers:
        for mlp in layout.mlps:
            experts = _experts_in(mlp, matrices)
            names = {layer.name for part in (mixer, mlp) for layer in part.projections(experts)}
            kept = {*mixer.kept, *mlp.kept}
            if names <= {*matrices} <= names | kept and bool(experts) == mlp.has_experts:
                return mixer, mlp, experts
    return None


def _experts_in(part: Part, matrices: Collection[str]) -> int:
    """How many experts, from the first on, a block has."""
    first = next((layer for layer in part.layers if EACH in layer.name), None)
    count = 0
    while first is not None and first.name.replace(EACH, str(count)) in matrices:
        count += 1
    return count


def _by_block(layout: Layout, tensors: Mapping[str, TensorFacts]) -> Blocks:
    found: dict[int, dict[str, TensorFacts]] = {}
    pattern = re.compile(re.escape(layout.blocks) + rf"\.(\d{{1,{_MOST_DIGITS}}})\.(.*)", re.ASCII | re.DOTALL)
    for name, facts in tensors.items():
        if match := pattern.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = facts
    return found


def _matrices(inside: Mapping[str, TensorFacts]) -> set[str]:
    return {name.removesuffix(".weight") for name, facts in inside.items() if len(facts.shape) > 1}


def _check_numbers(model_type: str, config: Mapping[str, Any], by_block: Blocks) -> None:
    blocks, said = len(by_block), block_count(config)
    if said is None:
        raise _unsupported(model_type, "config.json has no `num_hidden_layers`", "use a config saved by transformers")
    if max(by_block) != blocks - 1 or said != blocks:
        raise _unsupported(
            model_type,
            f"config.json says {said} blocks, the weights hold {blocks} (up to number {max(by_block)})",
            "check that config.json belongs to the weights, and that the copy or download is complete",
        )
    if blocks > _MOST_BLOCKS:
        raise _unsupported(model_type, f"{blocks} blocks are more than the {_MOST_BLOCKS} that are walked")


def _block_layers(layout: Layout, model_type: str, block: int, inside: Mapping[str, TensorFacts]) -> list[LinearFacts]:
    matrices = _matrices(inside)
    found = _parts(layout, matrices)
    if found is None:
        raise _of_no_layout(layout, model_type, block, matrices)
    mixer, mlp, experts = found
    projections = [*mixer.projections(0), *mlp.projections(experts)]
    layers = []
    for projection in projections:
        facts = inside.get(f"{projection.name}.weight")
        if facts is None or facts.dtype not in FLOATS or len(facts.shape) != 2:
            what = "missing" if facts is None else f"{facts.dtype} {shown(list(facts.shape))}"
            raise _unsupported(model_type, f"`{layout.block(block)}.{projection.name}` is {what}, not a float matrix")
        layers.append(
            LinearFacts(
                f"{layout.block(block)}.{projection.name}",
                block,
                projection.stream,
                (facts.shape[0], facts.shape[1]),
                projection.reads,
                projection.writes,
                projection.cached,
            )
        )
    widths: dict[str, int] = {}
    for layer in layers:
        if widths.setdefault(layer.stream, layer.shape[1]) != layer.shape[1]:
            two = {widths[layer.stream], layer.shape[1]}
            raise _unsupported(model_type, f"block {block}: layers that read one {layer.stream} differ in width: {two}")
    return layers


def _of_no_layout(layout: Layout, model_type: str, block: int, matrices: Collection[str]) -> UnsupportedModel:
    """The error for a block that no parts of the layout make up; it names what the nearest parts lack."""
    mixer, mlp = (
        min(parts, key=lambda part: len({layer.name for layer in part.projections(1)} - {*matrices}))
        for parts in (layout.mixers, layout.mlps)
    )
    names = [layer.name for part in (mixer, mlp) for layer in part.projections(max(1, _experts_in(part, matrices)))]
    others = sorted({*matrices} - {*names, *mixer.kept, *mlp.kept})
    if missing := [name for name in names if name not in matrices]:
        beside = f"; it has {', '.join(f'`{shown(name)}`' for name in others[:3])}" if others else ""
        return _unsupported(model_type, f"{_kind(others)}no `{missing[0]}` in block {block}{beside}")
    return _unsupported(
        model_type, f"{_kind(others)}block {block} also has the matrix `{shown(others[0])}`, whose use is not known"
    )


def _kind(others: list[str]) -> str:
    """The kind of model that surplus matrices show; empty where they show none."""
    names = " ".join(others)
    for pattern, what in (
        (r"expert|(?<!modality_)router|block_sparse_moe", "it is a mixture of experts: "),
        (r"mamba|ssm|linear_attn|conv1d|in_proj_qkvz", "it is a state-space model or a hybrid with one: "),
        (r"kv_a_proj|q_a_proj|kv_b_proj", "its attention is latent (MLA): "),
        (r"qkv|c_attn|query_key_value|W_pack|gate_up_proj", "its projections are fused: "),
        (r"weight_packed|qweight|weight_scale|absmax", "its weights are quantised: "),
        (r"lora_[AB]", "it is an adapter (LoRA): "),
    ):
        if re.search(pattern, names):
            return what
    return ""


def _unsupported(model_type: str, why: str, hint: str = SUPPORTED) -> UnsupportedModel:
    return UnsupportedModel(f"{shown(model_type)}: {why}", hint, field="/model/id")

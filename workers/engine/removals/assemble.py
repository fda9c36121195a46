"""Assemble: the finished blocks of a checkpoint as the weights and config of a model folder.

Bytes are copied from file to file, so that a shard larger than memory can be written; same blocks, same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.engine import artifact
from workers.engine.architectures.built import per_block
from workers.engine.architectures.kept_blocks import NAMES
from workers.engine.architectures.per_layer import MODELING
from workers.engine.architectures.wrappers import WHOLE, names_of, whole_config
from workers.engine.files.safetensors_bytes import merge, pack, read_header
from workers.engine.removals.outcome import config_after
from workers.engine.sources.resolve import INDEX, WEIGHTS

if TYPE_CHECKING:
    from workers.engine.files.safetensors_bytes import Slice
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.removals.outcome import Outcome
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint

_HEADER_ENTRY_BYTES = 256
"""Upper bound of a tensor's entry in a header."""


def assemble(spec: CompressionSpec, model: LoadedModel, outcome: Outcome, checkpoint: Checkpoint, folder: Path) -> None:
    """Write weights and `config.json` into `folder`, which is made anew.

    Files hold at most `shard_bytes`; one that holds a single block, or what is outside of blocks, may be larger.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = [read_header(checkpoint.outside()), *(checkpoint.block(index) for index in range(len(outcome.blocks)))]
    in_files = names_of(model.source.config.get(WHOLE, {}), model.source.names.values()).in_files
    parts = [{in_files(name): piece for name, piece in part.items()} for part in parts]
    _write_shards(parts, spec.package.shard_bytes, folder)
    dense = model.source.config
    if len(outcome.blocks) != model.architecture.blocks:
        dense = {**dense, **_lists(model)}
    config = config_after(dense, outcome)
    if spec.package.dtype != "source":
        config.pop("torch_dtype", None)  # the older name of the same entry
        config["dtype"] = spec.package.dtype
    _write_json(folder / "config.json", whole_config(config))
    if not outcome.uniform:
        shutil.copyfile(Path(artifact.__file__).parent / MODELING, folder / MODELING)


def _lists(model: LoadedModel) -> dict[str, Any]:
    """Config entries that say which block is which, with the defaults that transformers derives from block numbers."""
    built = vars(model.skeleton.config.get_text_config())
    return {name: built[name] for name in (*per_block(model.source.config), *NAMES) if built.get(name) is not None}


def _write_shards(parts: list[dict[str, Slice]], shard_bytes: int, folder: Path) -> None:
    sizes = [sum(piece.facts.bytes + _HEADER_ENTRY_BYTES for piece in part.values()) for part in parts]
    shards = pack(sizes, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        merge([parts[index] for index in shard], folder / file)
        weight_map |= {name: file for index in shard for name in parts[index]}
    if len(shards) > 1:
        total = sum(piece.facts.bytes for part in parts for piece in part.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / INDEX, index)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")

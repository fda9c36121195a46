"""A model as a skeleton without weights, whose weights are read block by block from the files.

The skeleton's parameters are on the meta device and take no memory; a block's tensors are put in when it is computed,
and dropped after. Buffers that follow from the config (rotary frequencies) have values from the start. transformers
never reads a model's folder itself: it is given a config, tensors and a tokenizer's files that have been checked.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.initialization import guard_torch_init_functions

from workers.engine.architectures.architecture import Architecture, Layout
from workers.engine.architectures.built import obeyed
from workers.engine.architectures.canonical import canonical_slices, in_modules
from workers.engine.architectures.file_names import names_in_files
from workers.engine.architectures.per_layer import DIFFER, PER_LAYER, is_ours, modeling_class
from workers.engine.architectures.recognise import recognise
from workers.engine.architectures.skipping import BETAS, skipping_class
from workers.engine.architectures.wrappers import WHOLE, WRAPPERS, Wrapper, decoder_config, whole_config
from workers.engine.artifact import modeling_pruned
from workers.engine.errors import EngineError, UnsupportedModel
from workers.engine.files.companions import GENERATION, TOKENIZER_CONFIG
from workers.engine.files.model_files import TOKENIZER_DIGITS, BadFile, find, read_json, shown
from workers.engine.files.safetensors_bytes import Slice, read_header
from workers.engine.files.tensors import read_tensor
from workers.engine.model.memory import Room, trim
from workers.engine.model.transfers import to_device
from workers.engine.ranks import Ranks
from workers.engine.sources.resolve import INDEX, WEIGHTS, ModelSource

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from workers.engine.model.transfers import Arrival


TRIMMED_BYTES = 2**24
"""Weights of at least so many bytes are returned to the system when dropped: else memory grows by every block."""
_NOT_OURS = ("allow_global_per_layer_attribute_access", "dtype", "torch_dtype", "architectures")
"""Config entries decided here: widths by the files, the type by the spec."""
_GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty", "no_repeat_ngram_size")
"""Settings of `generation_config.json` that change greedy decoding."""
_FILES_NAMED = (
    "auto_map", "tokenizer_file", "vocab_file", "merges_file", "added_tokens_file", "special_tokens_map_file",
    "tokenizer_config_file", "chat_template_file", "name_or_path", "_commit_hash",
)  # fmt: skip
"""Entries of `tokenizer_config.json` that name code or files elsewhere."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be walked block by block."""

    source: ModelSource
    architecture: Architecture
    path: Path
    """Folder with its files."""
    tokenizer: PreTrainedTokenizerBase
    skeleton: PreTrainedModel
    device: torch.device
    """Where forward passes, scores and masks are computed."""
    dtype: torch.dtype
    """Of forward passes."""
    batch_tokens: int
    """Tokens per forward pass, so many that memory suffices."""
    room: Room
    """For hidden states."""
    slices: Mapping[str, Slice]
    """Tensor name -> where its bytes lie."""
    ranks: Ranks = field(default_factory=Ranks)
    """Who walks it: each its share of the windows."""


def skeleton(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config, its parameters on the meta device."""
    with _refusing(config["model_type"], "config.json"):
        built = AutoConfig.for_model(**_decoded(config)) if is_ours(config) else stock_config(config)
        found = empty_model(built, device, dtype).eval().requires_grad_(False)
        if WHOLE in config:
            _without_towers(found, WRAPPERS[config[WHOLE]["model_type"]], device)
        return found


def _without_towers(model: nn.Module, wrapper: Wrapper, device: torch.device) -> None:
    """Take out what a wrapper has beside its decoder: it is not computed, and takes no memory."""
    around = model.get_submodule(wrapper.decoder.rpartition(".")[0])
    # It would take the device of its first parameter, which is on the meta device but for its turn.
    around.__class__ = type(type(around).__name__, (type(around),), {"device": device})
    path, kept = wrapper.decoder.split("."), {wrapper.decoder, wrapper.head}
    for depth in range(len(path)):
        parent = ".".join(path[:depth])
        holder = model.get_submodule(parent)
        for name, _ in [*holder.named_parameters(recurse=False)]:
            setattr(holder, name, None)
        for name, _ in [*holder.named_children()]:
            full = f"{parent}.{name}" if parent else name
            if not any(part == full or part.startswith(f"{full}.") for part in kept):
                setattr(holder, name, nn.Module())


def stock_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """transformers' config made of the entries of `config.json` that describe the model."""
    not_ours = _NOT_OURS if config["model_type"] in DIFFER else (*_NOT_OURS, PER_LAYER)
    entries = {name: entry for name, entry in obeyed(config).items() if name not in not_ours}
    if WHOLE in config:
        entries = whole_config({**entries, WHOLE: obeyed(config[WHOLE])})
    return AutoConfig.for_model(**_decoded(entries))


def _decoded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries, with numbers for what transformers writes for infinite ones: JSON has none."""
    found: dict[str, Any] = PreTrainedConfig._decode_special_floats(dict(config))
    return found


def empty_model(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config: its parameters on the meta device, its buffers with values."""
    with device, _parameters_on_meta(), guard_torch_init_functions():
        differ = getattr(config, "is_heterogeneous", False) and config.model_type not in DIFFER
        own = _own_class({"model_type": config.model_type, PER_LAYER: differ, BETAS: getattr(config, BETAS, None)})
        if own is not None:
            return own._from_config(config, dtype=dtype)
        return _auto_class(config.model_type).from_config(config, dtype=dtype, trust_remote_code=False)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made meanwhile have their parameters on the meta device, and transformers takes those for initialised, as
    torch's own initialisers do where transformers guards them: drawing each on the meta device takes three times as
    long as all the rest. Buffers are initialised."""
    handle = register_module_parameter_registration_hook(_on_meta)  # type: ignore[arg-type]  # may return one
    try:
        yield
    finally:
        handle.remove()


def _on_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    if parameter.is_meta:  # registered again, where weights are tied
        return None
    found = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    found._is_hf_initialized = True  # type: ignore[attr-defined]
    return found


def _auto_class(model_type: str) -> Any:
    return AutoModelForMultimodalLM if model_type in WRAPPERS else AutoModelForCausalLM


def _own_class(config: Mapping[str, Any]) -> type[PreTrainedModel] | None:
    """The class that a result of different widths names, or one that skips experts, from our package: code in a model's
    folder is never run. None for others."""
    found: type[PreTrainedModel] | None = None
    if config.get(PER_LAYER) and config["model_type"] not in DIFFER:
        found = getattr(modeling_pruned, modeling_class(config))
    elif config.get(BETAS):
        from workers.engine.artifact import modeling_skipping  # imports families that most jobs do not have

        found = getattr(modeling_skipping, skipping_class(config["model_type"]))
    return found


def load_model(model_dir: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `model_dir`, in eval mode: transformers' own class, filled with the tensors that its index names.

    Raises UnsupportedModel where the files lack weights of the architecture.
    """
    model, parts = in_parts(model_dir, device, dtype)
    for _ in parts:
        pass
    return model


def in_parts(model_dir: Path, device: torch.device, dtype: torch.dtype) -> tuple[PreTrainedModel, Iterator[int | None]]:
    """The same without weights yet, and an iterator that reads them part by part: it gives the number of each block
    when its weights are there, and at last None for what is outside of blocks. Whoever makes a part smaller before
    asking for the next one never has more than one of them whole."""
    config = decoder_config(read_json(model_dir, "config.json"))
    model = skeleton(config, device, dtype).requires_grad_(True)
    return model.eval(), _parts(model, model_dir, device, dtype)


def _parts(model: PreTrainedModel, model_dir: Path, device: torch.device, dtype: torch.dtype) -> Iterator[int | None]:
    architecture, pieces = described(model_dir)
    layout, missing = architecture.layout, {*model.state_dict()}
    for block, names in _by_block(layout, pieces).items():
        # Only a block's experts are in memory twice, one by one and in one tensor.
        read = {name: _read_as(pieces[name], device, dtype) for name in names}
        weights = in_modules(layout, architecture.sizes, read)
        missing &= {*model.load_state_dict(weights, strict=False, assign=True).missing_keys}
        del read, weights
        if block is not None and block < architecture.blocks:
            yield block
        trim()
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    _refuse_incomplete(model_dir, missing, "use a complete checkpoint whose config.json describes its weights")
    model.generation_config = generation_settings(model_dir, model_dir.name) or model.generation_config
    yield None


def _read_as(piece: Slice, device: torch.device, dtype: torch.dtype) -> Tensor:
    return read_tensor(piece, pinned=device.type == "cuda").to(device, dtype, non_blocking=True)


def _by_block(layout: Layout, names: Collection[str]) -> dict[int | None, list[str]]:
    """Block -> the tensors of it, in the order of the blocks; None, at last, for those outside of blocks."""
    found: dict[int | None, list[str]] = {}
    for name in names:
        inside = layout.split(name)
        found.setdefault(None if inside is None else inside[0], []).append(name)
    return dict(sorted(found.items(), key=lambda item: math.inf if item[0] is None else item[0]))


def load_result(model_dir: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A result in `model_dir`, in eval mode, as any user would load it: by `from_pretrained`, from files of ours.

    Raises UnsupportedModel where the files lack weights of the architecture, which transformers would fill with
    random numbers and a warning.
    """
    config = read_json(model_dir, "config.json")
    own = _own_class(config)
    options: dict[str, Any] = {"trust_remote_code": False} if own is None else {}
    if device.type == "cuda":
        options["device_map"] = {"": device}  # each tensor straight there, not the model by way of the host's memory
    with _read_when_needed():
        model, loading = (own or _auto_class(config["model_type"])).from_pretrained(
            model_dir, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    trim()
    _refuse_incomplete(model_dir, loading["missing_keys"], "report this: what was written is not whole")
    return model.to(device).eval()


@contextmanager
def _read_when_needed() -> Iterator[None]:
    """transformers reads each tensor when it puts it into the model. Else its threads read ahead, and the experts of
    all blocks are in memory one by one beside the tensors that they are stacked into."""
    name, before = "HF_DEACTIVATE_ASYNC_LOAD", os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _refuse_incomplete(model_dir: Path, missing: Collection[str], remedy: str) -> None:
    if missing:
        raise UnsupportedModel(
            f"{model_dir.name}: {len(missing)} weights of the architecture are not in its files, first {min(missing)}",
            remedy,
            field="/model/id",
        )


def generation_settings(folder: Path, model_id: str) -> GenerationConfig | None:
    """Token ids and repetition settings of `generation_config.json`; None without one. Raises UnsupportedModel."""
    with _refusing(model_id, GENERATION):
        if find(folder, GENERATION) is None:
            return None
        found = read_json(folder, GENERATION)
        # transformers would take the first of an empty list.
        return GenerationConfig(**{name: found[name] for name in _GENERATION if found.get(name, []) != []})


@contextmanager
def _refusing(model_id: str, file: str) -> Iterator[None]:
    """Whatever a library raises for a file of the model, as an UnsupportedModel that names the file."""
    try:
        yield
    except (EngineError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of tokenizers' Rust
            raise
        raise UnsupportedModel(
            f"{model_id}: {file} cannot be used: {type(error).__name__}: {shown(error)}",
            f"correct {file}, or copy the model again as its authors saved it",
            field="/model/id",
        ) from error


def result_of(dense: LoadedModel, folder: Path) -> LoadedModel:
    """The model in `folder`, made of the dense one: of other shapes perhaps, with the same tokenizer."""
    stored = stored_slices(folder)
    config = _config_of(folder)
    source = replace(
        dense.source,
        config=config,
        stored={name: piece.facts for name, piece in stored.items()},
        files={name: piece.file.name for name, piece in stored.items()},
        path=folder,
        names={},
    )
    architecture = recognise(config, source.stored)
    return replace(
        dense,
        source=source,
        architecture=architecture,
        path=folder,
        skeleton=skeleton(config, dense.device, dense.dtype),
        slices=canonical_slices(architecture.layout, architecture.sizes, stored),
    )


def in_float32(model: LoadedModel) -> LoadedModel:
    """The same model with a skeleton of its own, whose weights are float32 when filled in."""
    return replace(model, dtype=torch.float32, skeleton=skeleton(model.source.config, model.device, torch.float32))


def tensors_of(model: LoadedModel, module: str) -> dict[str, Tensor]:
    """Every stored tensor of a module by its full name, in the source's type, on the compute device."""
    return _read(model, [name for name in model.source.tensors if name.startswith(f"{module}.")])


def block_tensors(model: LoadedModel, block: int) -> dict[str, Tensor]:
    """Those of a block."""
    return sent_block(model, block)()


def sent_block(model: LoadedModel, block: int) -> Arrival:
    """The same, read by now and on their way to the compute device."""
    prefix = model.architecture.layout.block(block)
    return _sent(model, [name for name in model.source.tensors if name.startswith(f"{prefix}.")])


def head_tensors(model: LoadedModel) -> dict[str, Tensor]:
    """Those of the output head: its own, or the embedding's where they are tied."""
    layout = model.architecture.layout
    own = tensors_of(model, layout.head)
    return own if layout.head_weight in own else {**own, **as_head(layout, tensors_of(model, layout.embedding))}


def as_head(layout: Layout, embedding: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weight of a head that is tied to the embedding with these tensors. Its bias is its own."""
    return {layout.head_weight: embedding[layout.embedding_weight]}


def outside_tensors(model: LoadedModel) -> dict[str, Tensor]:
    """Every stored tensor that belongs to no block: embeddings, final norm, output head if it is stored."""
    return _read(model, [name for name in model.source.tensors if model.architecture.layout.split(name) is None])


@contextmanager
def filled(model: LoadedModel, name: str, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The skeleton's module `name`, holding `tensors` (full names) in the compute type; empty again afterwards.

    Raises UnsupportedModel if the module has parameters that the tensors lack.
    """
    layout = model.architecture.layout
    module = model.skeleton.get_submodule(layout.in_module(name))
    theirs = in_modules(layout, model.architecture.sizes, tensors)
    values = {key.removeprefix(f"{layout.in_module(name)}."): tensor.to(model.dtype) for key, tensor in theirs.items()}
    # Left-over tensors are no harm (old checkpoints store rotary frequencies); a parameter without values is.
    missing = module.load_state_dict(values, strict=False, assign=True).missing_keys
    if missing:
        raise UnsupportedModel(
            f"{model.architecture.model_type}: the weights lack `{name}.{missing[0]}`",
            "check that config and weights belong together",
            field="/model/id",
        )
    try:
        yield module
    finally:
        # Not `module.to`: buffers, which follow from the config, stay.
        for part in module.modules():
            for key, parameter in part.named_parameters(recurse=False):
                setattr(part, key, torch.nn.Parameter(parameter.to("meta"), requires_grad=False))
        size = sum(tensor.nbytes for tensor in values.values())
        del values
        if size >= TRIMMED_BYTES:
            trim()


@contextmanager
def filled_before(model: LoadedModel, tensors: Callable[[str], Mapping[str, Tensor]]) -> Iterator[None]:
    """The skeleton with weights in all that computes before the blocks. `tensors` gives those of a module by its name
    in the files. Raises UnsupportedModel."""
    layout = model.architecture.layout
    later = tuple(f"{path}." for path in (layout.final_norm, layout.head, *layout.after))
    decoder = f"{layout.in_module(layout.decoder)}."  # beside it there may be towers, which are not computed
    with ExitStack() as stack:
        for name in outside(model.skeleton, layout):
            if layout.in_module(name).startswith(decoder) and not f"{name}.".startswith(later):
                stack.enter_context(filled(model, name, tensors(name)))
        yield


def outside(model: nn.Module, layout: Layout) -> list[str]:
    """Names, in the files, of the modules outside of blocks that hold weights themselves, in the order of the model."""
    ours = {layout.from_module(name): module for name, module in model.named_modules()}
    return [
        name
        for name, module in ours.items()
        if layout.split(name) is None and any(True for _ in module.parameters(recurse=False))
    ]


def _read(model: LoadedModel, names: list[str]) -> dict[str, Tensor]:
    return _sent(model, names)()


def _sent(model: LoadedModel, names: list[str]) -> Arrival:
    """Read, not mapped: a mapped file counts as memory in use, and one larger than the address space cannot be."""
    pinned = model.device.type == "cuda"
    return to_device({name: read_tensor(model.slices[name], pinned=pinned) for name in names}, model.device)


def described(folder: Path) -> tuple[Architecture, Mapping[str, Slice]]:
    """(structure of the model in a folder of ours, where each of its canonical tensors lies)."""
    stored = stored_slices(folder)
    architecture = recognise(_config_of(folder), {name: piece.facts for name, piece in stored.items()})
    return architecture, canonical_slices(architecture.layout, architecture.sizes, stored)


def architecture_of(folder: Path) -> Architecture:
    """Of the model in a folder of ours."""
    return described(folder)[0]


def slices_of(folder: Path) -> Mapping[str, Slice]:
    """Where each canonical tensor of a folder of ours lies."""
    return described(folder)[1]


def _config_of(folder: Path) -> dict[str, Any]:
    """The decoder's config in a folder of ours."""
    return decoder_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def stored_slices(folder: Path) -> dict[str, Slice]:
    """Where each stored tensor of a model's folder lies: in the file that the index names, if there is one."""
    config = _config_of(folder)
    if not (folder / INDEX).exists():
        found = read_header(folder / WEIGHTS)
    else:
        index: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        headers = {file: read_header(folder / file) for file in sorted(set(index.values()))}
        found = {name: headers[file][name] for name, file in index.items()}
    return {name: found[old] for name, old in names_in_files(config, found).items()}


def tokenizer_of(source: ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer, read from links to the files that have been checked, and nothing else of the folder."""
    with TemporaryDirectory() as made, _refusing(source.id, "the tokenizer"):
        view = Path(made)
        for name in source.companions:
            found = find(source.folder, name)
            if found is None:
                raise BadFile(f"{shown(name)} is missing")
            (view / name).parent.mkdir(exist_ok=True)
            (view / name).symlink_to(found)
        if (view / TOKENIZER_CONFIG).exists():
            settings = read_json(source.folder, TOKENIZER_CONFIG, digits=TOKENIZER_DIGITS)
            (view / TOKENIZER_CONFIG).unlink()
            kept = {name: entry for name, entry in settings.items() if name not in _FILES_NAMED}
            (view / TOKENIZER_CONFIG).write_text(json.dumps(kept), encoding="utf-8")
        (view / "config.json").write_text(json.dumps({"model_type": source.config["model_type"]}), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(view, local_files_only=True, trust_remote_code=False)
        ids = tokenizer("A few words.")["input_ids"]
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise BadFile("it does not make token ids of text")
    tokenizer.name_or_path = str(source.folder)
    return tokenizer

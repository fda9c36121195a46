"""Load: the model as a skeleton without weights, and its weights block by block from the files.

The skeleton's parameters are on the meta device and take no memory; a block's tensors are put in when it is its turn,
and dropped after. What the config alone decides (rotary frequencies) is real from the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from workers.engine.architectures.llama import BLOCKS, EMBEDDING, HEAD, Architecture, recognise
from workers.engine.artifact import modeling_pruned
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.estimate import batch_tokens
from workers.engine.memory import trim
from workers.engine.outcome import PER_LAYER, Outcome, config_after, modeling_class
from workers.engine.plan import feasible
from workers.engine.shards import Slice, fill, read_header
from workers.engine.sources import ModelSource, Sources, download, resolve_model

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from workers.engine.spec import CompressionSpec


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""As safetensors headers name them."""

TRIMMED_BYTES = 2**24
"""Weights that are worth the time to have the allocator return them: without, memory grows by every block."""


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
    slices: Mapping[str, Slice]
    """Tensor name -> where its bytes lie."""


def load(spec: CompressionSpec, sources: Sources) -> LoadedModel:
    """Resolve, check and download the model; read no weights yet. Raises what a plan of the spec raises, and

    UnsupportedModel where this transformers does not know the model type or the tokenizer cannot be read.
    """
    source = resolve_model(spec.model, sources)
    prospect = feasible(spec, source, sources)
    architecture = prospect.architecture
    path = download(source)
    if architecture.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModel(
            f"{architecture.model_type}: this version of transformers has no causal language model of that type",
            "use a model of a family that transformers implements itself",
            field="/model/id",
        )
    _check_shapes(source, prospect.outcome)
    device, dtype = _device(spec), getattr(torch, spec.compute.dtype)
    return LoadedModel(
        source,
        architecture,
        path,
        _tokenizer(path, source),
        _skeleton(path, device, dtype),
        device,
        dtype,
        batch_tokens(spec, source, architecture, budget=memory_budget(spec, device)),
        _slices(path, source.files.values()),
    )


def _check_shapes(source: ModelSource, outcome: Outcome | None) -> None:
    """Refuse a result that no config of the family can say, as where it derives a head's width from their number."""
    if outcome is None or not outcome.cut or not outcome.uniform:
        return
    model_type = source.config["model_type"]
    hint = "remove channels only, or whole blocks with `depth`"
    try:
        config = AutoConfig.for_model(**config_after(source.config, outcome))
        built = empty_model(config, torch.device("cpu"), torch.float32).state_dict()
    except ValueError as error:
        raise UnsupportedModel(f"{model_type}: {error}", hint, field="/prune/units") from error
    for name, wanted in outcome.parameters(source.tensors).items():
        if name in built and built[name].numel() != wanted:
            raise UnsupportedModel(
                f"{model_type}: transformers would build {name} with {built[name].numel():,} parameters by the config "
                f"of the result, which holds {wanted:,}",
                hint,
                field="/prune/units",
            )


def _skeleton(path: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model of the config in `path`, its parameters on the meta device."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    return empty_model(config, device, dtype).eval().requires_grad_(False)


def empty_model(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config: its parameters on the meta device, what the config alone decides real."""
    with device, init_empty_weights(include_buffers=False):
        if getattr(config, "is_heterogeneous", False):
            return _own_class(config.model_type)._from_config(config, dtype=dtype)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _own_class(model_type: str) -> type[PreTrainedModel]:
    """What the modelling file of a result of different widths defines: from our package, as code from a model's folder
    is never run here."""
    found: type[PreTrainedModel] = getattr(modeling_pruned, modeling_class({"model_type": model_type}))
    return found


def load_model(model_dir: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `model_dir`, in eval mode, by plain transformers: safetensors only, none of its author's code.

    Raises UnsupportedModel where the files lack weights of the architecture, which transformers would fill with
    random numbers and a warning.
    """
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    options = {} if PER_LAYER in config else {"trust_remote_code": False}
    kind = _own_class(config["model_type"]) if PER_LAYER in config else AutoModelForCausalLM
    model, loading = kind.from_pretrained(
        model_dir, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
    )
    if missing := sorted(loading["missing_keys"]):
        raise UnsupportedModel(
            f"{model_dir.name}: {len(missing)} weights of the architecture are not in its files, first {missing[0]}",
            "use a complete checkpoint whose config.json describes its weights",
            field="/model/id",
        )
    return model.to(device).eval()


def result_of(dense: LoadedModel, folder: Path) -> LoadedModel:
    """The model in `folder`, made of the dense one: of other shapes perhaps, with the same tokenizer."""
    slices = slices_of(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    source = replace(
        dense.source,
        config=config,
        tensors={name: piece.facts for name, piece in slices.items()},
        files={name: piece.file.name for name, piece in slices.items()},
        path=folder,
    )
    return replace(
        dense,
        source=source,
        architecture=recognise(config, source.tensors),
        path=folder,
        skeleton=_skeleton(folder, dense.device, dense.dtype),
        slices=slices,
    )


def memory_budget(spec: CompressionSpec, device: torch.device) -> int:
    """Bytes the job may take: what the spec says, else what is free on the device."""
    if spec.compute.memory_budget is not None:
        return spec.compute.memory_budget
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(available.split()[1]) * 1024


def in_float32(model: LoadedModel) -> LoadedModel:
    """The same with a skeleton of its own, whose parts are filled in float32."""
    return replace(model, dtype=torch.float32, skeleton=_skeleton(model.path, model.device, torch.float32))


def tensors_of(model: LoadedModel, module: str) -> dict[str, Tensor]:
    """Every stored tensor of a module by its full name, in the source's type, on the compute device."""
    return _read(model, [name for name in model.source.tensors if name.startswith(f"{module}.")])


def head_tensors(model: LoadedModel) -> dict[str, Tensor]:
    """Those of the output head: its own, or the embedding's where they are tied."""
    return tensors_of(model, HEAD) or {
        name.replace(EMBEDDING, HEAD): tensor for name, tensor in tensors_of(model, EMBEDDING).items()
    }


def outside_tensors(model: LoadedModel) -> dict[str, Tensor]:
    """Every stored tensor that belongs to no block: embeddings, final norm, output head if it is stored."""
    return _read(model, [name for name in model.source.tensors if not name.startswith(f"{BLOCKS}.")])


@contextmanager
def filled(model: LoadedModel, name: str, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The skeleton's module `name`, holding `tensors` (full names) in the compute type; empty again afterwards.

    Raises UnsupportedModel if the module has parameters that the tensors lack.
    """
    module = model.skeleton.get_submodule(name)
    values = {key.removeprefix(f"{name}."): tensor.to(model.dtype) for key, tensor in tensors.items()}
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


def _read(model: LoadedModel, names: list[str]) -> dict[str, Tensor]:
    """Read, not mapped: a mapped file counts as memory in use, and one larger than the address space cannot be."""
    return {name: read_tensor(model.slices[name]).to(model.device) for name in names}


def read_tensor(piece: Slice) -> Tensor:
    """A stored tensor, on the CPU, in the type it is stored in."""
    tensor = torch.empty(piece.facts.shape, dtype=DTYPES[piece.facts.dtype])
    with piece.file.open("rb", buffering=0) as file:
        fill(bytes_of(tensor), file, piece.begin)
    return tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, to be read or written."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def slices_of(folder: Path) -> dict[str, Slice]:
    """Where each tensor of a model's folder lies."""
    return _slices(folder, (file.name for file in folder.glob("*.safetensors")))


def _slices(folder: Path, files: Iterable[str]) -> dict[str, Slice]:
    return {name: piece for file in sorted(set(files)) for name, piece in read_header(folder / file).items()}


def _device(spec: CompressionSpec) -> torch.device:
    available = torch.cuda.is_available()
    if spec.compute.device == "cuda" and not available:
        raise InvalidSpec(
            "this worker has no CUDA device",
            "leave `device` at `auto`, or send the job to a worker with a GPU",
            field="/compute/device",
        )
    return torch.device("cuda" if available and spec.compute.device != "cpu" else "cpu")


def _tokenizer(path: Path, source: ModelSource) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(
            f"{source.id}: its tokenizer cannot be read: {error}",
            "put the tokenizer's files beside the weights",
            field="/model/id",
        ) from error

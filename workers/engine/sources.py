"""Where models and texts come from: folders of the service, or the hub. Found and described here, not loaded.

A model is described by its config and the headers of its safetensors files, a few kilobytes whatever its size, so
the API can plan a job without weights or torch. Weights in pickle formats are refused, and code that comes with a
model is never run. Import-light.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from workers.engine.errors import (
    BadRequest,
    DatasetNotFound,
    HubUnavailable,
    ModelGated,
    ModelNotFound,
    UnsafeWeights,
    UnsupportedModel,
)
from workers.engine.manifest import sha256_file
from workers.engine.shards import MalformedFile, TensorFacts, read_header

if TYPE_CHECKING:
    from workers.engine.refs import DataRef
    from workers.engine.spec import ModelRef

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEXT_FILES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
_ID = "/model/id"


@dataclass(frozen=True)
class Sources:
    """The two folders a spec may name things in."""

    models_dir: Path
    data_dir: Path


@dataclass(frozen=True)
class ModelSource:
    """A model as far as it is known without its weights."""

    id: str
    config: Mapping[str, Any]
    """`config.json`."""
    tensors: Mapping[str, TensorFacts]
    files: Mapping[str, str]
    """Tensor name -> the safetensors file that holds it."""
    path: Path | None
    """Its folder; None for a hub model that is not downloaded."""
    hub_commit: str | None = None
    """Commit on the hub; None for a local model."""

    @cached_property
    def commit(self) -> str:
        """The hub's commit, or `sha256:` over the content of `config.json` and of every weight file.

        For a local model this reads the weights once per process and content (about 1 GB/s).
        """
        if self.hub_commit is not None:
            return self.hub_commit
        assert self.path is not None  # a model without a hub commit is a local folder
        digest = hashlib.sha256()
        for name in ["config.json", *sorted(set(self.files.values()))]:
            digest.update(f"{name} {file_digest(self.path / name)}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    @property
    def parameters(self) -> int:
        """All parameters; an output head that is stored although tied to the embedding is not counted twice."""
        tied = bool(self.config.get("tie_word_embeddings"))
        return sum(f.parameters for name, f in self.tensors.items() if not (tied and name == "lm_head.weight"))


def resolve_model(ref: ModelRef, sources: Sources) -> ModelSource:
    """Find the model `ref` names and read its config and weight headers; a hub revision becomes a commit.

    Raises ModelNotFound, ModelGated, UnsafeWeights (only pickle weights), UnsupportedModel (no usable config or
    broken weight files), HubUnavailable.
    """
    if ref.local:
        return _local_model(ref, sources)
    with _hub_errors(ref):
        if constants.HF_HUB_OFFLINE:
            folder = Path(snapshot_download(ref.id, revision=ref.revision, local_files_only=True))
            return _folder_model(ref, folder, hub_commit=folder.name)
        return _hub_model(ref)


def download(source: ModelSource) -> Path:
    """The folder that holds the model's files, fetched from the hub at the resolved commit if need be."""
    if source.path is not None:
        return source.path
    with _hub_errors(source):
        return Path(snapshot_download(source.id, revision=source.hub_commit, allow_patterns=_DOWNLOADED))


def resolve_dataset(ref: DataRef, sources: Sources, field: str) -> Path | None:
    """The local text file `ref` names, or None for a hub dataset, which is looked up unless the hub is switched off.

    Raises DatasetNotFound or HubUnavailable with `field`, the JSON pointer of `ref` in the spec.
    """
    if not ref.local:
        if not constants.HF_HUB_OFFLINE:
            _look_up_dataset(ref, field)
        return None
    field = f"{field}/dataset"
    path = sources.data_dir / ref.dataset
    if not path.name.endswith(TEXT_FILES):
        raise DatasetNotFound(
            f"{ref.dataset} is neither `owner/name` of a hub dataset nor a {', '.join(TEXT_FILES)} file",
            "name a text file in the data directory, with its suffix",
            field=field,
        )
    # Names are checked in the spec; this also refuses a link that leads out of the folder.
    if not path.is_file() or path.resolve().parent != sources.data_dir.resolve():
        raise DatasetNotFound(
            f"there is no file {ref.dataset} in the data directory",
            "put it there, or check the spelling",
            field=field,
        )
    return path


def _look_up_dataset(ref: DataRef, field: str) -> None:
    try:
        HfApi().dataset_info(ref.dataset, revision=ref.revision)
    except RevisionNotFoundError as error:
        raise DatasetNotFound(
            f"{ref.dataset} has no revision {ref.revision}", "check the revision", field=f"{field}/revision"
        ) from error
    except RepositoryNotFoundError as error:
        raise DatasetNotFound(
            f"the hub has no dataset {ref.dataset}, or it is private or gated",
            "check the name; for a private or gated one give the service a token (HF_TOKEN) that may read it",
            field=f"{field}/dataset",
        ) from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise HubUnavailable(
            f"the hub did not answer for {ref.dataset}: {error}",
            "try again later, or put the text as a file into the data directory",
            field=f"{field}/dataset",
        ) from error


def file_digest(path: Path) -> str:
    """Hex sha256 of a file, computed once per (path, size, modification time)."""
    status = path.stat()
    return _digest_of_version(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest_of_version(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


def _local_model(ref: ModelRef, sources: Sources) -> ModelSource:
    folder = sources.models_dir / ref.id
    if not folder.is_dir() or folder.resolve().parent != sources.models_dir.resolve():
        raise ModelNotFound(
            f"there is no folder {ref.id} in the models directory",
            "put the model there, or write `owner/name` for a model on the hub",
            field=_ID,
        )
    return _folder_model(ref, folder, hub_commit=None)


def _folder_model(ref: ModelRef, folder: Path, hub_commit: str | None) -> ModelSource:
    config = _config(ref.id, _read_json(folder, "config.json", ref.id))
    _refuse_without_safetensors(ref.id, {entry.name for entry in folder.iterdir()})
    try:
        if (folder / INDEX).is_file():
            wanted = _weight_map(_read_json(folder, INDEX, ref.id))
            headers = {file: read_header(folder / file) for file in sorted(set(wanted.values()))}
            tensors = {name: headers[file][name].facts for name, file in wanted.items()}
        else:
            tensors = {name: piece.facts for name, piece in read_header(folder / WEIGHTS).items()}
            wanted = dict.fromkeys(tensors, WEIGHTS)
    except (MalformedFile, FileNotFoundError, KeyError) as error:
        raise UnsupportedModel(
            f"{ref.id}: the weights are damaged or incomplete: {error}", "copy or download the model again", field=_ID
        ) from error
    return ModelSource(ref.id, config, tensors, wanted, folder, hub_commit)


def _hub_model(ref: ModelRef) -> ModelSource:
    info = HfApi().model_info(ref.id, revision=ref.revision)
    names = {sibling.rfilename for sibling in info.siblings or []}
    if "config.json" not in names:
        raise _no_config(ref.id)
    _refuse_without_safetensors(ref.id, names)
    config_file = Path(hf_hub_download(ref.id, "config.json", revision=info.sha))
    config = _config(ref.id, _read_json(config_file.parent, "config.json", ref.id))
    headers = HfApi().get_safetensors_metadata(ref.id, revision=info.sha)
    tensors = {
        name: TensorFacts(tensor.dtype, tuple(tensor.shape))
        for file in headers.files_metadata.values()
        for name, tensor in file.tensors.items()
        if name in headers.weight_map
    }
    return ModelSource(ref.id, config, tensors, dict(headers.weight_map), None, info.sha)


def _refuse_without_safetensors(model_id: str, names: set[str]) -> None:
    if WEIGHTS in names or INDEX in names:
        return
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        raise UnsafeWeights(
            f"{model_id} offers only pickle weights ({pickles[0]}), whose loading runs their author's code",
            "use a revision with safetensors weights, or convert them in a sandbox",
            field=_ID,
        )
    raise ModelNotFound(f"{model_id} has no {WEIGHTS}", "check that the upload or copy is complete", field=_ID)


def _no_config(model_id: str) -> ModelNotFound:
    return ModelNotFound(
        f"{model_id} has no config.json: it is not a transformers model", "check the id and the revision", field=_ID
    )


def _read_json(folder: Path, name: str, model_id: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _no_config(model_id) from None
    except ValueError as error:
        raise UnsupportedModel(
            f"{model_id}: {name} is not JSON: {error}", "copy or download the model again", field=_ID
        ) from error
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{model_id}: {name} is not a JSON object", "copy the model again", field=_ID)
    return value


def _config(model_id: str, config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config.get("model_type"), str):
        raise UnsupportedModel(
            f"{model_id}: config.json names no `model_type`", "use a model saved by transformers", field=_ID
        )
    return config


def _weight_map(index: dict[str, Any]) -> dict[str, str]:
    """Tensor name -> file, from a weight index. MalformedFile unless it names plain safetensors files."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedFile(f"{INDEX} has no weight_map")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise MalformedFile(f"{INDEX} names {file!r}, not a safetensors file beside it")
    return weight_map


@contextmanager
def _hub_errors(ref: ModelRef | ModelSource) -> Iterator[None]:
    """What the hub client raises, as what the user can do about it."""
    try:
        yield
    except BadRequest:
        raise
    except GatedRepoError as error:
        raise ModelGated(
            f"{ref.id} is gated: its owner decides who may download it",
            "accept its terms on the hub with the account whose token (HF_TOKEN) the service uses",
            field=_ID,
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no model {ref.id}, or it is private",
            "check the id; for a private model give the service a token (HF_TOKEN) that may read it",
            field=_ID,
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{ref.id} has no such revision", "check the branch, tag or commit", field="/model/revision"
        ) from error
    except SafetensorsParsingError as error:
        raise UnsupportedModel(
            f"{ref.id}: a weight file has no readable safetensors header: {error}", "use another revision", field=_ID
        ) from error
    except (LocalEntryNotFoundError, httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise HubUnavailable(
            f"the hub did not give {ref.id}: {error}",
            "try again later; without network, use a folder in the models directory",
            field=_ID,
        ) from error
    except EntryNotFoundError as error:
        raise ModelNotFound(f"{ref.id} lacks a file: {error}", "check the revision", field=_ID) from error

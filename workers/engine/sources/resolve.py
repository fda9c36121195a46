"""Find models and texts in folders of the service or on the hub, and describe them without loading.

A model is described by its config and the headers of its safetensors files, a few kilobytes whatever its size, so
the API can plan a job without weights or torch. Weights in pickle formats are refused, and code that comes with a
model is never run. Whatever is wrong with a model's files is an UnsupportedModel that names the file. Import-light.
"""

from __future__ import annotations

import glob
import hashlib
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from workers.engine.architectures import built, kinds
from workers.engine.architectures.canonical import canonical_facts, canonical_slices
from workers.engine.architectures.entries import check_config
from workers.engine.architectures.expected import check_tensors
from workers.engine.architectures.file_names import names_in_files
from workers.engine.architectures.per_layer import PER_LAYER, is_ours
from workers.engine.architectures.recognise import layout_of, recognise
from workers.engine.architectures.wrappers import decoder_config
from workers.engine.contracts.needed import needed
from workers.engine.errors import (
    FAULTS,
    NO_SPACE,
    BadRequest,
    DatasetNotFound,
    DiskFull,
    HubUnavailable,
    ModelGated,
    ModelNotFound,
    StorageUnavailable,
    UnsafeWeights,
    UnsupportedModel,
)
from workers.engine.files.companions import check_companions, companions, has_tokenizer, names_in
from workers.engine.files.manifest import sha256_file
from workers.engine.files.model_files import CONFIG_BYTES, INDEX_BYTES, BadFile, find, read_json, shown
from workers.engine.files.safetensors_bytes import (
    HEADER_BYTES,
    MalformedFile,
    Slice,
    TensorFacts,
    parse_header,
    read_header,
    same_bytes,
)

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Architecture, Layout
    from workers.engine.contracts.refs import DataRef, ModelRef

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEXT_FILES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ID = "/model/id"
_T = TypeVar("_T")
_MOST_TENSORS = 200_000
_FIRST_BYTES = 100_000
"""Bytes of a weight file fetched first from the hub: nearly all headers are shorter."""
_HUB_TIMEOUT_S = 10
_HASHED_AT_ONCE = 4
"""Weight files. One is as fast as a processor computes sha256."""


@dataclass(frozen=True)
class Sources:
    """The folders of models and texts that a spec may name files in."""

    models_dir: Path
    data_dir: Path


@dataclass(frozen=True)
class ModelSource:
    """A model, described without its weights."""

    id: str
    config: Mapping[str, Any]
    """`config.json`; of a wrapper its decoder's entries, with all under `WHOLE`."""
    stored: Mapping[str, TensorFacts]
    """Tensors as the files hold them."""
    files: Mapping[str, str]
    """Name of a stored tensor -> the safetensors file that holds it."""
    path: Path | None
    """Its folder; None for a hub model that is not downloaded."""
    hub_commit: str | None = None
    """Commit on the hub; None for a local model."""
    companions: tuple[str, ...] = ()
    """Files beside the weights that go with them, as paths below the folder."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Name of a stored tensor -> its name in the files, where that is another."""

    @property
    def folder(self) -> Path:
        """`path` of a model that is local or downloaded. Raises NotProvided."""
        return needed(self.path, "the folder of a model that is not downloaded")

    @cached_property
    def commit(self) -> str:
        """The hub's commit, or `sha256:` over the content of `config.json` and of every weight file.

        For a local model this reads the weights once per process and content (about 1 GB/s).
        """
        if self.hub_commit is not None:
            return self.hub_commit
        digest = hashlib.sha256()
        names = ["config.json", *sorted(set(self.files.values()))]
        paths = [path for name in names if (path := find(self.folder, name)) is not None]
        with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
            for name, found in zip(names, pool.map(file_digest, paths), strict=True):
                digest.update(f"{name} {found}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    @cached_property
    def layout(self) -> Layout:
        """The layout that names its tensors. Raises UnsupportedModel."""
        return layout_of(self.config, self.stored)

    @cached_property
    def checked_architecture(self) -> Architecture:
        """The structure of a model that can be edited at all. Raises UnsupportedModel."""
        architecture = recognise(self.config, self.stored)
        if is_ours(self.config):
            raise UnsupportedModel(
                f"{self.id}: its blocks differ in width (`{PER_LAYER}` in config.json), as results do whose blocks "
                "lost different numbers of heads or channels",
                "prune the model it was made of, or one whose blocks are alike",
                field=_ID,
            )
        check_config(self.config)
        check_tensors(architecture.layout, self.config, self.stored)
        return architecture

    @cached_property
    def tensors(self) -> Mapping[str, TensorFacts]:
        """Canonical tensors: every prunable matrix under a name of its own. Raises UnsupportedModel."""
        return canonical_facts(self.layout, built.sizes_of(self.config), self.stored)

    @cached_property
    def shares_head(self) -> bool:
        """Whether the output head is the embedding: the config ties them, and no head of other values is stored.

        transformers uses a stored head that differs, whatever the config says. For a hub model that is not downloaded,
        the config decides.
        """
        head, embedding = self.layout.head_weight, self.layout.embedding_weight
        if not built.ties_head(self.config):
            return False
        if self.path is None or head not in self.stored or embedding not in self.files or head not in self.files:
            return True
        pieces = _slices(self.folder, self.files, self.names)
        return same_bytes(pieces[head], pieces[embedding])

    @cached_property
    def outside(self) -> Sequence[TensorFacts]:
        """The tensors that belong to no block."""
        return [facts for name, facts in self.tensors.items() if self.layout.split(name) is None]

    @cached_property
    def tensor_bytes(self) -> int:
        """Of all tensors."""
        return sum(facts.bytes for facts in self.tensors.values())

    @cached_property
    def parameters(self) -> int:
        """All parameters; a stored output head that equals the embedding is not counted twice."""
        return sum(
            facts.parameters
            for name, facts in self.tensors.items()
            if not (self.shares_head and name == self.layout.head_weight)
        )


def resolve_model(ref: ModelRef, sources: Sources) -> ModelSource:
    """Find the model `ref` names and read its config and weight headers; a hub revision becomes a commit.

    Raises ModelNotFound, ModelGated, UnsafeWeights (only pickle weights), UnsupportedModel (another kind of model, no
    usable config or broken weight files), HubUnavailable.
    """
    with _bad_files(ref.id):
        if ref.local:
            return _local_model(ref, sources)
        with _hub_errors(ref):
            if constants.HF_HUB_OFFLINE:
                folder = Path(snapshot_download(ref.id, revision=ref.revision, local_files_only=True))
                return _folder_model(ref, folder, hub_commit=folder.name)
            return _hub_model(ref)


def download(source: ModelSource) -> Path:
    """The folder that holds the model's files, fetched from the hub at the resolved commit if need be.

    Of a hub model only files that are read or copied: `original/` and `consolidated.*` hold the same weights again.
    Raises UnsupportedModel for files that are not what they should be.
    """
    if source.path is not None:
        return source.path
    wanted = ["config.json", *source.companions, *sorted(set(source.files.values()))]
    if {*source.files.values()} != {WEIGHTS}:
        wanted.append(INDEX)
    with _bad_files(source.id), _hub_errors(source):
        patterns = [glob.escape(name) for name in wanted]
        folder = Path(snapshot_download(source.id, revision=source.hub_commit, allow_patterns=patterns))
        check_companions(folder, source.companions)
    return folder


def slices(source: ModelSource) -> Mapping[str, Slice]:
    """Where the bytes of each canonical tensor of a model on this disk lie, in the file that its index names."""
    with _bad_files(source.id):
        stored = _slices(source.folder, source.files, source.names)
        return canonical_slices(source.layout, built.sizes_of(source.config), stored)


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
    try:  # names are checked in the spec; this also refuses a link that leads out of the folder
        found = path.is_file() and path.resolve().parent == sources.data_dir.resolve()
    except OSError:
        found = False
    if not found:
        raise DatasetNotFound(
            f"there is no file {ref.dataset} in the data directory",
            "put it there, or check the spelling, and that the service may read the folder",
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
    if not folder.is_dir():  # which may be a link, made by the operator
        raise ModelNotFound(
            f"there is no folder {ref.id} in the models directory",
            "put the model there, or write `owner/name` for a model on the hub",
            field=_ID,
        )
    return _folder_model(ref, folder, hub_commit=None)


def _folder_model(ref: ModelRef, folder: Path, hub_commit: str | None) -> ModelSource:
    names = names_in(folder)
    config = _config(ref.id, folder, names)
    beside = companions(names)
    check_companions(folder, beside)
    if INDEX in names:
        files = _weight_map(read_json(folder, INDEX, INDEX_BYTES))
        pieces = _slices(folder, files, {})
    else:
        pieces = _header(folder, WEIGHTS)
        files = dict.fromkeys(pieces, WEIGHTS)
    tensors = {name: piece.facts for name, piece in pieces.items()}
    source = ModelSource(ref.id, decoder_config(config), tensors, files, folder, hub_commit, beside)
    return _under_their_names(source)


def _hub_model(ref: ModelRef) -> ModelSource:
    info = HfApi().model_info(ref.id, revision=ref.revision, files_metadata=True)
    commit = str(info.sha)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    folder = _fetched(ref.id, "config.json", commit, sizes, CONFIG_BYTES)
    config = _config(ref.id, folder, sizes)
    if INDEX in sizes:
        files = _weight_map(read_json(_fetched(ref.id, INDEX, commit, sizes, INDEX_BYTES), INDEX, INDEX_BYTES))
        if absent := sorted({*files.values()} - sizes.keys()):
            raise MalformedFile(f"{INDEX} names {shown(absent[0])}, which is missing")
    else:
        files = {}
    with ThreadPoolExecutor(8) as pool:
        wanted = sorted({*files.values()} or {WEIGHTS})
        headers = dict(zip(wanted, pool.map(lambda file: _hub_header(ref.id, file, commit), wanted), strict=True))
    files = files or dict.fromkeys(headers[WEIGHTS], WEIGHTS)
    tensors = {name: _held(headers[file], name, file) for name, file in files.items()}
    source = ModelSource(ref.id, decoder_config(config), tensors, files, None, commit, companions(sizes))
    return _under_their_names(source)


def _under_their_names(source: ModelSource) -> ModelSource:
    """The source with its tensors under the names by which transformers saves them."""
    names = names_in_files(source.config, source.stored)
    return replace(
        source,
        stored={name: source.stored[old] for name, old in names.items()},
        files={name: source.files[old] for name, old in names.items()},
        names={name: old for name, old in names.items() if name != old},
    )


def _fetched(model_id: str, name: str, commit: str, sizes: Mapping[str, int], limit: int) -> Path:
    """The folder in the cache that holds a small file of a hub model, fetched unless it is larger than it may be."""
    if sizes.get(name, 0) > limit:
        raise BadFile(f"{name} has {sizes[name]:,} bytes, where at most {limit:,} are read")
    if name not in sizes:
        kinds.refuse_without_config(model_id, sizes)
        raise _no_config(model_id)
    return Path(hf_hub_download(model_id, name, revision=commit)).parent


def _hub_header(model_id: str, file: str, commit: str) -> dict[str, TensorFacts]:
    url = hf_hub_url(model_id, file, revision=commit)

    def part(begin: int, end: int) -> bytes:
        headers = {**build_hf_headers(), "range": f"bytes={begin}-{end - 1}"}
        with get_session().stream("GET", url, headers=headers, timeout=_HUB_TIMEOUT_S) as response:
            hf_raise_for_status(response)
            skipped = 0 if response.status_code == HTTPStatus.PARTIAL_CONTENT else begin  # a mirror may send it all
            found = bytearray()
            for piece in response.iter_bytes():
                found += piece
                if len(found) >= skipped + end - begin:
                    break
        return bytes(found[skipped : skipped + end - begin])

    first = part(0, _FIRST_BYTES)
    length = struct.unpack("<Q", first[:8])[0] if len(first) >= 8 else -1
    if not 0 <= length <= HEADER_BYTES:
        raise MalformedFile(f"{shown(file)} has no readable safetensors header")
    content = first[8 : 8 + length]
    if len(content) < length:
        content += part(8 + len(content), 8 + length)
    return {name: facts for name, (facts, _) in parse_header(content, file)[0].items()}


def _header(folder: Path, file: str) -> dict[str, Slice]:
    path = find(folder, file)
    if path is None:
        raise MalformedFile(f"{shown(file)} is missing")
    return read_header(path)


def _slices(folder: Path, files: Mapping[str, str], names: Mapping[str, str]) -> dict[str, Slice]:
    headers = {file: _header(folder, file) for file in sorted(set(files.values()))}
    return {name: _held(headers[file], names.get(name, name), file) for name, file in files.items()}


def _held(header: Mapping[str, _T], name: str, file: str) -> _T:
    if name not in header:
        raise MalformedFile(f"{shown(file)} lacks `{shown(name)}`, which {INDEX} says it holds")
    return header[name]


def _refuse_without_weights(model_id: str, names: Collection[str]) -> None:
    if WEIGHTS in names or INDEX in names:
        return
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        raise UnsafeWeights(
            f"{model_id} offers only pickle weights ({shown(pickles[0])}), whose loading runs their author's code",
            "use a revision with safetensors weights, or convert them in a sandbox",
            field=_ID,
        )
    kinds.refuse_without_config(model_id, names)  # as a folder of GGUF files that keeps the config
    raise ModelNotFound(f"{model_id} has no {WEIGHTS}", "check that the upload or copy is complete", field=_ID)


def _no_config(model_id: str) -> ModelNotFound:
    return ModelNotFound(
        f"{model_id} has no config.json: it is not a transformers model", "check the id and the revision", field=_ID
    )


def _config(model_id: str, folder: Path, names: Collection[str]) -> dict[str, Any]:
    """`config.json` of a model, which neither it nor the names of the files show to be of an unsupported kind."""
    if "config.json" not in names:
        kinds.refuse_without_config(model_id, names)
        raise _no_config(model_id)
    config = read_json(folder, "config.json")
    if not isinstance(config.get("model_type"), str):
        raise BadFile("config.json names no `model_type`, as one saved by transformers does")
    kinds.refuse(config, names)
    _refuse_without_weights(model_id, names)
    if not has_tokenizer(names):
        raise BadFile("there is no tokenizer beside the weights (tokenizer.json, tokenizer.model or vocab.json)")
    return config


def _weight_map(index: dict[str, Any]) -> dict[str, str]:
    """Tensor name -> file, from a weight index. MalformedFile unless it names plain safetensors files."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedFile(f"{INDEX} has no weight_map")
    if len(weight_map) > _MOST_TENSORS:
        raise MalformedFile(f"{INDEX} names {len(weight_map):,} tensors, where at most {_MOST_TENSORS:,} are read")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise MalformedFile(f"{INDEX} names {shown(file)!r}, not a safetensors file beside it")
    return weight_map


@contextmanager
def _bad_files(model_id: str) -> Iterator[None]:
    """Translate BadFile into UnsupportedModel, and a disk's faults into DiskFull and StorageUnavailable."""
    try:
        yield
    except MalformedFile as error:
        raise UnsupportedModel(
            f"{model_id}: the weights are damaged or incomplete: {error}", "copy or download the model again", field=_ID
        ) from error
    except BadFile as error:
        raise UnsupportedModel(
            f"{model_id}: {error}", "copy or download the model again, as its authors saved it", field=_ID
        ) from error
    except OSError as error:
        if isinstance(error, httpx2.HTTPError | ConnectionError | TimeoutError):
            raise
        if error.errno in NO_SPACE:
            raise DiskFull(
                f"the disk has no room for {model_id}: {error.strerror}",
                "free space in the cache of the hub's client (HF_HOME)",
                field=_ID,
            ) from error
        if error.errno in FAULTS:
            raise StorageUnavailable(
                f"{model_id}: its files cannot be read or written just now: {error.strerror}",
                "check the disk of the models directory and of the hub's cache (HF_HOME), and the process's limits",
                field=_ID,
            ) from error
        raise UnsupportedModel(
            f"{model_id}: its files cannot be read: {shown(error.strerror or error)}",
            "check that the service may read the folder",
            field=_ID,
        ) from error


@contextmanager
def _hub_errors(ref: ModelRef | ModelSource) -> Iterator[None]:
    """Translate exceptions of the hub client into errors with a remedy."""
    try:
        yield
    except (BadRequest, BadFile):
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
    except (LocalEntryNotFoundError, httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise HubUnavailable(
            f"the hub did not give {ref.id}: {error}",
            "try again later; without network, use a folder in the models directory",
            field=_ID,
        ) from error
    except EntryNotFoundError as error:
        raise ModelNotFound(f"{ref.id} lacks a file: {error}", "check the revision", field=_ID) from error

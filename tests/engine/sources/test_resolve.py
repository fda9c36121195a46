"""Where models are found, what is refused, and what is said when the hub does not play along."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.hub import BOOKWORM, COMMIT, client, serving, sharded
from tests.helpers.small_models import load, spec_of
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import ModelNotFound, UnsafeWeights, UnsupportedModel
from workers.engine.model.loaded import load_model, outside_tensors
from workers.engine.sources.resolve import INDEX, ModelSource, Sources, resolve_model, slices


def resolve(sources: Sources, name: str = "some") -> ModelSource:
    return resolve_model(ModelRef(id=name), sources)


@pytest.fixture
def some(sources: Sources) -> Path:
    """A copy of the shipped model under the name `some`."""
    folder = sources.models_dir / "some"
    shutil.copytree(BOOKWORM, folder)
    return folder


class TestFolder:
    def test_is_described_from_headers(self, some: Path, sources: Sources) -> None:
        source = resolve(sources)
        assert source.parameters == 6_951_168
        assert source.config["model_type"] == "llama"
        assert source.tensors["model.embed_tokens.weight"].shape == (4096, 256)
        assert set(source.files.values()) == {"model.safetensors"}
        assert source.path == some

    def test_commit_is_the_contents(self, some: Path, sources: Sources) -> None:
        before = resolve(sources).commit
        assert re.fullmatch("sha256:[0-9a-f]{64}", before)
        os.utime(some / "model.safetensors")
        (some / "README.md").write_text("not part of the model")
        assert resolve(sources).commit == before
        weights = bytearray((some / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (some / "model.safetensors").write_bytes(weights)
        assert resolve(sources).commit != before

    @pytest.mark.parametrize(
        ("differs", "tied", "twice"), [(False, True, False), (True, True, True), (False, False, True)]
    )
    def test_a_stored_head_counts_unless_it_is_the_embedding(
        self, differs: bool, tied: bool, twice: bool, some: Path, sources: Sources
    ) -> None:
        once = resolve(sources).parameters
        weights = load_file(some / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["lm_head.weight"][5, 7] += differs
        save_file(weights, some / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((some / "config.json").read_text()) | {"tie_word_embeddings": tied}
        (some / "config.json").write_text(json.dumps(config))
        assert resolve(sources).parameters == once + 4096 * 256 * twice
        whole = load_model(some, torch.device("cpu"), torch.float32)
        assert sum(parameter.numel() for parameter in whole.parameters()) == once + 4096 * 256 * twice

    def test_may_have_an_index(self, some: Path, sources: Sources) -> None:
        whole = resolve(sources)
        (some / "model.safetensors").rename(some / "model-00001-of-00001.safetensors")
        weight_map = dict.fromkeys(whole.tensors, "model-00001-of-00001.safetensors")
        (some / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        assert resolve(sources).tensors == whole.tensors

    def test_the_index_says_which_copy_counts(self, some: Path, sources: Sources) -> None:
        weights = load_file(some / "model.safetensors")
        (some / "model.safetensors").unlink()
        norm = "model.norm.weight"
        save_file(weights, some / "a.safetensors")
        save_file({norm: torch.full_like(weights[norm], 9.0)}, some / "b.safetensors")  # the last in order, and stale
        (some / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weights, "a.safetensors")}))
        model = load(spec_of(model={"id": "some"}), sources)
        assert torch.equal(outside_tensors(model)[norm], weights[norm])
        whole = load_model(some, torch.device("cpu"), torch.bfloat16)
        assert torch.equal(whole.get_parameter(norm), weights[norm])

    def test_missing(self, sources: Sources) -> None:
        with pytest.raises(ModelNotFound, match="no folder some in the models directory"):
            resolve(sources)

    def test_the_folder_may_be_a_link(self, sources: Sources) -> None:
        (sources.models_dir / "some").symlink_to(BOOKWORM)
        assert resolve(sources).parameters == 6_951_168

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "LICENSE"])
    def test_a_link_out_of_the_folder_is_not_followed(self, name: str, some: Path, sources: Sources) -> None:
        (some / name).unlink(missing_ok=True)
        (some / name).symlink_to(BOOKWORM / name if name != "LICENSE" else "/etc/hostname")
        with pytest.raises(UnsupportedModel, match=rf"{name} is a link that leads out of the model's folder"):
            resolve(sources)

    def test_a_link_within_the_folder_is(self, some: Path, sources: Sources) -> None:
        (some / "model.safetensors").rename(some / "weights")
        (some / "model.safetensors").symlink_to("weights")
        assert resolve(sources).parameters == 6_951_168

    def test_only_pickles(self, some: Path, sources: Sources) -> None:
        (some / "model.safetensors").rename(some / "pytorch_model.bin")
        with pytest.raises(UnsafeWeights, match=r"only pickle weights \(pytorch_model\.bin\)"):
            resolve(sources)

    def test_no_weights(self, some: Path, sources: Sources) -> None:
        (some / "model.safetensors").unlink()
        with pytest.raises(ModelNotFound, match=r"has no model\.safetensors"):
            resolve(sources)

    def test_no_config(self, some: Path, sources: Sources) -> None:
        (some / "config.json").unlink()
        with pytest.raises(ModelNotFound, match=r"no config\.json"):
            resolve(sources)

    @pytest.mark.parametrize(
        ("config", "message"), [("{", "not JSON"), ("[]", "not a JSON object"), ("{}", "model_type")]
    )
    def test_bad_config(self, config: str, message: str, some: Path, sources: Sources) -> None:
        (some / "config.json").write_text(config)
        with pytest.raises(UnsupportedModel, match=message):
            resolve(sources)

    @pytest.mark.parametrize("kept", [0, 4, 1000, 10_000_000])
    def test_cut_short(self, kept: int, some: Path, sources: Sources) -> None:
        os.truncate(some / "model.safetensors", kept)
        with pytest.raises(UnsupportedModel, match="damaged or incomplete"):
            resolve(sources)

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ({}, "no weight_map"),
            ({"weight_map": {"a": "../../other.safetensors"}}, "not a safetensors file beside it"),
            ({"weight_map": {"a": "pytorch_model.bin"}}, "not a safetensors file beside it"),
            ({"weight_map": {"a": "absent.safetensors"}}, r"absent\.safetensors"),
            ({"weight_map": {"no.such.tensor": "model.safetensors"}}, r"no\.such\.tensor"),
        ],
    )
    def test_bad_index(self, index: dict[str, object], message: str, some: Path, sources: Sources) -> None:
        (some / INDEX).write_text(json.dumps(index))
        with pytest.raises(UnsupportedModel, match=message):
            resolve(sources)


NOBODY = "http://127.0.0.1:9"
RESOLVE = """
import json, resource, sys
from pathlib import Path
from workers.engine.errors import EngineError
from workers.engine.sources.resolve import Sources, resolve_model, download
from workers.engine.sources import resolve
from workers.engine.contracts.refs import ModelRef
resolve._FIRST_BYTES = 1000 if "org/whole" in sys.argv else resolve._FIRST_BYTES
try:
    source = resolve_model(ModelRef(id=sys.argv[1], revision=sys.argv[2]), Sources(Path("."), Path(".")))
    found = {"commit": source.commit, "parameters": source.parameters, "path": str(source.path)}
    if "limited" in sys.argv:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    if "download" in sys.argv:
        found["files"] = sorted(file.name for file in download(source).iterdir())
except EngineError as error:
    found = {"code": error.code, "field": error.field, "message": error.message, "retryable": error.retryable}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with serving() as endpoint:
        yield endpoint


class TestHub:
    def test_resolves_a_revision_to_a_commit_without_weights(self, hub: str, tmp_path: Path) -> None:
        found = client(RESOLVE, "org/good", "main", endpoint=hub, home=tmp_path)
        assert found == {"commit": COMMIT, "parameters": 6_951_168, "path": "None"}
        assert not list(tmp_path.rglob("*.safetensors"))

    def test_downloads_that_commit_and_then_works_offline(self, hub: str, tmp_path: Path) -> None:
        found = client(RESOLVE, "org/good", COMMIT, "download", endpoint=hub, home=tmp_path)
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found["files"])
        found = client(RESOLVE, "org/good", COMMIT, endpoint=NOBODY, home=tmp_path, offline="1")
        assert found["commit"] == COMMIT

    def test_only_what_the_index_names_and_what_travels_is_downloaded(self, hub: str, tmp_path: Path) -> None:
        found = client(RESOLVE, "org/sharded", COMMIT, "download", endpoint=hub, home=tmp_path)
        assert found["parameters"] == 6_951_168
        assert found["files"] == [
            "LICENSE", "NOTICE.txt", "USE_POLICY.md", "a.safetensors", "additional_chat_templates", "b.safetensors",
            "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
            "tokenizer.model", "tokenizer_config.json",
        ]  # fmt: skip
        # And the folder that the cache made of them, links into its blobs, is read as any other.
        snapshot = next(tmp_path.rglob("model.safetensors.index.json")).parent
        models = Sources(tmp_path / "models", tmp_path)
        models.models_dir.mkdir()
        (models.models_dir / "linked").symlink_to(snapshot)
        assert (snapshot / "config.json").is_symlink()
        source = resolve(models, "linked")
        norm = slices(source)["model.norm.weight"]
        assert norm.file.read_bytes() == sharded()["b.safetensors"]
        assert source.companions == (
            "LICENSE", "NOTICE.txt", "USE_POLICY.md", "additional_chat_templates/tool.jinja", "generation_config.json",
            "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "revision", "code", "field"),
        [
            ("org/missing", "main", "model_not_found", "/model/id"),
            ("org/gated", "main", "model_gated", "/model/id"),
            ("org/pickles", "main", "unsafe_weights", "/model/id"),
            ("org/bare", "main", "model_not_found", "/model/id"),
            ("org/good", "nowhere", "model_not_found", "/model/revision"),
            ("org/down", "main", "hub_unavailable", "/model/id"),
        ],
    )
    def test_refusals(self, name: str, revision: str, code: str, field: str, hub: str, tmp_path: Path) -> None:
        found = client(RESOLVE, name, revision, endpoint=hub, home=tmp_path)
        assert (found["code"], found["field"]) == (code, field)
        assert found["retryable"] == (code == "hub_unavailable")

    def test_a_mirror_that_knows_no_ranges(self, hub: str, tmp_path: Path) -> None:
        found = client(RESOLVE, "org/whole", "main", endpoint=hub, home=tmp_path)
        assert found["parameters"] == 6_951_168

    def test_a_disk_that_takes_no_more_is_no_fault_of_the_model(self, hub: str, tmp_path: Path) -> None:
        found = client(RESOLVE, "org/good", "main", "limited", "download", endpoint=hub, home=tmp_path)
        assert (found["code"], found["retryable"]) == ("storage_unavailable", True)

    @pytest.mark.parametrize("offline", ["0", "1"])
    def test_nobody_there(self, offline: str, tmp_path: Path) -> None:
        found = client(RESOLVE, "org/good", "main", endpoint=NOBODY, home=tmp_path, offline=offline)
        assert found["code"] == "hub_unavailable"

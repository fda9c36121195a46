"""Hostile model folders, through the API's dry run and the worker's load: no answer is 500, no failure is a bug.

Both refuse the same folders in the same words, but for what only transformers can read (tokenizers).
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from transformers import LlamaConfig, LlamaForCausalLM

from app.main import create_app
from app.settings import Settings
from tests.helpers.api import make_key
from tests.helpers.small_models import EXAMPLES, SIZES, load
from workers.engine.errors import DatasetTooShort, EngineError, InvalidSpec, UnsupportedModel
from workers.engine.methods.evaluate.continuations import greedy
from workers.engine.methods.evaluate.harness import known_tokens_only
from workers.engine.model.loaded import load_model
from workers.engine.model.reading import load_tokens
from workers.engine.model.windows import consecutive_windows, wanted_of
from workers.engine.sources.resolve import INDEX, Sources
from workers.engine.spec import CompressionSpec
from workers.engine.stages.calibrate import refuse_unknown_tokens

REFUSALS = {"unsupported_model", "model_not_found", "unsafe_weights", "sequence_too_long"}
WEIGHTS = "model.safetensors"
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
Break = Callable[[Path], object]


@dataclass
class Bench:
    """An API, a folder of models, and one sound model to make broken ones of."""

    client: TestClient
    sources: Sources
    sound: Path

    def folder(self, name: str) -> Path:
        """A new copy of the sound model; the one before of that name is removed."""
        folder = self.sources.models_dir / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.unlink(missing_ok=True) if folder.is_symlink() else None
        return Path(shutil.copytree(self.sound, folder))

    def planned(self, name: str, **parts: Any) -> tuple[int, dict[str, Any]]:
        """Status and body of a dry run."""
        answer = self.client.post("/v1/jobs?dry_run=true", json={"spec": spec_of(name, **parts)})
        return answer.status_code, answer.json()

    def loaded(self, name: str, **parts: Any) -> EngineError | None:
        """The error of the worker's first stage, if it refuses the model."""
        try:
            load(CompressionSpec.model_validate(spec_of(name, **parts)), self.sources)
        except EngineError as error:
            return error
        return None

    def refused(self, name: str, **parts: Any) -> str:
        """The one refusal of the dry run and the worker."""
        status, body = self.planned(name, **parts)
        assert status == 422, body
        assert body["code"] in REFUSALS, body
        error = self.loaded(name, **parts)
        assert error is not None
        assert body["code"] == error.code
        assert body["detail"] == f"{error.message}: {error.hint}"
        assert len(body["detail"]) < 1000
        return str(body["detail"])


def spec_of(name: str, **parts: Any) -> dict[str, Any]:
    return {
        "model": {"id": name},
        "score": {"method": "magnitude"},
        "prune": {"method": "mask", "sparsity": 0.5},
    } | parts


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Bench]:
    home = tmp_path_factory.mktemp("attack")
    sound = home / "sound"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 4096, "num_hidden_layers": 2})).save_pretrained(sound)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLES / "models/bookworm-7m" / file, sound)
    sources = Sources(home / "models", home / "data")
    sources.models_dir.mkdir()
    sources.data_dir.mkdir()
    shutil.copyfile(migrated_sqlite, home / "espalier.db")
    found = Settings(
        home=home / "home",
        database_url=f"sqlite:///{home / 'espalier.db'}",
        secret_key="for tests only",
        models_dir=sources.models_dir,
        data_dir=sources.data_dir,
        log_level="error",
    )
    with TestClient(create_app(found), raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {make_key(client.app.state.services, 'ours')[0]}"  # type: ignore
        yield Bench(client, sources, sound)


# -- what is done to a folder --------------------------------------------------------------------------------------


def config(**changes: Any) -> Break:
    """Entries of config.json set, or removed where they are `...`."""

    def apply(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text()) | changes
        kept = {name: entry for name, entry in found.items() if entry is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return apply


def raw(name: str, content: bytes | str) -> Break:
    """A file of that content."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def link(name: str, target: str) -> Break:
    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return apply


def instead(name: str, make: Callable[[Path], object]) -> Break:
    """Something else in place of a file."""

    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return apply


def sized(size: int) -> Callable[[Path], None]:
    """A file of so many zeros, which takes no room."""

    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return make


def header(change: Callable[[dict[str, Any]], object]) -> Break:
    """The header of the weights changed; the tensors' bytes stay."""

    def apply(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        found = json.loads(content[8 : 8 + length])
        replaced = change(found)
        encoded = replaced if isinstance(replaced, bytes) else json.dumps(found).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])

    return apply


def tensors(change: Callable[[dict[str, Any]], object]) -> Break:
    """The weights changed and saved soundly."""

    def apply(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / WEIGHTS)

    return apply


def index(weight_map: Any) -> Break:
    return raw(INDEX, json.dumps({"weight_map": weight_map}))


def only(*names: str) -> Break:
    """Nothing but empty files of these names."""

    def apply(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        for name in names:
            (folder / name).touch()

    return apply


def both(*parts: Break) -> Break:
    return lambda folder: [part(folder) for part in parts]


Q = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.layers.0.input_layernorm.weight"


def crowd(count: int, name: str) -> Callable[[dict[str, Any]], None]:
    """So many more tensors of no size, for which there is room in any file."""
    empty = {"dtype": "F32", "shape": [0, 0], "data_offsets": [0, 0]}
    return lambda found: found.update({name.format(i, i // 10): empty for i in range(count)})


def many(count: int) -> Callable[[dict[str, Any]], bytes]:
    """A header of so many empty tensors."""

    def header_of(_: dict[str, Any]) -> bytes:
        rows = (f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
        return b"{" + ",".join(rows).encode() + b"}"

    return header_of


FILES: dict[str, tuple[Break, str]] = {
    "config-fifo": (instead("config.json", os.mkfifo), "not a regular file"),
    "config-folder": (instead("config.json", Path.mkdir), "not a regular file"),
    "config-missing": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config-empty": (raw("config.json", ""), "not JSON"),
    "config-list": (raw("config.json", "[]"), "not a JSON object"),
    "config-deep": (raw("config.json", DEEP), "nested more than 64 deep"),
    "config-deep-lists": (raw("config.json", b'{"model_type":"llama","a":' + b"[" * 90 + b"]" * 90 + b"}"), "nested"),
    "config-latin-1": (raw("config.json", b'{"model_type": "\xe9"}'), "not JSON"),
    "config-huge": (instead("config.json", sized(2**33)), "bytes, where at most"),
    "config-5000-digits": (raw("config.json", '{"model_type":"llama","a":' + "9" * 5000 + "}"), "integer of 5000"),
    "config-surrogate": (raw("config.json", r'{"model_type":"\ud800"}'), "not Unicode"),
    "config-nul": (raw("config.json", r'{"model_type":"a\u0000b"}'), "not Unicode"),
    "config-zeros": (raw("config.json", b"\0" * 4096), "not JSON"),
    "config-link-out": (link("config.json", "/etc/hostname"), "leads out of the model's folder"),
    "config-link-loop": (link("config.json", "config.json"), "cannot be read"),
    "config-link-nowhere": (link("config.json", "gone"), "link to nothing"),
    "config-link-proc": (link("config.json", "/proc/self/environ"), "leads out"),
    "weights-link-out": (link(WEIGHTS, "/dev/zero"), "leads out"),
    "weights-fifo": (instead(WEIGHTS, os.mkfifo), "not a regular file"),
    "weights-folder": (instead(WEIGHTS, Path.mkdir), "not a regular file"),
    "weights-missing": (lambda f: (f / WEIGHTS).unlink(), "has no model.safetensors"),
    "weights-empty": (raw(WEIGHTS, ""), "too short"),
    "weights-cut": (lambda f: os.truncate(f / WEIGHTS, 5000), "damaged or incomplete"),
    "weights-longer": (lambda f: os.truncate(f / WEIGHTS, 2**21), "should be"),
    "weights-sparse": (instead(WEIGHTS, sized(2**40)), "damaged"),
    "weights-header-2-to-63": (raw(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"), "announces a header"),
    "licence-link-out": (link("LICENSE", "/etc/shadow"), "LICENSE is a link that leads out"),
    "notice-folder": (instead("NOTICE", Path.mkdir), "NOTICE is not a regular file"),
    "template-link-out": (
        both(lambda f: (f / "additional_chat_templates").mkdir(), link("additional_chat_templates/a.jinja", "/etc")),
        "a.jinja is a link that leads out",
    ),
    "templates-link-out": (lambda f: (f / "additional_chat_templates").symlink_to(EXAMPLES), "leads out"),
    "generation-link-out": (link("generation_config.json", "/etc/hostname"), "leads out"),
    "generation-deep": (raw("generation_config.json", DEEP), "generation_config.json is nested"),
    "generation-list": (raw("generation_config.json", "[1]"), "generation_config.json is not a JSON object"),
    "generation-text": (raw("generation_config.json", '{"eos_token_id": "x"}'), "`eos_token_id` is x, not a token id"),
    "generation-null": (raw("generation_config.json", '{"eos_token_id": [1, null]}'), "not a token id"),
    "tokenizer-link-out": (link("tokenizer.json", "/etc/hostname"), "leads out"),
    "tokenizer-fifo": (instead("tokenizer.json", os.mkfifo), "not a regular file"),
    "tokenizer-missing": (lambda f: (f / "tokenizer.json").unlink(), "there is no tokenizer"),
    "tokenizer-huge": (instead("tokenizer.json", sized(2**30)), "where at most"),
    "tokenizer-config-deep": (raw("tokenizer_config.json", DEEP), "tokenizer_config.json is nested"),
    "tokenizer-config-text": (raw("tokenizer_config.json", '"x"'), "not a JSON object"),
    "special-tokens-folder": (instead("special_tokens_map.json", Path.mkdir), "not a regular file"),
    "many-files": (lambda f: [(f / f"{i}").touch() for i in range(10_001)], "more than 10,000 files"),
    "pickles": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "only pickle weights"),
    "pickle-with-a-newline": (lambda f: (f / WEIGHTS).rename(f / "a\nb.bin"), "only pickle weights"),
    "gguf": (only("model-Q4_K_M.gguf"), "GGUF"),
    "adapter": (only("adapter_config.json", "adapter_model.safetensors"), "it is an adapter"),
    "diffusers": (only("model_index.json"), "diffusers"),
    "authors-format": (only("params.json", "consolidated.safetensors"), "its author's own format"),
    "nothing": (only(), "no config.json"),
}  # fmt: skip

HEADERS: dict[str, tuple[Break, str]] = {
    "shape-1e999": (header(lambda h: h[Q].update(shape=[float("inf"), 1])), "has the shape [inf, 1]"),
    "shape-negative": (header(lambda h: h[Q].update(shape=[-32, -32])), "has the shape"),
    "shape-true": (header(lambda h: h[Q].update(shape=[True, 1024])), "has the shape"),
    "shape-text": (header(lambda h: h[Q].update(shape="32")), "has the shape"),
    "shape-null": (header(lambda h: h[Q].update(shape=None)), "has the shape"),
    "shape-many-axes": (header(lambda h: h[Q].update(shape=[1] * 1000)), "has the shape"),
    "shape-huge": (header(lambda h: h[Q].update(shape=[10**17] * 8)), "cannot take"),
    "shape-5000-digits": (header(lambda _: b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"), "integer of 5000"),
    "shape-other-product": (header(lambda h: h[Q].update(shape=[32, 31])), "cannot take"),
    "offsets-overlap": (header(lambda h: h[Q].update(data_offsets=h[EMBEDDING]["data_offsets"])), "cannot take"),
    "offsets-backwards": (header(lambda h: h[Q].update(data_offsets=[4096, 0])), "cannot take"),
    "offsets-gap": (header(lambda h: h.pop(NORM)), "those before it end at"),
    "offsets-same": (
        header(lambda h: h[NORM].update(data_offsets=h["model.norm.weight"]["data_offsets"])), "before it end at"),
    "offsets-three": (header(lambda h: h[Q].update(data_offsets=[0, 1, 2])), "data_offsets"),
    "dtype-unknown": (header(lambda h: h[Q].update(dtype="Q4_K")), "unknown dtype"),
    "dtype-list": (header(lambda h: h[Q].update(dtype=["F32"])), "unknown dtype"),
    "entry-list": (header(lambda h: h.update({Q: [1, 2]})), "has no dtype, shape and data_offsets"),
    "entry-null": (header(lambda h: h.update({Q: None})), "has no dtype"),
    "header-list": (header(lambda _: b"[1,2,3]"), "not a JSON object"),
    "header-deep": (header(lambda _: DEEP), "nested"),
    "header-surrogate": (header(lambda h: h.update({"\ud800": h.pop(Q)})), "not Unicode"),
    "header-nul": (header(lambda h: h.update({"a\0b": h.pop(Q)})), "not Unicode"),
    "header-long-name": (header(lambda h: h.update({"x" * 10**6: h.pop(Q)})), ""),
    "header-many": (header(crowd(30_000, "t{0}")), "has no place"),
    "header-many-in-a-block": (header(crowd(30_000, "model.layers.1.t{0}")), "also has the matrix `t0`"),
    "header-many-blocks": (both(config(num_hidden_layers=3002), header(crowd(30_000, "model.layers.{1}.t{0}"))), ""),
    "header-too-many": (header(many(400_000)), "announces a header"),
    "header-empty": (both(raw(WEIGHTS, struct.pack("<Q", 2) + b"{}")), "under none of the paths"),
    "block-number-huge": (
        header(lambda h: h.update({"model.layers.99999999999999999999.a": h.pop(NORM)})), "the weights lack"),
    "block-number-arabic": (header(lambda h: h.update({"model.layers.\u0661.a": h.pop(NORM)})), "the weights lack"),
    "index-empty": (index({}), "no weight_map"),
    "index-list": (index([1]), "no weight_map"),
    "index-deep": (raw(INDEX, DEEP), "nested"),
    "index-upwards": (index({Q: "../sound/model.safetensors"}), "not a safetensors file beside it"),
    "index-absent": (index({Q: "absent.safetensors"}), "absent.safetensors is missing"),
    "index-number": (index({Q: 5}), "not a safetensors file beside it"),
    "index-lacks": (index({Q: WEIGHTS}), "no `self_attn.k_proj` in block 0"),
    "index-other-names": (index({"x": WEIGHTS}), "lacks `x`"),
    "index-fifo": (instead(INDEX, os.mkfifo), "not a regular file"),
    "index-to-a-link-out": (both(link("a.safetensors", "/dev/zero"), index({Q: "a.safetensors"})), "leads out"),
    "index-many": (lambda folder: index({f"t{i}": WEIGHTS for i in range(250_000)})(folder), "where at most 200,000"),
}  # fmt: skip

MISFITS: dict[str, tuple[Break, str]] = {
    "vocabulary": (config(vocab_size=4000), "`lm_head.weight` should be [4000, 32] by config.json, and is [4096, 32]"),
    "hidden": (config(hidden_size=64), "should be [4096, 64]"),
    "mlp": (config(intermediate_size=96), "down_proj.weight` should be [32, 96]"),
    "heads": (config(num_attention_heads=8), "o_proj.weight` should be [32, 64] by config.json"),
    "key-heads": (config(num_key_value_heads=4), "k_proj.weight` should be [32, 32]"),
    "key-heads-odd": (config(num_key_value_heads=3), "cannot share 3 key/value heads"),
    "head-dim": (config(head_dim=16), "should be"),
    "head-dim-odd": (config(head_dim=7), "heads of 7 dimensions"),
    "head-dim-zero": (config(head_dim=0), "`head_dim` is 0"),
    "blocks": (config(num_hidden_layers=3), "config.json says 3 blocks, the weights hold 2"),
    "blocks-2-to-62": (config(num_hidden_layers=2**59), "the weights hold 2"),
    "blocks-none": (config(num_hidden_layers=None), "no `num_hidden_layers`"),
    "blocks-missing": (config(num_hidden_layers=...), "no `num_hidden_layers`"),
    "heads-missing": (config(num_attention_heads=...), "no `num_attention_heads`"),
    "vocabulary-missing": (config(vocab_size=...), "no `vocab_size`"),
    "heads-zero": (config(num_attention_heads=0), "`num_attention_heads` is 0"),
    "heads-negative": (config(num_attention_heads=-4), "`num_attention_heads` is -4"),
    "heads-text": (config(num_attention_heads="4"), '`num_attention_heads` is "4", not of type int'),
    "heads-float": (config(num_attention_heads=4.0), "not of type int"),
    "heads-true": (config(num_attention_heads=True), "not of type int"),
    "hidden-list": (config(hidden_size=[32]), "not of type int"),
    "context-huge": (config(max_position_embeddings=10**17), "`max_position_embeddings` is"),
    "context-text": (config(max_position_embeddings="long"), "max_position_embeddings"),
    "activation": (config(hidden_act="os.system"), "transformers does not know"),
    "activation-with-weights": (config(hidden_act="prelu"), "which transformers does not know or gives weights"),
    "activation-list": (config(hidden_act=["silu"]), "not of type str"),
    "epsilon-infinite": (raw("config.json", '{"model_type": "llama", "rms_norm_eps": 1e999}'), ""),
    "number-infinite": (config(anything=float("inf")), "not finite"),
    "number-nan": (config(anything=[{"a": float("nan")}]), "not finite"),
    "epsilon-text": (config(rms_norm_eps="small"), "`rms_norm_eps`"),
    "dtype": (config(dtype="evil"), "`dtype` is \"evil\""),
    "torch-dtype-list": (config(torch_dtype=[1], dtype=...), "`torch_dtype` is [1]"),
    "dropout": (config(attention_dropout=7), "not between 0 and 1"),
    "initializer": (config(initializer_range=-1.0), "not between 0 and 1"),
    "padding": (config(pad_token_id=5000), "beyond the vocabulary"),
    "tied-text": (config(tie_word_embeddings="yes"), "not of type bool"),
    "layer-types": (config(layer_types=["full_attention"]), "not a list of 2 elements"),
    "layer-types-unknown": (config(layer_types=["full_attention", "evil"]), '`layer_types` names "evil"'),
    "layer-types-text": (config(layer_types="full"), "not a list of 2"),
    "rope-kind": (config(rope_parameters={"rope_type": "evil"}), "no kind of rotary embedding"),
    "rope-text": (config(rope_parameters="yarn"), "not of type dict or null"),
    "rope-factor": (config(rope_parameters={"rope_type": "linear"}), "linear needs `factor`"),
    "rope-factor-text": (config(rope_scaling={"type": "linear", "factor": "2"}), "not a number above 0"),
    "rope-factor-nested": (
        config(rope_parameters={"rope_type": "yarn", "factor": {}, "rope_theta": 1e4}), "`factor` is {}"),
    "rope-factor-null": (config(rope_parameters={"rope_type": "linear", "factor": None}), "`factor` is null"),
    "rope-partial": (
        config(rope_parameters={"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5}), "whole heads"),
    "rope-original-outside": (
        config(rope_parameters={"rope_type": "yarn", "factor": 2}, original_max_position_embeddings=0), "above 0"),
    "rope-partial-outside": (
        config(rope_scaling={"rope_type": "dynamic", "factor": 2}, partial_rotary_factor=0.5, rope_parameters=...),
        "rotates whole heads"),
    "rope-partial-null": (
        config(rope_parameters={"rope_type": "linear", "factor": 2, "partial_rotary_factor": None}), "is null"),
    "rope-theta-null": (config(rope_parameters=..., rope_theta=None), "`rope_theta` is null"),
    "rope-theta-1": (config(rope_parameters={"rope_type": "yarn", "factor": 2, "rope_theta": 1}), "other than 1"),
    "rope-theta-true": (config(rope_parameters={"rope_type": "yarn", "factor": 2, "rope_theta": True}), "is true"),
    "rope-original": (
        config(rope_parameters={"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 0}), "above 0"),
    "rope-frequencies": (
        config(rope_parameters={"rope_type": "llama3", "factor": 2, "low_freq_factor": 0, "high_freq_factor": 4}),
        "`low_freq_factor` is 0"),
    "rope-lengths": (
        config(rope_parameters={"rope_type": "longrope", "factor": 2, "short_factor": [1] * 4, "long_factor": [1] * 3}),
        "`long_factor` has 3 factors, for 4 pairs"),
    "rope-pairs": (
        config(head_dim=2, num_attention_heads=16, num_key_value_heads=8,
               rope_parameters={"rope_type": "dynamic", "factor": 2}),
        "more than 2 rotated"),
    "end-floats": (config(eos_token_id=[1.0, 2.0]), "no token ids"),
    "end-null": (config(eos_token_id=[1, None]), "no token ids"),
    "rope-theta": (config(rope_parameters={"rope_type": "default", "rope_theta": 0}), "not a number above 0"),
    "rope-old-theta": (config(rope_theta="x", rope_parameters=...), "`rope_theta` is"),
    "biases": (config(attention_bias=True), "the weights lack `model.layers.0.self_attn.k_proj.bias`"),
    "architectures-text": (config(architectures="Llama"), "`architectures` is not a list"),
    "other-family": (config(model_type="qwen3"), "the weights lack `model.layers.0.self_attn.k_norm.weight`"),
    "other-family-2": (config(model_type="gemma2"), "config.json"),
    "untied-head-missing": (tensors(lambda t: t.pop("lm_head.weight")), "hold no `lm_head.weight`"),
    "norm-missing": (tensors(lambda t: t.pop("model.norm.weight")), "the weights lack `model.norm.weight`"),
    "norm-wide": (tensors(lambda t: t.update({NORM: torch.ones(33)})), "should be [32]"),
    "norm-integer": (tensors(lambda t: t.update({NORM: torch.ones(32, dtype=torch.int32)})), "stored as I32"),
    "matrix-integer": (tensors(lambda t: t.update({Q: torch.ones(32, 32, dtype=torch.int8)})), "not a float matrix"),
    "matrix-double": (tensors(lambda t: t.update({Q: t[Q].double()})), "not a float matrix"),
    "matrix-flat": (tensors(lambda t: t.update({Q: t[Q].flatten()})), "no `self_attn.q_proj`"),
    "embedding-flat": (tensors(lambda t: t.update({EMBEDDING: t[EMBEDDING].flatten()})), "no matrix `model.embed"),
    "embedding-half": (tensors(lambda t: t.update({EMBEDDING: t[EMBEDDING][:2048]})), "should be [4096, 32]"),
    "vector-unknown": (
        tensors(lambda t: t.update({"model.layers.1.self_attn.lambda_q1": torch.ones(8)})), "has no place"),
    "vector-outside": (tensors(lambda t: t.update({"model.scale": torch.ones(1)})), "has no place"),
    "bias-unknown": (tensors(lambda t: t.update({"lm_head.bias": torch.ones(4096)})), "has no place"),
    "classifier": (
        both(config(architectures=["LlamaForSequenceClassification"]),
             tensors(lambda t: (t.pop("lm_head.weight"), t.update({"score.weight": torch.ones(2, 32)})))),
        "a classifier or reward model"),
    "classifier-unsaid": (
        tensors(lambda t: t.update({"score.weight": torch.ones(2, 32)})), "it is a classifier or reward model"),
    "base-model": (
        tensors(lambda t: (t.pop("lm_head.weight"), [t.update({n.removeprefix("model."): t.pop(n)}) for n in list(t)])),
        "a base model without its language-modelling head"),
    "experts": (config(num_local_experts=4), "mixture of experts"),
    "hybrid": (config(layer_types=["full_attention", "linear_attention"]), "a state-space model or a hybrid"),
    "vision": (config(vision_config={}), "multimodal"),
    "vision-named": (config(model_type="voxtral"), "multimodal"),
    "text-tower": (config(model_type="paligemma", text_config={"model_type": "gemma"}), "tower is `gemma`"),
    "tower-of-a-wrapper": (config(model_type="gemma3", text_config={"model_type": "gemma3_text"}), "says 26 blocks"),
    "encoder": (config(model_type="bert"), "it is an encoder"),
    "encoder-decoder": (config(is_encoder_decoder=True), "encoder-decoder"),
    "no-language": (config(model_type="vit"), "no causal language model"),
    "unknown-type": (config(model_type="mine"), "has no model of that type"),
    "type-long": (config(model_type="x" * 10**5), "has no model of that type"),
    "type-number": (config(model_type=5), "names no `model_type`"),
    "type-escape": (config(model_type="\u001b[31mred\u202e"), r"\x1b[31mred\u202e"),
    "custom-code": (config(model_type="mine", auto_map={"AutoModelForCausalLM": "mine.M"}), "such code is never run"),
    "gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised (gptq, 4 bits)"),
    "quantised-text": (config(quantization_config="fp8"), "quantised"),
    "adapter-beside": (raw("adapter_config.json", '{"base_model_name_or_path": "/etc"}'), "an adapter"),
    "per-layer": (config(per_layer_config={"0": {"intermediate_size": 8}}), "differ in width"),
    "per-layer-text": (config(per_layer_config="x"), "differ in width"),
}  # fmt: skip

CASES = FILES | HEADERS | MISFITS


def test_there_are_a_hundred() -> None:
    assert len(CASES) >= 100
    assert len(CASES) == len(FILES) + len(HEADERS) + len(MISFITS)


@pytest.mark.parametrize("name", CASES)
def test_hostile_folders_are_refused_alike_by_dry_run_and_worker(name: str, bench: Bench) -> None:
    spoil, words = CASES[name]
    spoil(bench.folder(name))
    assert words in bench.refused(name)
    shutil.rmtree(bench.sources.models_dir / name)


IGNORED: dict[str, Break] = {
    "attention": config(_attn_implementation="kernels-community/evil", attn_implementation="evil/kernel"),
    "experts": config(experts_implementation="evil/kernel", use_kernels=True, kernel_config={"a": "b"}),
    "shadowed-method": config(to_dict=1, get_text_config="x", attribute_map={"hidden_size": "vocab_size"}),
    "tuples": config(return_dict=False, output_attentions=True, output_hidden_states=True, torchscript=True),
    "labels": config(id2label={"x": "y"}, num_labels=10**9, problem_type="evil"),
    "code": config(auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}),
    "not-quantised": config(quantization_config=None),
    "no-text": config(text_config=None),
    "generation": raw("generation_config.json", '{"num_beams": 1000000, "custom_generate": "x", "max_length": -1}'),
    "tokenizer-code": raw("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'),
    "tokenizer-elsewhere": raw("tokenizer_config.json", '{"tokenizer_file": "/etc/passwd", "vocab_file": "/etc/x"}'),
    "rotary-buffer": tensors(lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})),
    "file-pipe": lambda folder: os.mkfifo(folder / "pipe"),
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_would_choose_code_or_kernels_is_not_obeyed(name: str, bench: Bench) -> None:
    IGNORED[name](bench.folder("ignored"))
    assert bench.planned("ignored")[0] == 200
    spec = CompressionSpec.model_validate(spec_of("ignored"))
    model = load(spec, bench.sources)
    assert model.skeleton.config._attn_implementation == "sdpa"
    assert model.skeleton.config.return_dict is True
    assert callable(model.skeleton.config.to_dict)
    assert model.tokenizer("A house.")["input_ids"]


def tokenizer(model: Any, **parts: Any) -> Break:
    """A tokenizer.json around that model."""
    return raw("tokenizer.json", json.dumps({"version": "1.0", "model": model, **parts}))


TOKENIZERS: dict[str, Break] = {
    "empty": raw("tokenizer.json", ""),
    "deep": raw("tokenizer.json", DEEP),
    "list": raw("tokenizer.json", "[]"),
    "no-model": tokenizer(None),
    "model-text": tokenizer("BPE"),
    "vocabulary-text": tokenizer({"type": "BPE", "vocab": "x", "merges": []}),
    "ids-negative": tokenizer({"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}),
    "ids-huge": tokenizer({"type": "WordLevel", "vocab": {"a": 1e99}, "unk_token": "a"}),
    "no-unknown": tokenizer({"type": "WordLevel", "vocab": {"a": 1}, "unk_token": "b"}),
    "normalizer": tokenizer(
        {"type": "BPE", "vocab": {}, "merges": []},
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    ),
    "class-number": raw("tokenizer_config.json", '{"tokenizer_class": 5}'),
    "class-unknown": raw("tokenizer_config.json", '{"tokenizer_class": "Evil"}'),
    "eos-list": raw("tokenizer_config.json", '{"eos_token": [1, 2]}'),
    "length-text": raw("tokenizer_config.json", '{"model_max_length": "x", "padding_side": 7}'),
    "added": raw("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}'),
    "added-tokens": raw("added_tokens.json", '{"a": "b"}'),
    "special-tokens": raw("special_tokens_map.json", '{"eos_token": {"content": 5}}'),
    "eos-ids": raw("generation_config.json", '{"eos_token_id": "x"}'),
    "eos-nested": raw("generation_config.json", '{"eos_token_id": [[1]]}'),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_that_cannot_be_read_are_the_models_fault(name: str, bench: Bench) -> None:
    TOKENIZERS[name](bench.folder("tokenizer"))
    status, body = bench.planned("tokenizer")
    assert status in (200, 422), body
    error = bench.loaded("tokenizer")  # some that look odd do load
    assert error is None or error.code == "unsupported_model"
    if error is not None:
        assert "tokenizer" in error.message or "generation_config.json" in error.message


def beyond(token: int, **parts: Any) -> Break:
    """The tokenizer giving `words` that id."""

    def apply(folder: Path) -> None:
        found = json.loads((folder / "tokenizer.json").read_text())
        entry = {"content": "words", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        if token < 2**31:
            found["added_tokens"].append({**entry, "id": token, "special": False})
        else:
            found["model"]["vocab"]["\u0120words"] = token
        (folder / "tokenizer.json").write_text(json.dumps(found | parts))

    return apply


OPENING = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<x>": {"id": "<x>", "ids": [999_999], "tokens": ["<x>"]}},
}
TEXT = {"method": "perplexity", "dataset": "words.txt", "sequence_length": 16}
PROMPT = {"method": "continuations", "prompts": ["A few words."]}


@pytest.mark.parametrize(
    ("spoil", "evaluation", "words"),
    [
        (beyond(4096), PROMPT, "1 of the 5 tokens of a prompt"),
        (beyond(4096), TEXT, "tokens of a part of words.txt"),
        (beyond(2**32 - 1), PROMPT, "the first 4294967295"),
        (beyond(2**32 - 1), TEXT, "the first 4294967295"),
        (beyond(4000, post_processor=OPENING), PROMPT, "that the tokenizer puts before a text"),
        (beyond(4000, post_processor=OPENING), TEXT, "the first 999999"),
    ],
)
def test_tokens_beyond_the_embedding_are_refused_before_work(
    spoil: Break, evaluation: dict[str, Any], words: str, bench: Bench
) -> None:
    spoil(bench.folder("beyond"))
    (bench.sources.data_dir / "words.txt").write_text("A few words here. " * 50)
    spec = CompressionSpec.model_validate(spec_of("beyond", evaluate=[evaluation]))
    with pytest.raises(UnsupportedModel, match=words):
        refuse_unknown_tokens(spec, load(spec, bench.sources), bench.sources)


WORDS = tokenizer(
    {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(["A", "few", "words", "."])}, "unk_token": "?"},
    pre_tokenizer={"type": "Whitespace"},
    added_tokens=[],
)
"""It has no word for what it does not know."""
SILENT = tokenizer({"type": "BPE", "vocab": {"A": 0, "f": 1}, "merges": []}, added_tokens=[])
"""Of most texts it makes nothing."""


def read_all(spec: CompressionSpec, sources: Sources) -> None:
    """As the worker does before it works."""
    model = load(spec, sources)
    refuse_unknown_tokens(spec, model, sources)
    for field, ref in spec.texts().items():
        tokens = load_tokens(ref, model.tokenizer, sources, field, wanted_of(ref))
        consecutive_windows(tokens, 16, count=None, field=field)


@pytest.mark.parametrize(
    ("spoil", "evaluation", "error", "words"),
    [
        (WORDS, {"method": "continuations", "prompts": ["A house."]}, UnsupportedModel, "tokenizer fails on a text"),
        (WORDS, TEXT, UnsupportedModel, "tokenizer fails on a text"),
        (SILENT, {"method": "continuations", "prompts": ["a house"]}, InvalidSpec, "no token of the prompt 'a house'"),
        (SILENT, TEXT, DatasetTooShort, "the text has 0"),
    ],
)
def test_texts_that_a_tokenizer_cannot_read_are_told(
    spoil: Break, evaluation: dict[str, Any], error: type[EngineError], words: str, bench: Bench
) -> None:
    spoil(bench.folder("speechless"))
    (bench.sources.data_dir / "words.txt").write_text("Some more here. " * 50)
    spec = CompressionSpec.model_validate(spec_of("speechless", evaluate=[evaluation]))
    with pytest.raises(error, match=words):
        read_all(spec, bench.sources)


def test_tokens_beyond_the_embedding_in_a_task_are_the_models_fault(bench: Bench) -> None:
    beyond(4096)(bench.folder("beyond"))
    tokenizer = load(CompressionSpec.model_validate(spec_of("beyond")), bench.sources).tokenizer
    embedding = torch.nn.Embedding(4096, 8)
    ids_BT = torch.tensor([tokenizer("A few words here.")["input_ids"]])
    with pytest.raises(UnsupportedModel, match="of a task's prompts"), known_tokens_only(embedding, tokenizer):
        embedding(ids_BT)
    with pytest.raises(IndexError):
        embedding(ids_BT)


@pytest.mark.parametrize("spoil", [raw("generation_config.json", '{"eos_token_id": []}'), config(eos_token_id=[])])
def test_a_model_that_names_no_end_writes_on(spoil: Break, bench: Bench) -> None:
    folder = bench.folder("endless")
    spoil(folder)
    tokenizer = load(CompressionSpec.model_validate(spec_of("endless")), bench.sources).tokenizer
    model = load_model(folder, torch.device("cpu"), torch.float32)
    context: Any = SimpleNamespace(
        model=model, tokenizer=tokenizer, pointer="", device=model.device, check_fits=lambda *_: None
    )
    assert len(greedy(context, "A few words.", 4)) == 4


# -- anything at all -----------------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = sorted(LlamaConfig().to_dict().keys() | {"rope_scaling", "rope_theta", "head_dim", "layer_types", "auto_map"})
PROPERTY = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def agree(bench: Bench, name: str) -> None:
    """No bug anywhere, and where the dry run says yes the worker does."""
    status, body = bench.planned(name)
    assert status in (200, 422), body
    error = bench.loaded(name)
    assert error is None or error.code in REFUSALS, error
    assert (status == 200) == (error is None), (body, error)


@PROPERTY
@given(changes=st.dictionaries(st.sampled_from(ENTRIES) | st.text(max_size=12), ANYTHING, min_size=1, max_size=3))
def test_any_config(changes: dict[str, Any], bench: Bench) -> None:
    config(**changes)(bench.folder("any"))
    agree(bench, "any")


@PROPERTY
@given(
    name=st.sampled_from([Q, NORM, EMBEDDING]), part=st.sampled_from(["dtype", "shape", "data_offsets"]), entry=ANYTHING
)
def test_any_header(name: str, part: str, entry: Any, bench: Bench) -> None:
    header(lambda h: h[name].update({part: entry}))(bench.folder("any"))
    agree(bench, "any")


@PROPERTY
@given(content=st.binary(max_size=64) | ANYTHING.map(lambda entry: json.dumps(entry).encode()))
@pytest.mark.parametrize("file", ["config.json", INDEX, WEIGHTS, "generation_config.json"])
def test_any_content(file: str, content: bytes, bench: Bench) -> None:
    raw(file, content)(bench.folder("any"))
    status, body = bench.planned("any")
    assert status in (200, 422), body
    error = bench.loaded("any")
    assert error is None or error.code in REFUSALS


@PROPERTY
@given(content=ANYTHING.map(lambda entry: json.dumps({"weight_map": entry}).encode()))
def test_any_index(content: bytes, bench: Bench) -> None:
    raw(INDEX, content)(bench.folder("any"))
    agree(bench, "any")


SETTINGS = [
    "tokenizer_class",
    "eos_token",
    "bos_token",
    "model_max_length",
    "added_tokens_decoder",
    "chat_template",
    "extra_special_tokens",
    "clean_up_tokenization_spaces",
]


@settings(PROPERTY, max_examples=25)
@given(entries=st.dictionaries(st.sampled_from(SETTINGS), ANYTHING, max_size=3))
def test_any_tokenizer_settings(entries: dict[str, Any], bench: Bench) -> None:
    raw("tokenizer_config.json", json.dumps(entries))(bench.folder("any"))
    status, body = bench.planned("any")
    assert status in (200, 422), body
    error = bench.loaded("any")
    assert error is None or error.code == "unsupported_model"

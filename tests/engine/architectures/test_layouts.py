"""A layout is one table: a Llama under other names goes through every kind of job, to the same weights."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.cluster import ROOT
from tests.helpers.renamed_llama import RenamedConfig, RenamedForCausalLM, renamed
from tests.helpers.small_models import SIZES, SaveModel, spec_of
from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.layouts import layouts
from workers.engine.architectures.recognise import recognise
from workers.engine.errors import UnsupportedModel
from workers.engine.events import Silent
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.sources.resolve import Sources

TUNING = {"dataset": "calibration.txt", "steps": 2, "batch": 2, "sequence_length": 16, "holdout": 2, "distill": None}
JOBS: dict[str, dict[str, Any]] = {
    "wanda, tuned": {
        "tune": {"method": "last_layers", "blocks": 1} | TUNING,
        "evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "samples": 2, "sequence_length": 32}],
    },
    "structured, tuned": {
        "score": {"method": "taylor"},
        "prune": {"method": "structured", "sparsity": 0.4},
        "tune": {"method": "lora"} | TUNING,
    },
    "depth": {"score": {"method": "block_influence"}, "prune": {"method": "depth", "layers": 1}},
    "hidden": {"prune": {"method": "hidden", "sparsity": 0.25}},
}
"""Each a spec's parts beside the model."""


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.usefixtures("renamed_layout")
def test_a_renamed_llama_becomes_what_the_llama_does(
    job: str, tiny: Path, save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    other = save_model("renamed", RenamedConfig(**SIZES))
    dense = load_file(tiny / "model.safetensors")
    assert {renamed(name) for name in dense} == set(load_file(other / "model.safetensors"))
    tensors = {renamed(name): tensor for name, tensor in dense.items()}
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    found = {}
    for name in ("tiny", "renamed"):
        spec = spec_of(**JOBS[job], model={"id": name})
        assert plan(spec, sources).layers
        compress(spec, tmp_path / name, sources, Silent(), tmp_path / name / "checkpoint")
        found[name] = load_file(tmp_path / name / "model/model.safetensors")
    assert found["renamed"].keys() == {renamed(name) for name in found["tiny"]}
    for name, tensor in found["tiny"].items():
        assert torch.equal(found["renamed"][renamed(name)], tensor), name
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "renamed/model", output_loading_info=True)
    assert type(model) is RenamedForCausalLM
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]


@pytest.mark.usefixtures("renamed_layout")
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("transformer.h.0.attn.query.weight", r"no `attn\.key` in block 0"),
        ("model.layers.0.self_attn.q_proj.weight", r"no `self_attn\.k_proj` in block 0"),
        (
            "towers.0.qkv.weight",
            r"none of the paths that are known \(.*`transformer\.h\.0\.\*`.*\): .* such as `towers\.0\.qkv",
        ),
    ],
)
def test_a_refusal_speaks_of_the_layout_that_is_nearest(tensor: str, message: str) -> None:
    config = {"model_type": "renamed", "num_hidden_layers": 1, "max_position_embeddings": 16}
    with pytest.raises(UnsupportedModel, match=message):
        recognise(config, {tensor: TensorFacts("F32", (8, 8))})


CLASS_OF_EXPERTS = ("model/experts.py", "model/expert_streams.py")


def test_no_other_room_knows_a_layout_by_its_names() -> None:
    """`artifact/` is code for results of Llama's own classes, and `CLASS_OF_EXPERTS` for transformers' class of
    experts: they are read with them."""
    names = {part for layout in layouts() for part in _names(layout)}
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(names)) + r"|\.(weight|bias)$")
    engine = ROOT / "workers/engine"
    for path in sorted(engine.rglob("*.py")):
        below = path.relative_to(engine)
        if below.parts[0] in ("architectures", "artifact") or str(below) in CLASS_OF_EXPERTS:
            continue
        text = path.read_text()
        if not any(name in text for name in (*names, ".weight", ".bias")):
            continue
        nodes = list(ast.walk(ast.parse(text)))
        docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            word = node.attr if isinstance(node, ast.Attribute) else None
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                word = node.value
            place = f"{path.relative_to(ROOT)}, line {getattr(node, 'lineno', 0)}"
            assert word is None or not pattern.search(word), f"{place}: {word!r}"


def _names(layout: Layout) -> set[str]:
    """Paths and parts of them, without what is a common word."""
    paths = {layout.blocks, layout.embedding, layout.final_norm, layout.head, *(part.module for part in layout.mixers)}
    modules = {part for path in (*paths, *(layer.name for layer in layout.layers)) for part in path.split(".")}
    own = {field.name for field in fields(Layout)}
    return {path for path in paths | modules if "_" in path or "." in path} - own

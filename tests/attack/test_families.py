"""Configs of many families with entries that are wrong, odd or of another family: the dry run and the worker refuse the
same, and what they let pass computes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.small_models import EXAMPLES, SIZES, load
from workers.engine.architectures.built import table
from workers.engine.errors import EngineError
from workers.engine.model.loaded import load_model
from workers.engine.planning.plan import feasible
from workers.engine.sources.resolve import Sources, resolve_model
from workers.engine.spec import CompressionSpec

CONFIGS = 24
"""Of each family."""
FAMILIES = (
    "cohere", "ernie4_5", "gemma3_text", "granite", "helium", "hunyuan_v1_dense", "qwen2", "qwen3", "seed_oss",
    "vaultgemma",
)  # fmt: skip
SPEC = CompressionSpec.model_validate(
    {"model": {"id": "m"}, "score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5}}
)
ANY: tuple[Any, ...] = (
    None, 0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 10**17, 0.0, 0.5, 1.0, -1.0, 1e-30, 1e30, 1e300, "x", "", [], {}, [1, 2],
    True, False, ["full_attention"] * 2, ["sliding_attention"] * 2, ["sliding_attention", "chunked_attention"],
    [1.0, 0.0], "silu", {"a": 1}, [[1]],
)  # fmt: skip
ROPE: dict[str, tuple[Any, ...]] = {
    "rope_type": ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional", "x"),
    "type": ("default", "linear", "x"),
    "factor": (None, 0, 2, 2.0, 0.5, "2", 1e30),
    "rope_theta": (None, 1, 0, 1e4, -1, 1e-30),
    "partial_rotary_factor": (None, 0.5, 1.0, 0.25, 0, 2),
    "low_freq_factor": (1.0, 0, 4),
    "high_freq_factor": (4.0, 1, 0),
    "original_max_position_embeddings": (16, 0, None, 1.5),
    "short_factor": ([1.0] * 4, [1] * 2, [], [0] * 4),
    "long_factor": ([1.0] * 4, [1] * 2),
    "attention_factor": (None, 1.0, 0, "x"),
    "beta_fast": (32, None, 0),
    "beta_slow": (1, None, 32),
    "mscale": (1, 0, None),
    "full_attention": ({"rope_type": "default", "rope_theta": 1e4}, {}, {"rope_type": "linear", "factor": 2}),
    "sliding_attention": ({"rope_type": "default", "rope_theta": 1e4}, None, 5),
}
OF_OTHERS = (
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rope_local_base_freq", "head_dim",
    "sliding_window", "sliding_window_pattern", "layer_types", "no_rope_layers", "layer_rope_theta", "mlp_layer_types",
    "original_max_position_embeddings", "attention_chunk_size", "cache_implementation", "is_causal", "temperature",
    "max_window_layers", "use_sliding_window", "hidden_activation", "per_layer_config", "num_mtp_layers", "qk_head_dim",
)  # fmt: skip
"""Entries that some family has, or transformers takes from any."""
FOUND = (
    ("cohere", {"layer_norm_eps": None}, "`layer_norm_eps` is null"),
    ("cohere", {"logit_scale": None}, "`logit_scale` is null"),
    ("qwen3", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one rotary embedding for all blocks"),
    ("vaultgemma", {"rope_scaling": {"type": "default", "sliding_attention": {}}}, "one rotary embedding"),
    ("gemma3_text", {"rope_parameters": {"full_attention": {}, "sliding_attention": 5}}, "`sliding_attention` is 5"),
    ("granite", {"hidden_act": "xielu"}, "gives weights"),
    ("qwen2", {"is_causal": False}, "it is an encoder"),
)
PASSED = (
    ("ernie4_5", {"use_bias": None}),
    ("cohere", {"use_qk_norm": None}),
    ("qwen2", {"head_dim": None}),
    ("granite", {"cache_implementation": "x"}),
    ("seed_oss", {"attention_chunk_size": ["x"], "sliding_window": 4, "num_mtp_layers": 3}),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    home = tmp_path_factory.mktemp("families")
    return Sources(home / "models", home / "data")


@pytest.fixture(scope="module")
def sound(sources: Sources) -> dict[str, Path]:
    """Family -> a small model of it."""
    made = {}
    for family in FAMILIES:
        sizes = SIZES | {"vocab_size": 4096, "num_hidden_layers": 2, "max_position_embeddings": 64, "head_dim": 8}
        if "query_pre_attn_scalar" in table()["families"][family]["fields"]:
            sizes["query_pre_attn_scalar"] = 8
        folder = sources.models_dir / f"sound-{family}"
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(EXAMPLES / "models/bookworm-7m" / file, folder)
        made[family] = folder
    return made


def changed(sound: Path, changes: dict[str, Any]) -> Path:
    """The model `m`: the sound one with entries of its config changed, or removed where they are `...`."""
    folder = sound.parent / "m"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in sound.iterdir():
        if file.name != "config.json":
            os.link(file, folder / file.name)
    config = json.loads((sound / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: x for name, x in config.items() if x is not ...}))
    return folder


def refusal(sources: Sources) -> str | None:
    """The one of the dry run and the worker."""
    planned = loaded = None
    try:
        feasible(SPEC, resolve_model(SPEC.model, sources), sources)
    except EngineError as error:
        planned = f"{error.message}: {error.hint}"
    try:
        load(SPEC, sources)
    except EngineError as error:
        loaded = f"{error.message}: {error.hint}"
    assert planned == loaded
    return planned


def computes(folder: Path) -> None:
    """As a whole and from its cache."""
    model = load_model(folder, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        read = model(torch.arange(3, 35)[None], use_cache=True)
        model(torch.tensor([[5]]), past_key_values=read.past_key_values)


def entry(name: str, config: dict[str, Any], row: dict[str, Any], rng: random.Random) -> Any:
    if name in ("rope_parameters", "rope_scaling") and rng.random() < 0.9:
        likely = ("rope_type", "factor", "rope_theta")
        return {key: rng.choice(found) for key, found in ROPE.items() if rng.random() < (0.5 if key in likely else 0.1)}
    if name in ("hidden_act", "hidden_activation") and rng.random() < 0.8:
        return rng.choice(table()["activations"])
    if name in config and rng.random() < 0.15:
        return ...
    kinds = row["fields"].get(name, [[], None])[0]
    fitting = [x for x in ANY if ("null" if x is None else type(x).__name__) in kinds]
    return rng.choice(fitting if fitting and rng.random() < 0.7 else ANY)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_any_config_of_a_family(family: str, sound: dict[str, Path], sources: Sources) -> None:
    rng, row = random.Random(family), table()["families"][family]
    config = json.loads((sound[family] / "config.json").read_text())
    names = sorted({*row["fields"], *row["aliases"], *config, *OF_OTHERS} - {"model_type"})
    passed = 0
    for _ in range(CONFIGS):
        chosen = [rng.choice(names) for _ in range(rng.choice([1, 1, 2, 3]))]
        folder = changed(sound[family], {name: entry(name, config, row, rng) for name in chosen})
        if refusal(sources) is None:
            computes(folder)
            passed += 1
    assert 0 < passed < CONFIGS


@pytest.mark.parametrize(("family", "changes", "words"), FOUND)
def test_refused(family: str, changes: dict[str, Any], words: str, sound: dict[str, Path], sources: Sources) -> None:
    changed(sound[family], changes)
    assert words in (refusal(sources) or "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "changes"), PASSED)
def test_read_as_it_is_meant(family: str, changes: dict[str, Any], sound: dict[str, Path], sources: Sources) -> None:
    folder = changed(sound[family], changes)
    assert refusal(sources) is None
    computes(folder)

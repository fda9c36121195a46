"""A result that does not compute what it was made from is found, wherever the fault lies, and the job fails."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.helpers.families import FAMILIES
from tests.helpers.small_models import SIZES, SaveModel, spec_of
from workers.engine import pipeline
from workers.engine.architectures.per_layer import MODELING
from workers.engine.checks import verify
from workers.engine.checks.trace import TOLERANCE
from workers.engine.errors import EngineError, ResultMismatch, UnsupportedModel
from workers.engine.events import Silent
from workers.engine.files.safetensors_bytes import Slice
from workers.engine.files.tensors import read_tensor
from workers.engine.model.walk import Call
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources

MASK: dict[str, Any] = {}
UNITS = {"score": {"method": "magnitude"}, "prune": {"method": "structured", "sparsity": 0.35}}
WIDTHS = {"score": {"method": "magnitude"}, "prune": {"method": "structured", "sparsity": 0.35, "protect_first": 1}}
DEPTH = {
    "score": {"method": "layer_magnitude", "protect_first": 0, "protect_last": 1},
    "prune": {"method": "depth", "layers": 1},
}
HIDDEN = {"score": {"method": "magnitude"}, "prune": {"method": "hidden", "sparsity": 0.25}}
SHAPE = {
    "score": {"method": "random"}, "prune": {"method": "shape", "hidden": 36, "heads": 4, "layers": 2, "channels": 20}
}  # fmt: skip
TUNED = {"tune": {"method": "lora", "dataset": "calibration.txt", "steps": 3, "batch": 2, "sequence_length": 32}}
TUNED["tune"] |= {"distill": None, "holdout": 2, "learning_rate": 1e-2, "warmup_steps": 0, "evaluate_every": 3}
REMOVALS = {
    "heads": {"score": {"method": "magnitude"}, "prune": UNITS["prune"] | {"units": ["head"]}},
    "channels": {"score": {"method": "magnitude"}, "prune": UNITS["prune"] | {"units": ["channel"]}},
    "depth": DEPTH,
}


@pytest.fixture
def run(sources: Sources, tmp_path: Path) -> Callable[..., Report]:
    def compress(parts: dict[str, Any]) -> Report:
        return pipeline.compress(spec_of(**parts), tmp_path / "work", sources, Silent(), tmp_path / "checkpoint")

    return compress


BFLOAT16 = {"package": {"dtype": "bfloat16"}}
SPARSEGPT = {"score": None, "prune": {"method": "sparsegpt", "sparsity": 0.5}, "package": {"dtype": "float16"}}
RIGHT: dict[str, tuple[dict[str, Any], bool]] = {
    "mask": (MASK, True),
    "no-text": ({"score": {"method": "magnitude"}, "calibrate": None}, False),
    "sparsegpt-float16": (SPARSEGPT, True),
    "units": (UNITS, True),
    "units-bfloat16": (UNITS | BFLOAT16, False),
    "widths-bfloat16": (WIDTHS | BFLOAT16, True),
    "depth": (DEPTH, False),
    "hidden": (HIDDEN, True),
    "hidden-bfloat16": (HIDDEN | BFLOAT16, False),
    "shape": (SHAPE, True),
    "shape-bfloat16": (SHAPE | BFLOAT16, False),
    "tuned": (WIDTHS | TUNED, True),
    "tuned-bfloat16": (WIDTHS | TUNED | BFLOAT16 | {"compute": {"dtype": "bfloat16"}}, False),
}
"""The parts of a spec, and whether the result is loaded whole."""


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_result_passes_and_the_report_says_how_near_it_is(
    case: str, save_model: SaveModel, run: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, whole = RIGHT[case]
    save_model("tiny", FAMILIES["qwen2"])
    monkeypatch.setattr(verify, "checks_whole", lambda *_: whole)
    report = run(parts)
    against = ["masked dense model", "walked model"] + (["tuned model"] if "tune" in parts else [])
    assert [check.against for check in report.checks] == against
    for check in report.checks:
        assert check.difference < TOLERANCE / 10
        assert (check.rounding > TOLERANCE) == (parts.get("package", {}).get("dtype") in ("bfloat16", "float16"))
    assert "verify" in [stage.stage for stage in report.stages]


def test_weights_that_a_pruner_wrote_are_read_once_a_model(
    tiny: Path, run: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dense model's are of no use for them: of a large model it is the reading that takes time."""
    read: Counter[str] = Counter()
    weights = {name: tensor.nbytes for name, tensor in load_file(tiny / "model.safetensors").items()}
    linear = sum(size for name, size in weights.items() if name.endswith("_proj.weight"))

    def noted(piece: Slice, **how: bool) -> torch.Tensor:
        read["dense" if tiny in piece.file.parents else "pruned"] += piece.facts.bytes
        return read_tensor(piece, **how)

    monkeypatch.setattr("workers.engine.checks.masked.read_tensor", noted)
    run(MASK)
    models = 2  # the masked and the walked
    assert read["pruned"] <= models * sum(weights.values()) + weights["model.embed_tokens.weight"]
    assert read["dense"] <= read["pruned"] - models * linear


@pytest.mark.parametrize("removal", ["heads", "channels", "depth"])
@pytest.mark.parametrize("family", ["diffllama", "bitnet"])
def test_what_a_family_does_not_bear_is_not_shipped(
    family: str, removal: str, save_model: SaveModel, run: Callable[..., Report]
) -> None:
    """DiffLlama computes with the numbers of blocks and with halves of its heads; BitNet has norms over all heads'
    outputs and over all channels. Refused beforehand, or found in the result."""
    sizes = SIZES | {"num_attention_heads": 8, "num_key_value_heads": 4}
    save_model("tiny", AutoConfig.for_model(family, **sizes))
    if (family, removal) in (("diffllama", "channels"), ("bitnet", "depth")):
        assert max(check.difference for check in run(REMOVALS[removal]).checks) < TOLERANCE
        return
    with pytest.raises((ResultMismatch, UnsupportedModel)) as found:
        run(REMOVALS[removal])
    assert found.value.hint


def edited(**entries: Any) -> Callable[[Path], None]:
    """A change of the result's config."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | entries))

    return edit


def rewritten(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A change of the result's tensors."""

    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return rewrite


def swapped(tensors: dict[str, torch.Tensor]) -> None:
    first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    tensors[first], tensors[second] = tensors[second], tensors[first]


def turned(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.gate_proj.weight"][3, 3] += 1.0


def other_head(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("q_proj.weight", "q_proj.bias"):
        tensors[f"model.layers.2.self_attn.{name}"] = tensors[f"model.layers.2.self_attn.{name}"].flip(0)


def other_inputs(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].flip(1)


def gains(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] /= (48 / 36) ** 0.5


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.input_norm.weight"] = tensors.pop("model.layers.1.input_layernorm.weight")


def of_another_make(folder: Path) -> None:
    (folder / MODELING).write_text((folder / MODELING).read_text() + "\n# changed\n")


FAULTS: dict[str, tuple[str, dict[str, Any], Callable[[Path], None], str]] = {
    "rope": ("llama", MASK, edited(rope_parameters={"rope_type": "default", "rope_theta": 500.0}), "layers.0"),
    "activation": ("llama", MASK, edited(hidden_act="gelu"), r"layers\.0\.mlp\.down_proj"),
    "eps": ("llama", HIDDEN, edited(rms_norm_eps=1e-2), r"layers\.0"),
    "sliding": ("qwen2-mixed", MASK, edited(layer_types=["full_attention"] * 3), r"layers\.2\.self_attn"),
    "untied": ("llama-tied", MASK, edited(tie_word_embeddings=False), "lm_head"),
    "groups": ("llama", UNITS, edited(num_attention_heads=2, num_key_value_heads=1), "does not load"),
    "swapped": ("llama", MASK, rewritten(swapped), r"layers\.0\.mlp\.down_proj"),
    "turned": ("llama", UNITS, rewritten(turned), r"layers\.1\.mlp\.down_proj"),
    "other-head": ("qwen2", UNITS, rewritten(other_head), r"layers\.2\.self_attn\.o_proj"),
    "gains": ("llama", HIDDEN, rewritten(gains), "logits"),
    "shape-gains": ("llama", SHAPE, rewritten(gains), "logits"),
    "shape-inputs": ("llama", SHAPE, rewritten(other_inputs), r"layers\.1\.mlp\.down_proj"),
    "shape-layers": ("llama", SHAPE, rewritten(swapped), r"layers\.0\.mlp\.down_proj"),
    "renamed": ("llama", MASK, rewritten(renamed), r"no tensor|input_layernorm"),
    "modeling": ("llama", WIDTHS, of_another_make, MODELING),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_result_fails_and_says_where(
    fault: str, save_model: SaveModel, run: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, parts, tamper, where = FAULTS[fault]
    save_model("tiny", FAMILIES[family])
    assemble = pipeline.assemble

    def tampered(*args: Any) -> None:
        assemble(*args)
        tamper(args[-1])

    monkeypatch.setattr(pipeline, "assemble", tampered)
    with pytest.raises(ResultMismatch, match=where) as found:
        run(parts)
    assert found.value.code == "result_mismatch"
    assert not found.value.retryable
    assert "nothing was shipped" in found.value.hint


def test_a_walk_that_is_not_the_models_own_forward_pass_is_found(
    tiny: Path, run: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Call.of
    monkeypatch.setattr(Call, "of", lambda *args: own(*args) * 1.001)
    with pytest.raises(ResultMismatch, match=r"walked model.*layers\.0 "):
        run(MASK)


def test_a_tuned_result_that_is_not_the_tuned_model_is_found(
    tiny: Path, run: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.engine.stages import tune

    monkeypatch.setattr(tune._Tuning, "write", lambda _: None)
    with pytest.raises(ResultMismatch, match="tuned model"):
        run(MASK | TUNED)


def test_a_model_of_infinities_is_its_own_fault(
    tiny: Path, run: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(tiny / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, tiny / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError) as found:
        run(MASK | {"score": {"method": "magnitude"}, "calibrate": None})
    assert found.value.code != "result_mismatch"

"""Shapes given by hand: what comes out has exactly that shape, and computes what the masked dense model does.

D = hidden size, B = batch, T = tokens, V = vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, LlamaConfig, OlmoeConfig

from tests.helpers.families import FAMILIES
from tests.helpers.four_blocks import ALL_FAMILIES, CONFIG, FACTS, SHAPES
from tests.helpers.small_models import SIZES, SaveModel, Walked, block_tensors, load, spec_of, walk
from workers.engine.architectures.recognise import recognise
from workers.engine.checks.trace import left_out
from workers.engine.contracts.facts import DenseUnits, Units
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import InvalidSpec, PromiseBroken, UnsupportedModel
from workers.engine.events import Silent
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.laws.random_layers import seeded
from workers.engine.methods.score.taylor import TaylorParams, measure
from workers.engine.pipeline import compress
from workers.engine.planning import plan as planning
from workers.engine.planning.abilities import abilities
from workers.engine.planning.plan import plan
from workers.engine.removals.assemble import assemble
from workers.engine.removals.outcome import config_after
from workers.engine.removals.shape import REMOVAL as SHAPE
from workers.engine.removals.without_units import sparsity_without, without_units
from workers.engine.sources.resolve import ModelSource, Sources, resolve_model
from workers.engine.stages import train as train_stage

IDS_BT = torch.arange(100, 124).reshape(2, 12)
TEXT = {"dataset": "calibration.txt", "samples": 4, "sequence_length": 32}
ALL = {"hidden": 36, "heads": 4, "layers": 2, "channels": 20}


def shape(score: str = "random", calibrate: Any = None, **parts: Any) -> Any:
    """A spec of a shape for `tiny`; sizes beside other parts."""
    sizes = {name: parts.pop(name) for name in ("hidden", "heads", "layers", "channels") if name in parts}
    return spec_of(prune={"method": "shape"} | sizes, score={"method": score}, calibrate=calibrate, **parts)


def written(done: Walked, folder: Path) -> dict[str, Any]:
    assemble(done.spec, done.model, done.outcome, done.checkpoint, folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def best(scores: Any, count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda unit: scores[unit])[len(scores) - count :])


def masked(folder: Path, scores: list[dict[str, list[float]]], sizes: dict[str, int]) -> Any:
    """The dense model without the blocks, and with zeros in what is written by the other units, that go by `scores`."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = best([block["layer"][0] for block in scores], sizes["layers"])
    kept_D = best(torch.tensor([scores[block]["hidden"] for block in blocks]).sum(dim=0).tolist(), sizes["hidden"])
    gone_D = torch.ones(model.config.hidden_size, dtype=torch.bool).index_fill(0, torch.tensor(kept_D), False)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, gone_D] = 0
        for block in blocks:
            layer = model.model.layers[block]
            groups = len(scores[block]["head"])
            shared_by = model.config.num_attention_heads // groups
            for reader, kind, count in (
                (layer.self_attn.o_proj, "head", sizes["heads"] // shared_by),
                (layer.mlp.down_proj, "channel", sizes["channels"]),
            ):
                gone = [
                    unit for unit in range(len(scores[block][kind])) if unit not in best(scores[block][kind], count)
                ]
                reader.weight.unflatten(1, (len(scores[block][kind]), -1))[:, gone] = 0
                reader.weight[gone_D] = 0
    model.model.layers = nn.ModuleList([model.model.layers[block] for block in blocks])
    if getattr(model.config, "layer_types", None):  # which the model's forward pass reads by number
        model.config.layer_types = [model.config.layer_types[block] for block in blocks]
    model.config.num_hidden_layers = len(blocks)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_computes_what_the_masked_model_does(
    name: str, save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    folder = save_model("tiny", FAMILIES[name])
    done = walk(shape(**ALL), sources, tmp_path / "walk")
    config = written(done, tmp_path / "out")
    found = [config[name] for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")]
    assert found == list(ALL.values())
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=False).eval()
    assert len(cut.model.layers) == 2
    expected = masked(folder, done.checkpoint.load_scores(), ALL)
    with torch.no_grad():
        found_BTV, expected_BTV = cut(IDS_BT).logits, expected(IDS_BT, use_cache=False).logits
    torch.testing.assert_close(found_BTV, expected_BTV, rtol=1e-4, atol=1e-5)
    assert expected_BTV.std() > 100 * (found_BTV - expected_BTV).abs().max()


@pytest.mark.parametrize("name", ["llama-tied", "qwen2"])
def test_a_trained_model_without_units_is_the_masked_one_in_the_dense_shapes(
    name: str, save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    """Zeros stand where units go, so a model of the dense class and config computes, without the layers that go, what
    the masked one does."""
    folder = save_model("tiny", FAMILIES[name])
    done = walk(shape(**ALL), sources, tmp_path / "walk")
    scores = done.checkpoint.load_scores()
    blocks = [*done.outcome.blocks]
    hidden = torch.tensor([scores[block]["hidden"] for block in blocks]).sum(dim=0).tolist()
    signed = []
    for block, of_block in enumerate(scores):
        counts = {"head": ALL["heads"] // 2, "channel": ALL["channels"], "hidden": ALL["hidden"]}
        kept = {kind: best(hidden if kind == "hidden" else of_block[kind], count) for kind, count in counts.items()}
        found = {kind: [1.0 if u in kept[kind] else -1.0 for u in range(len(of_block[kind]))] for kind in counts}
        signed.append(found | {"layer": [1.0 if block in blocks else -1.0]})
    source, architecture = done.model.source, done.model.architecture
    units = Units(SHAPE.families(done.spec, architecture, source.config, source.tensors), signed)
    target = SHAPE.target(done.spec, source, architecture, None)
    assert target.going is not None
    assert {kind: count for (block, kind), count in target.going.items() if block is None} == {"hidden": 12, "layer": 1}
    assert sum(target.going[block, "channel"] for block in range(3)) == 3 * (48 - 20)
    train_stage._check(target, units)
    with pytest.raises(PromiseBroken, match="the model: 1 layers were to go, and the training decided on 0"):
        train_stage._check(target, Units(units.families, [block | {"layer": [1.0]} for block in signed]))
    lost = sparsity_without(architecture, units)
    assert lost == pytest.approx(dict(done.allocation.sparsity))
    sizes = {layer.name: layer.parameters for layer in architecture.layers}
    mean = sum(lost[name] * size for name, size in sizes.items()) / sum(sizes.values())
    assert target.share == pytest.approx(mean)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    without = without_units(lambda _, stored: stored, architecture, units)
    model.load_state_dict({name: without(name, tensor) for name, tensor in model.state_dict().items()})
    with torch.no_grad(), left_out(model, architecture.layout, {*range(3)} - {*blocks}):
        found_BTV = model(IDS_BT, use_cache=False).logits
        expected_BTV = masked(folder, scores, ALL)(IDS_BT, use_cache=False).logits
    torch.testing.assert_close(found_BTV, expected_BTV, rtol=1e-4, atol=1e-5)


PUBLISHED = [
    # Sheared LLaMA (arXiv:2310.06694): all parameters, with embedding and untied head; its names round them.
    pytest.param({"hidden": 2048, "heads": 16, "layers": 24, "channels": 5504}, 1_345_423_360, id="1.3B"),
    pytest.param({"hidden": 2560, "heads": 20, "layers": 32, "channels": 6912}, 2_701_560_320, id="2.7B"),
    pytest.param({"hidden": 1024, "heads": 8, "layers": 24, "channels": 2816}, 373_867_520, id="370M"),
]


@pytest.mark.parametrize(("sizes", "parameters"), PUBLISHED)
def test_sheared_llamas_shapes_come_out_of_llama_2_7b(
    sizes: dict[str, int], parameters: int, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned without weights; transformers builds the same model of the result's config."""
    dense = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=4096, rms_norm_eps=1e-5, tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        tensors = AutoModelForCausalLM.from_config(dense).state_dict()
    stored = {name: TensorFacts("BF16", tuple(tensor.shape)) for name, tensor in tensors.items()}
    config = json.loads(dense.to_json_string(use_diff=False))
    source = ModelSource("llama", config, stored, dict.fromkeys(stored, "model.safetensors"), None, "0" * 40)
    monkeypatch.setattr(planning, "resolve_model", lambda *_: source)

    found = plan(shape(**sizes), sources)
    assert (found.parameters, found.blocks) == (6_738_415_616, 32)
    d, heads, layers, channels = sizes.values()
    block = 2 * d * 128 * heads + 2 * d * 128 * heads + 3 * d * channels + 2 * d
    assert found.parameters_after == parameters == 2 * 32000 * d + layers * block + d
    assert (found.blocks_after, found.bytes_after) == (layers, 2 * parameters)
    assert all(runtime.loads and "trust" not in runtime.note for runtime in found.runtimes)

    outcome = planning.feasible(shape(**sizes), source, sources).outcome
    assert outcome is not None
    after = config_after(config, outcome, source)
    assert (after["model_type"], after["head_dim"], after["num_key_value_heads"]) == ("llama", 128, heads)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**after))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    shapes = outcome.tensor_shapes(source.tensors)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes


def test_a_job_makes_the_planned_model(tmp_path: Path, examples: Sources) -> None:
    sizes = {"hidden": 192, "heads": 4, "layers": 6, "channels": 448}
    text = {"dataset": "calibration.txt", "samples": 4, "sequence_length": 64}
    spec = shape("taylor", text, model={"id": "bookworm-7m"}, **sizes)
    planned = plan(spec, examples)
    # 4096 tied embeddings, and per block 4 query and 2 key/value heads of 32, the MLP and two norms.
    assert planned.parameters_after == 4096 * 192 + 6 * ((4 + 2 + 2 + 4) * 32 * 192 + 3 * 448 * 192 + 2 * 192) + 192
    report = compress(spec, tmp_path, examples, Silent(), tmp_path / "checkpoint")
    assert report.parameters_after == planned.parameters_after
    assert [check.difference < 1e-4 for check in report.checks] == [True, True]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == planned.parameters_after
    config = model.config
    assert [config.hidden_size, config.num_attention_heads, config.num_hidden_layers, config.intermediate_size] == [
        *sizes.values()
    ]
    assert sum(layer.shape == (0, 0) for layer in report.layers) == 2 * 7
    for layer in report.layers:
        assert layer.sparsity == pytest.approx(layer.target_sparsity, abs=1e-12)
    assert report.sparsity == pytest.approx(report.target_sparsity)
    said = "cut to 192 hidden dimensions, 4 heads, 6 layers, 448 channels, 6,951,168 parameters became 2,779,584"
    assert said in (tmp_path / "model" / "README.md").read_text()
    assert not list((tmp_path / "model").glob("*.py"))


ALONE: dict[str, tuple[Any, dict[str, Any]]] = {
    "hidden": (shape("magnitude", hidden=24), {"method": "hidden", "sparsity": 0.25}),
    "heads": (
        shape("magnitude", heads=2), {"method": "structured", "sparsity": 0.2, "units": ["head"], "compensate": False},
    ),
    "channels": (
        shape("magnitude", channels=24),
        {"method": "structured", "sparsity": 0.3, "units": ["channel"], "compensate": False},
    ),
    "layers": (shape("block_influence", TEXT, layers=2), {"method": "depth", "layers": 1}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ALONE)
def test_one_kind_alone_is_cut_as_by_its_own_pruner(kind: str, tiny: Path, sources: Sources, tmp_path: Path) -> None:
    spec, prune = ALONE[kind]
    other = spec.model_copy(update={"prune": spec_of(prune=prune, score=spec.score.model_dump()).prune})
    configs = [written(walk(each, sources, tmp_path / each.prune.method), tmp_path / f"{each.prune.method}-out")
               for each in (spec, other)]  # fmt: skip
    assert configs[0] == configs[1]
    files = [tmp_path / f"{each.prune.method}-out" / "model.safetensors" for each in (spec, other)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_counts_for_nothing_goes(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    """A hidden dimension, a key/value group and channels that nobody reads, and a block that writes nothing."""
    tensors = load_file(tiny / "model.safetensors")
    gone_D, gone_F = torch.tensor([3, 17]), torch.tensor([0, 11])
    tensors["model.embed_tokens.weight"][:, gone_D] = 0
    for block in range(3):
        part = f"model.layers.{block}"
        tensors[f"{part}.self_attn.o_proj.weight"].unflatten(1, (2, 16))[:, block % 2] = 0
        tensors[f"{part}.mlp.down_proj.weight"][:, gone_F] = 0
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"{part}.{name}.weight"][gone_D] = 0
    for name, tensor in tensors.items():
        if name.startswith("model.layers.1.") and tensor.dim() == 2:
            tensor.zero_()
        elif name.startswith("model.layers.") and name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            tensor[:, gone_D] = 0
        elif name.startswith("model.layers.") and name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensor[:, gone_D], tensor[gone_F] = 0, 0
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    done = walk(shape("taylor", TEXT, hidden=30, heads=2, layers=2, channels=46), sources, tmp_path)
    assert list(done.outcome.blocks) == [0, 2]
    kept_D = [dimension for dimension in range(32) if dimension not in gone_D]
    kept_F = [channel for channel in range(48) if channel not in gone_F]
    for index, block in enumerate(done.outcome.blocks):
        cut = block_tensors(done.checkpoint, index)
        dense = {name: tensors[f"model.layers.{block}.{name}.weight"] for name in ("mlp.up_proj", "self_attn.v_proj")}
        up, values = (cut[f"model.layers.{index}.{name}.weight"] for name in dense)
        assert torch.equal(up, dense["mlp.up_proj"][kept_F][:, kept_D])
        assert torch.equal(values, dense["self_attn.v_proj"][8 * (1 - block % 2) :][:8][:, kept_D])


def test_hidden_dimensions_are_judged_by_the_blocks_that_stay(
    save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    save_model("tiny", FAMILIES["llama"])
    done = walk(shape(hidden=40, layers=1), sources, tmp_path)
    (block,) = done.outcome.blocks
    scores = done.checkpoint.load_scores()[block]["hidden"]
    dense = load_file(sources.models_dir / "tiny" / "model.safetensors")[f"model.layers.{block}.mlp.up_proj.weight"]
    found = block_tensors(done.checkpoint, 0)["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(found, dense[:, best(scores, 40)])


def test_measures_of_some_kinds_are_not_taken_for_those_of_others(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    specs = [shape("taylor", TEXT, hidden=24), shape("taylor", TEXT, heads=2), shape("taylor", TEXT, **SMALL)]
    for number, spec in enumerate(specs):
        shared = walk(spec, sources, tmp_path / f"shared-{number}", cache=tmp_path / "cache")
        assert shared.blocks() == walk(spec, sources, tmp_path / f"alone-{number}").blocks()


SMALL = {"hidden": 24, "heads": 2, "layers": 2, "channels": 40}


def test_taylor_of_a_block_is_that_of_all_its_matrices() -> None:
    generator = seeded(0)
    tensors, gradient = (
        {f"model.layers.1.{name}": torch.randn(size, generator=generator) for name, size in SHAPES.items()}
        for _ in range(2)
    )
    families = [family for family in ALL_FAMILIES if family.block == 1]
    found = measure(DenseUnits(1, families, tensors, gradients=[gradient]), TaylorParams())
    expected = sum((tensors[name] * gradient[name]).abs().sum() for name in tensors if tensors[name].dim() == 2)
    torch.testing.assert_close(found["layer"], torch.tensor([expected], dtype=torch.float64))
    by_hidden = found["hidden"].sum() / found["layer"].item()
    assert by_hidden == pytest.approx(1), "each weight of a matrix is read or written by one hidden dimension"


def test_a_shape_that_the_model_has_removes_nothing(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    spec = shape(hidden=32, heads=4, layers=3, channels=48)
    assert any("nothing goes" in warning for warning in plan(spec, sources).warnings)
    written(walk(spec, sources, tmp_path), tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, tmp_path / "out"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


class TestRefuses:
    @pytest.mark.parametrize(
        ("sizes", "field", "words"),
        [
            ({"hidden": 33}, "/prune/hidden", "33 hidden dimensions, and the model 32"),
            ({"heads": 6}, "/prune/heads", "6 heads, and the model 4"),
            ({"heads": 3}, "/prune/heads", "2 query heads of the model share a key/value head"),
            ({"heads": 1}, "/prune/heads", "2 query heads of the model share a key/value head"),
            ({"layers": 4}, "/prune/layers", "4 layers, and the model 3"),
            ({"channels": 49, "hidden": 16}, "/prune/channels", "49 channels, and the model 48"),
        ],
    )
    def test_what_the_model_cannot_become(
        self, sizes: dict[str, int], field: str, words: str, tiny: Path, sources: Sources
    ) -> None:
        for refusing in (plan, load):
            with pytest.raises(InvalidSpec, match=words) as error:
                refusing(shape(**sizes), sources)
            assert error.value.field == field
            assert error.value.hint.startswith("give ")

    def test_blocks_that_the_score_protects(self, tiny: Path, sources: Sources) -> None:
        with pytest.raises(InvalidSpec, match="2 of 3 blocks are to go, and 6 must stay") as error:
            plan(shape("layer_magnitude", layers=1), sources)
        assert error.value.field == "/prune"

    @pytest.mark.parametrize(
        ("config", "kind"),
        [
            (Gemma2Config(**SIZES, head_dim=8), "hidden"),
            (AutoConfig.for_model("diffllama", **SIZES), "layers"),
            (OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2), "heads"),
            (OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2), "channels"),
        ],
        ids=["hidden", "layers", "heads", "channels"],
    )
    def test_families_that_cannot_lose_a_kind(
        self, config: Any, kind: str, save_model: SaveModel, sources: Sources
    ) -> None:
        save_model("tiny", config)
        spec = shape(**{kind: 2, "hidden": 16} if kind == "hidden" else {kind: 2})
        for refusing in (plan, load):
            with pytest.raises(UnsupportedModel) as error:
                refusing(spec, sources)
            assert error.value.field == f"/prune/{kind}"
            assert f"leave `{kind}` out" in error.value.hint

    @pytest.mark.parametrize(
        ("kind", "words"), [("channels", "channels, from 20 to 24"), ("heads", "heads, from 6 to 12")]
    )
    def test_one_size_for_blocks_that_differ(self, kind: str, words: str) -> None:
        facts = dict(FACTS)
        for name, size in (("gate_proj", (24, 16)), ("up_proj", (24, 16)), ("down_proj", (16, 24))):
            facts[f"model.layers.1.mlp.{name}.weight"] = TensorFacts("F32", size)
        for name, size in (("q_proj", (48, 16)), ("o_proj", (16, 48))):
            facts[f"model.layers.1.self_attn.{name}.weight"] = TensorFacts("F32", size)
        source, architecture = ModelSource("tiny", CONFIG, facts, {}, None, "0" * 40), recognise(CONFIG, facts)
        with pytest.raises(UnsupportedModel, match=words) as error:
            SHAPE.check(shape(**{kind: 2}), source, architecture)
        assert error.value.field == f"/prune/{kind}"
        SHAPE.check(shape(hidden=8), source, architecture)

    def test_no_family_that_can_lose_another_kind(self, save_model: SaveModel, sources: Sources) -> None:
        save_model("tiny", AutoConfig.for_model("diffllama", **SIZES))
        _, found = abilities(resolve_model(ModelRef(id="tiny"), sources))
        fitting = {each.method: each.spec for each in found if each.fits}
        assert "depth" not in fitting
        assert fitting["shape"] is not None
        assert fitting["shape"]["prune"] == {"method": "shape", "channels": 1}

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ({}, "give at least one of `hidden`"),
            ({"layers": 0}, "greater than or equal to 1"),
            ({"hidden": -1}, "greater than or equal to 1"),
            ({"score": "magnitude", "hidden": 24, "layers": 2}, "random, taylor would fit"),
            ({"score": "block_influence", "calibrate": TEXT, "heads": 2}, "score `block_influence` is about layers"),
            ({"allocate": {"method": "dlp"}, "calibrate": TEXT, "heads": 2}, "leave `allocate` out"),
            ({"refine": {"method": "dsnot"}, "calibrate": TEXT, "heads": 2}, "leave `refine` out"),
        ],
    )
    def test_by_the_spec(self, parts: dict[str, Any], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            shape(**parts)

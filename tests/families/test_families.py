"""One family or more of each layout, through every kind of job; what the committed table says must come of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families import loading, of_blocks, of_experts, of_masks, of_widths, sides
from tests.families.checkpoints import save, save_tiny, tiny_config, tiny_model
from tests.families.family import row_of
from tests.families.jobs import JOBS as ALL_JOBS
from tests.families.loading import stored
from tests.families.own_wanda import wanda_masks
from tests.families.rows import JOBS as NAMES
from tests.families.rows import TYPES, WRAPPERS, known
from tests.families.sides import Side, Wrong
from tests.families.wrappers import wrapper_class, wrapper_config
from workers.engine.architectures.layouts import layouts
from workers.engine.model.loaded import load_model

SAMPLES: dict[str, tuple[str, ...]] = {
    "Llama": ("gemma3_text", "qwen3", "qwen2_5_vl", "idefics3"),
    "mixture with Llama's names": ("qwen2_moe",),
    "Qwen3-VL-MoE": ("qwen3_vl_moe",),
}
"""Layout -> families of it that run in every test; of the others the first in the table. `make families` runs all."""
JOBS = ("wanda", "depth")
"""Kinds of job that every layout's sample runs; Llama's and Mixtral's run all but `tune`."""
TUNED = ("GPT-2", "Phi-3", "gpt-oss")
"""Layouts whose sample is tuned too: matrices transposed, fused, and stacked."""


def samples() -> list[tuple[str, str]]:
    """(layout, family); none where the table has no family of a layout."""
    rows = known()
    found = []
    for layout in layouts():
        own = [name for name, row in rows.items() if row.get("layout") == layout.name and TYPES.get(name, "") is None]
        chosen = SAMPLES.get(layout.name) or tuple(sorted(own)[:1]) or ("",)
        found += [(layout.name, family) for family in chosen]
    return found


@pytest.mark.parametrize(("layout", "family"), samples(), ids=lambda part: part or "none")
@pytest.mark.filterwarnings("ignore")
def test_a_family_of_each_layout(layout: str, family: str) -> None:
    assert family, f"no family of {layout} is in docs/families.jsonl: run `make families`"
    jobs = [*(job for job in ALL_JOBS if layout in ("Llama", "Mixtral") or job in JOBS)]
    jobs = [job for job in jobs if job != "tune"] + ["tune"] * (layout in TUNED)
    row, expected = row_of(family, jobs), known()[family]
    assert row["layout"] == layout
    wanted = {job: found["verdict"] for job, found in expected["jobs"].items() if job in jobs}
    found = {job: verdict["verdict"] for job, verdict in row["jobs"].items()}
    assert found == wanted, "run `make families` with --redo, and see that nothing is worse"


def test_the_table_has_every_type_of_transformers() -> None:
    assert tuple(ALL_JOBS) == NAMES
    assert TYPES.keys() == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    wanted = {name for name, reason in (TYPES | WRAPPERS).items() if reason is None}
    assert known().keys() == wanted, "run `make families`"


def test_nothing_in_the_table_is_wrong() -> None:
    for name, row in known().items():
        found = {job["verdict"] for job in row["jobs"].values()}
        assert found <= {"verified", "refused"}, name
        assert found or row["refused"], name


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Side:
    folder = tmp_path_factory.mktemp("dense") / "olmo"
    save_tiny("olmo", folder)
    return Side(folder)


@pytest.fixture
def written(dense: Side, tmp_path: Path) -> Callable[..., Side]:
    """Write a result: tensors and entries of the config that differ from the dense model's."""

    def write(tensors: dict[str, Tensor] | None = None, drop: tuple[str, ...] = (), **config: object) -> Side:
        whole = {name: t for name, t in (dense.files | (tensors or {})).items() if not name.startswith(drop or "\0")}
        of_widths.save(whole, tmp_path)
        entries = json.loads((dense.folder / "config.json").read_text()) | config
        (tmp_path / "config.json").write_text(json.dumps(entries))
        return Side(tmp_path)

    return write


IDS = torch.randint(4, 260, (4, 24), generator=torch.Generator().manual_seed(3))
PRUNED = tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down"))


@pytest.fixture(scope="module")
def pruned(dense: Side) -> dict[str, Tensor]:
    """The weights as Wanda leaves them."""
    names = [f"model.layers.{b}.{layer}.weight" for b in range(4) for layer in PRUNED]
    gone, _ = wanda_masks(loading.load(dense.folder)[0], IDS, dict.fromkeys(names), 0.5)
    return {name: dense.files[name].masked_fill(gone[name], 0.0) for name in names}


def test_own_wanda_is_the_formula(dense: Side, pruned: dict[str, Tensor]) -> None:
    seen = {}
    layer = dense.model.get_submodule("model.layers.0.mlp.down_proj")
    handle = layer.register_forward_hook(lambda _, args, out: seen.update(x=args[0].flatten(0, -2)))
    loading.logits(dense.model, IDS)
    handle.remove()
    score = layer.weight.abs() * seen["x"].square().sum(0).sqrt()
    lowest = score.argsort(dim=1, stable=True)[:, :24]
    zero = pruned["model.layers.0.mlp.down_proj.weight"] == 0
    assert torch.equal(zero, torch.zeros_like(zero).scatter_(1, lowest, True))


def test_checks_of_masks_can_fail(dense: Side, pruned: dict[str, Tensor], written: Callable[..., Side]) -> None:
    good, name = pruned, "model.layers.2.mlp.up_proj.weight"

    def check(**changes: Tensor) -> None:
        result = written(good | changes)
        sides.loads(result)
        changed = of_masks.same_otherwise(dense, result)
        of_masks.zeros_per_row(changed, 0.5, rows=True, kept=True)
        of_masks.same_masks(dense, changed, IDS, 0.5)

    check()
    one_more, other, magnitude = good[name].clone(), good[name].clone(), dense.files[name].clone()
    one_more[0, one_more[0].nonzero()[0]] = 0.0
    other[0, other[0].nonzero()[0]] *= 1.5
    magnitude.scatter_(1, magnitude.abs().argsort(dim=1)[:, :16], 0.0)
    for bad, said in ((one_more, "zeros"), (other, "not zero"), (magnitude, "not Wanda's")):
        with pytest.raises(Wrong, match=said):
            check(**{name: bad})
    with pytest.raises(Wrong, match="that are not zero"):
        check(**{"model.embed_tokens.weight": dense.files["model.embed_tokens.weight"] * 1.01})
    with pytest.raises(Wrong, match="from_pretrained says"):
        sides.loads(written(good, drop=(name,)))


def test_checks_of_depth_can_fail(dense: Side, written: Callable[..., Side]) -> None:
    def moved(order: tuple[int, ...]) -> dict[str, Tensor]:
        inside = {n.split(".", 3)[3] for n in dense.files if n.startswith("model.layers.")}
        return {
            f"model.layers.{to}.{n}": dense.files[f"model.layers.{of}.{n}"]
            for to, of in enumerate(order)
            for n in inside
        }

    gone = ("model.layers.3.",)
    assert of_blocks.without_block(dense, written(moved((0, 2, 3)), drop=gone, num_hidden_layers=3)) == "block 1"
    with pytest.raises(Wrong, match="no block of the dense model"):
        of_blocks.without_block(dense, written(moved((0, 3, 2)), drop=gone, num_hidden_layers=3))
    slower = {"rope_type": "default", "rope_theta": 100.0}
    other = written(moved((0, 2, 3)), drop=gone, num_hidden_layers=3, rope_parameters=slower)
    with pytest.raises(Wrong, match="logits are others"):
        of_blocks.without_block(dense, other)


def test_checks_of_widths_can_fail(dense: Side, written: Callable[..., Side], tmp_path: Path) -> None:
    kept = torch.arange(0, 48, 2)

    def cut(reader: Tensor = kept, rows: Tensor = kept) -> Side:
        tensors = {}
        for block in range(4):
            for part, axis, which in (("gate", 0, rows), ("up", 0, rows), ("down", 1, reader)):
                name = f"model.layers.{block}.mlp.{part}_proj.weight"
                tensors[name] = dense.files[name].index_select(axis, which)
        return written(tensors, intermediate_size=24)

    def check(result: Side) -> None:
        (tmp_path / "masked").mkdir(exist_ok=True)
        of_widths.masked(dense, result, tmp_path / "masked")

    check(cut())
    with pytest.raises(Wrong, match="logits are others"):
        check(cut(reader=kept + 1))
    with pytest.raises(Wrong, match="no part of the dense"):
        check(cut(rows=kept.flip(0)))
    with pytest.raises(Wrong, match="nothing was cut"):
        check(written())


def test_generation_without_a_cache_is_compared(dense: Side) -> None:
    assert sides.cached(dense) < sides.TOLERANCE
    assert stored(dense.folder).keys() == dense.files.keys()


def test_checks_of_experts_can_fail(tmp_path: Path) -> None:
    save_tiny("olmoe", tmp_path / "dense")
    dense = Side(tmp_path / "dense")

    def without(kept: list[int], of_router: list[int]) -> Side:
        config = tiny_config("olmoe", num_experts=len(kept), num_local_experts=len(kept))
        smaller = tiny_model(config, AutoModelForCausalLM.from_config)
        state = {}
        for name, tensor in dense.state.items():
            routed = name.endswith("mlp.gate.weight")
            state[name] = tensor[of_router if routed else kept] if routed or ".experts." in name else tensor
        smaller.load_state_dict(state)
        folder = tmp_path / f"{kept}-{of_router}".replace(" ", "")
        smaller.save_pretrained(folder)
        return Side(folder)

    assert of_experts.without_experts(dense, without([0, 2, 3, 6, 7], [0, 2, 3, 6, 7])) == "5 of 8"
    with pytest.raises(Wrong, match="other experts stay"):
        of_experts.without_experts(dense, without([0, 2, 3, 6, 7], [0, 1, 3, 6, 7]))
    with pytest.raises(Wrong, match="no part of the dense"):
        of_experts.without_experts(dense, without([0, 3, 2, 6, 7], [0, 3, 2, 6, 7]))


@pytest.mark.filterwarnings("ignore")
def test_a_parameter_that_a_wrapper_itself_has_is_not_of_its_decoder(tmp_path: Path) -> None:
    """LLaVA-NeXT's line break of images is one; tuning loads the decoder alone."""
    save(tiny_model(wrapper_config("llava_next"), wrapper_class("llava_next")), tmp_path)
    assert "image_newline" in stored(tmp_path)
    parameters = dict(load_model(tmp_path, torch.device("cpu"), torch.float32).named_parameters())
    assert parameters
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in parameters)
    assert not any(parameter.is_meta for parameter in parameters.values())

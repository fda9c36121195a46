"""Canonical tensors in tensors that hold several: read where they lie, written back where they lay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workers.engine.architectures.architecture import Layout
from workers.engine.architectures.canonical import canonical_slices, in_files, in_modules
from workers.engine.architectures.fused import Fused
from workers.engine.architectures.parts import fused, stacked
from workers.engine.errors import UnsupportedModel
from workers.engine.files.safetensors_bytes import read_header
from workers.engine.files.tensors import overwrite, read_tensor

SIZES = {"query": 4, "key": 2, "head": 2, "group": 4}
X = torch.arange(24.0)


def layout(*stored: Fused, built: tuple[Fused, ...] | None = None) -> Layout:
    return Layout("toy", "h", "embed", "norm", "head", (), (), stored=stored, built=built)


CASES = {
    "rows of one matrix": (
        fused("qkv", ("q", "k", "v"), ("query", "key", "key")),
        {"qkv.weight": X.view(8, 3), "qkv.bias": X[:8]},
        {
            "q.weight": X.view(8, 3)[:4],
            "k.weight": X.view(8, 3)[4:6],
            "v.weight": X.view(8, 3)[6:],
            "q.bias": X[:4],
            "k.bias": X[4:6],
            "v.bias": X[6:8],
        },
    ),
    "halves": (
        fused("gate_up", ("gate", "up")),
        {"gate_up.weight": X.view(4, 6)},
        {"gate.weight": X.view(4, 6)[:2], "up.weight": X.view(4, 6)[2:]},
    ),
    "head by head": (
        fused("qkv", ("q", "k", "v"), ("head",), repeats=True),
        {"qkv.weight": X.view(12, 2)},
        {
            "q.weight": X.view(12, 2)[[0, 1, 6, 7]],
            "k.weight": X.view(12, 2)[[2, 3, 8, 9]],
            "v.weight": X.view(12, 2)[[4, 5, 10, 11]],
        },
    ),
    "transposed": (
        (Fused("up.weight", ("up.weight",), transposed=True),),
        {"up.weight": X.view(4, 6)},
        {"up.weight": X.view(4, 6).T},
    ),
    "experts, outputs in turn, transposed": (
        (stacked("experts.gate_up", ("experts.{}.gate", "experts.{}.up"), repeats=True, transposed=True),),
        {"experts.gate_up": X.view(2, 3, 4)},
        {
            f"experts.{e}.{name}.weight": X.view(2, 3, 4)[e, :, start::2].T
            for e in (0, 1)
            for start, name in enumerate(("gate", "up"))
        },
    ),
    "experts by halves": (
        (stacked("experts.gate_up", ("experts.{}.gate", "experts.{}.up")),),
        {"experts.gate_up": X.view(2, 4, 3)},
        {
            f"experts.{e}.{name}.weight": X.view(2, 2, 2, 3)[e, half]
            for e in (0, 1)
            for half, name in enumerate(("gate", "up"))
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_are_read_from_the_whole_and_make_it_up(case: str, tmp_path: Path) -> None:
    rows, wholes, parts = CASES[case]
    toy = layout(*rows)
    stored = {f"h.1.{name}": tensor.clone() for name, tensor in wholes.items()} | {"embed.weight": X.clone()}
    save_file(stored, tmp_path / "file")
    found = canonical_slices(toy, SIZES, read_header(tmp_path / "file"))
    expected = {f"h.1.{name}": part for name, part in parts.items()} | {"embed.weight": X}
    assert found.keys() == expected.keys()
    for name, piece in found.items():
        assert piece.facts.shape == tuple(expected[name].shape)
        assert torch.equal(read_tensor(piece), expected[name]), name
    for joined in (in_files(toy, SIZES, expected), in_modules(toy, SIZES, expected)):
        assert joined.keys() == stored.keys()
        assert all(torch.equal(joined[name], tensor) for name, tensor in stored.items())

    for name, piece in found.items():  # one after another: none touches its neighbours
        overwrite(piece, -read_tensor(piece))
        assert torch.equal(read_tensor(piece), -expected[name])
    for name, piece in read_header(tmp_path / "file").items():
        assert torch.equal(read_tensor(piece), -stored[name])


def test_modules_may_hold_another_form_than_files() -> None:
    """Mixtral's: files hold each expert's matrices, modules all experts' in one tensor, under another path."""
    built = (stacked("moe.experts.up", ("moe.experts.{}.w1",)),)
    toy = Layout("toy", "h", "e", "n", "u", (), (), built=built, renamed=(("moe", "mlp"),))
    parts = {f"h.0.moe.experts.{e}.w1.weight": X[12 * e : 12 * e + 12].view(3, 4) for e in (1, 0)}
    parts["h.0.moe.gate.weight"] = X.view(2, 12)
    joined = in_modules(toy, SIZES, parts)
    assert joined.keys() == {"h.0.mlp.experts.up", "h.0.mlp.gate.weight"}
    assert torch.equal(joined["h.0.mlp.experts.up"], X.view(2, 3, 4))
    assert in_files(toy, SIZES, parts) == parts
    assert toy.host("h.0.moe.experts.1.w1") == "h.0.mlp.experts"
    assert toy.from_module("h.0.mlp.gate.weight") == "h.0.moe.gate.weight"
    assert toy.from_module("h.0.mlpish.weight") == "h.0.mlpish.weight"


@pytest.mark.parametrize(("shape", "rows"), [((9, 2), "qkv"), ((7, 2), "qkv"), ((8,), "experts")])
def test_a_tensor_that_is_not_made_of_its_parts_is_refused(shape: tuple[int, ...], rows: str, tmp_path: Path) -> None:
    toy = {
        "qkv": layout(*fused("qkv", ("q", "k", "v"), ("query", "key", "key"))),
        "experts": layout(stacked("qkv.weight", ("e.{}.a", "e.{}.b"))),
    }[rows]
    save_file({"h.0.qkv.weight": torch.zeros(shape)}, tmp_path / "file")
    with pytest.raises(UnsupportedModel, match=r"h\.0\.qkv\.weight"):
        canonical_slices(toy, SIZES, read_header(tmp_path / "file"))

"""Weights of a mixture of experts are pruned as a plain reading of the papers says, with hooks on transformers' model.

What each matrix reads is recorded while the dense block runs in transformers; all of a block is pruned at once, and the
pruned block feeds the next. O = outputs, I = inputs, N = tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests.helpers.golden import EXAMPLES, compressed
from workers.engine.files.tensors import read_tensor
from workers.engine.model.loaded import slices_of

MODEL = "bookworm-moe-8m"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DAMPING, COLUMNS = 0.01, 128
TOLERANCE = {"wanda": (1e-5, 1e-5), "sparsegpt": (1e-3, 5e-2)}
"""Method -> largest share of places that may differ in the first block, and in any. Sums are rounded in another order,
so that of two nearly equal weights the other may go; with SparseGPT later choices follow from it, and later blocks."""


class Seen:
    """Gram matrices of the inputs of a block's matrices, by their names in the files."""

    def __init__(self, block: Any, prefix: str) -> None:
        self.block, self.prefix, self.grams = block, prefix, {}
        self.weights: dict[str, Tensor] = {
            f"{prefix}.self_attn.{n}": getattr(block.self_attn, n).weight.data for n in ATTENTION
        }
        up, down = block.mlp.experts.gate_up_proj.data, block.mlp.experts.down_proj.data
        inner = up.shape[1] // 2
        for e in range(len(up)):
            name = f"{prefix}.block_sparse_moe.experts.{e}"
            self.weights |= {f"{name}.w1": up[e, :inner], f"{name}.w3": up[e, inner:], f"{name}.w2": down[e]}

    def __enter__(self) -> Seen:
        self.handles = [
            getattr(self.block.self_attn, name).register_forward_pre_hook(
                lambda _, args, name=name: self.add(f"{self.prefix}.self_attn.{name}", args[0].flatten(0, -2))
            )
            for name in ATTENTION
        ]
        self.handles.append(self.block.mlp.experts.register_forward_pre_hook(lambda _, args: self.experts(*args)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def experts(self, hidden_ND: Tensor, index_NK: Tensor, _: Tensor) -> None:
        for e in range(self.block.mlp.experts.num_experts):
            name = f"{self.prefix}.block_sparse_moe.experts.{e}"
            x = hidden_ND[(index_NK == e).any(dim=1)]
            inner = functional.silu(x @ self.weights[f"{name}.w1"].T) * (x @ self.weights[f"{name}.w3"].T)
            self.add(f"{name}.w1", x)
            self.add(f"{name}.w3", x)
            self.add(f"{name}.w2", inner)

    def add(self, name: str, x: Tensor) -> None:
        tokens, gram_II = self.grams.get(name, (0, 0))
        self.grams[name] = tokens + len(x), gram_II + x.T @ x


def lowest(score: Tensor, pattern: str) -> Tensor:
    """True for the lower half: of each row, or of each four of it."""
    groups = score if pattern == "50%" else score.unflatten(1, (-1, 4))
    order = groups.argsort(dim=-1, stable=True)[..., : groups.shape[-1] // 2]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, value=True).view(score.shape)


def wanda(weight_OI: Tensor, gram_II: Tensor, pattern: str) -> Tensor:
    """Sun et al. 2023, equation 1."""
    return weight_OI.masked_fill(lowest(weight_OI.abs() * gram_II.diagonal().sqrt(), pattern), 0)


def sparsegpt(weight_OI: Tensor, gram_II: Tensor, pattern: str) -> Tensor:
    """Frantar & Alistarh 2023, algorithm 1, column by column."""
    left_OI, hessian_II = weight_OI.clone(), gram_II.clone()
    hessian_II.diagonal().add_(DAMPING * hessian_II.diagonal().mean())
    factor_II = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian_II)), upper=True)
    mask_OI = torch.zeros_like(left_OI, dtype=torch.bool)
    inputs = left_OI.shape[1]
    for begin in range(0, inputs, COLUMNS):
        end = min(begin + COLUMNS, inputs)
        if pattern == "50%":
            score = (left_OI[:, begin:end] / factor_II.diagonal()[begin:end]).square()
            count = score.numel() // 2
            mask_OI[:, begin:end].view(score.shape).copy_(
                torch.zeros(score.numel(), dtype=torch.bool)
                .scatter_(0, score.flatten().argsort(stable=True)[:count], value=True)
                .view(score.shape)
            )
        for column in range(begin, end):
            if pattern == "2:4" and column % 4 == 0:
                four = slice(column, column + 4)
                mask_OI[:, four] = lowest((left_OI[:, four] / factor_II.diagonal()[four]).square(), "2:4")
            error_O = left_OI[:, column].where(mask_OI[:, column], 0) / factor_II[column, column]
            left_OI[:, column:] -= error_O[:, None] * factor_II[column, column:]
    return left_OI.masked_fill(mask_OI, 0)


def pruned(windows_NT: Tensor, rule: Any, pattern: str) -> dict[str, Tensor]:
    """Matrix -> its weights after pruning, of the whole model."""
    model = AutoModelForCausalLM.from_pretrained(
        EXAMPLES / "models" / MODEL, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for number, block in enumerate(model.model.layers):
            seen = Seen(block, f"model.layers.{number}")
            with seen:
                for ids_BT in windows_NT.split(8):
                    model(ids_BT, use_cache=False)  # all of it: blocks before are pruned, those behind do not matter
            for name, weight_OI in seen.weights.items():
                tokens, gram_II = seen.grams[name]
                new_OI = rule(weight_OI, gram_II / tokens, pattern).to(torch.bfloat16)
                weight_OI.copy_(new_OI)
                found[name] = new_OI
    return found


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("wanda", "50%"),  # quick proof enough for every `make test`; `make golden` runs all
        *(
            pytest.param(*case, marks=pytest.mark.golden)
            for case in (("wanda", "2:4"), ("sparsegpt", "50%"), ("sparsegpt", "2:4"))
        ),
    ],
)
def test_masks_are_those_of_a_plain_implementation(
    method: str, pattern: str, windows: dict[str, Tensor], tmp_path: Path
) -> None:
    """On 16 windows, 2048 tokens an expert on average."""
    kept = {"sparsity": 0.5} if pattern == "50%" else {"pattern": pattern}
    parts = {"score": {"method": "wanda"}, "prune": {"method": "mask"} | kept}
    if method == "sparsegpt":
        parts = {"prune": {"method": "sparsegpt"} | kept}
    windows_NT = windows["calibration"][:16]
    compressed(tmp_path, windows_NT, parts, MODEL)
    expected = pruned(windows_NT, wanda if method == "wanda" else sparsegpt, pattern)
    slices = slices_of(tmp_path / "model")
    differing, total = Counter[str](), Counter[str]()
    for name, wanted_OI in expected.items():
        found_OI = read_tensor(slices[f"{name}.weight"])
        block = name.split(".")[2]
        differing[block] += int(((found_OI == 0) != (wanted_OI == 0)).sum())
        total[block] += wanted_OI.numel()
        assert found_OI.count_nonzero() == wanted_OI.count_nonzero(), name
    shares = {block: differing[block] / total[block] for block in total}
    logging.getLogger(__name__).info("%s, %s: %s of the places of a block differ", method, pattern, shares)
    first, most = TOLERANCE[method]
    assert shares["0"] <= first
    assert max(shares.values()) <= most

"""OPT, on which the papers measured, beside their procedures in plain torch, with hooks on transformers' model.

All of a block is pruned at once, and the pruned block feeds the next. O = outputs, I = inputs, N = windows, T = tokens,
D = hidden size.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from tests.families.checkpoints import VOCABULARY, tokenizer
from tests.helpers.small_models import load, spec_of, text_of
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.sources import resolve
from workers.engine.sources.resolve import Sources
from workers.engine.stages import package

DAMPING, COLUMNS = 0.01, 128
WINDOWS = {"dataset": "calibration.txt", "samples": 16, "sequence_length": 64}


@pytest.fixture(autouse=True)
def plain_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all the rest."""
    monkeypatch.setattr(package, "render_page", lambda report: "")


@pytest.fixture
def dense(sources: Sources) -> OPTForCausalLM:
    """OPT-125M with a quarter of its width, fewer blocks and tokens, random in every tensor."""
    sizes = {"hidden_size": 192, "word_embed_proj_dim": 192, "ffn_dim": 768, "num_attention_heads": 3}
    config = OPTConfig(vocab_size=VOCABULARY, num_hidden_layers=3, max_position_embeddings=128, **sizes)
    torch.manual_seed(0)
    model = OPTForCausalLM(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.add_(0.02 * torch.randn(tensor.shape)) if name.endswith(("bias", "norm.weight")) else None
    model.save_pretrained(sources.models_dir / "tiny")
    tokenizer().save_pretrained(sources.models_dir / "tiny")
    return model


def result_of(sources: Sources, folder: Path, **parts: Any) -> OPTForCausalLM:
    compress(spec_of(**{"calibrate": WINDOWS, **parts}), folder, sources, Silent(), folder / "checkpoint")
    found: OPTForCausalLM = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    return found


def windows(sources: Sources) -> Tensor:
    spec = spec_of(calibrate=WINDOWS)
    return text_of(spec, load(spec, sources), sources).windows_NT


def linears(model: OPTForCausalLM, block: int) -> dict[str, nn.Linear]:
    inside = model.model.decoder.layers[block].named_modules()
    return {name: module for name, module in inside if isinstance(module, nn.Linear)}


def grams(model: OPTForCausalLM, block: int, windows_NT: Tensor) -> dict[str, Tensor]:
    """Layer of a block -> mean over tokens of x xᵀ, of its inputs."""
    found: dict[str, Tensor] = {}

    def seen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2)
            found[name] = x.T @ x / len(x)

        return hook

    handles = [layer.register_forward_pre_hook(seen(name)) for name, layer in linears(model, block).items()]
    model(windows_NT, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def wanda(weight_OI: Tensor, gram_II: Tensor) -> Tensor:
    """Sun et al. 2023, equation 1: the lower half of every row."""
    score = weight_OI.abs() * gram_II.diagonal().sqrt()
    lowest = score.argsort(dim=1, stable=True)[:, : score.shape[1] // 2]
    return weight_OI.scatter(1, lowest, 0.0)


def sparsegpt(weight_OI: Tensor, gram_II: Tensor) -> Tensor:
    """Frantar & Alistarh 2023, algorithm 1: half of every 128 columns."""
    left_OI, hessian_II = weight_OI.clone(), gram_II.clone()
    hessian_II.diagonal().add_(DAMPING * hessian_II.diagonal().mean())
    factor_II = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian_II)), upper=True)
    for begin in range(0, left_OI.shape[1], COLUMNS):
        columns = slice(begin, min(begin + COLUMNS, left_OI.shape[1]))
        some_OC, own_CC = left_OI[:, columns], factor_II[columns, columns]
        score = (some_OC / own_CC.diagonal()).square()
        gone = torch.zeros(score.numel(), dtype=torch.bool)
        gone[score.flatten().argsort(stable=True)[: score.numel() // 2]] = True
        gone, errors = gone.view(score.shape), torch.zeros_like(some_OC)
        for column in range(some_OC.shape[1]):
            errors[:, column] = some_OC[:, column].where(gone[:, column], 0) / own_CC[column, column]
            some_OC[:, column:] -= errors[:, column : column + 1] * own_CC[column, column:]
        some_OC[gone] = 0.0
        left_OI[:, columns.stop :] -= errors @ factor_II[columns, columns.stop :]
    return left_OI


@pytest.mark.parametrize(
    ("rule", "parts", "most"),
    [(wanda, {}, 0.0), (sparsegpt, {"score": None, "prune": {"method": "sparsegpt", "sparsity": 0.5}}, 5e-2)],
    ids=["wanda", "sparsegpt"],
)
def test_masks_are_the_papers(
    rule: Callable[[Tensor, Tensor], Tensor],
    parts: Mapping[str, Any],
    most: float,
    dense: OPTForCausalLM,
    sources: Sources,
    tmp_path: Path,
) -> None:
    """`most`: the share of places that may differ: sums are rounded in another order, of two nearly equal weights the
    other may go, and later choices follow from it. What a layer's outputs lose is the same."""
    found = result_of(sources, tmp_path / "found", **parts)
    windows_NT = windows(sources)
    with torch.no_grad():
        for block in range(3):
            seen = grams(dense, block, windows_NT)
            for name, layer in linears(dense, block).items():
                wanted_OI = rule(layer.weight, seen[name])
                found_OI = linears(found, block)[name].weight
                assert ((found_OI == 0) != (wanted_OI == 0)).float().mean() <= most, (block, name)
                assert (found_OI == 0).float().mean() == 0.5
                lost, as_wanted = (
                    ((other_OI - layer.weight) @ seen[name] * (other_OI - layer.weight)).sum()
                    for other_OI in (found_OI, wanted_OI)
                )
                assert lost == pytest.approx(as_wanted, rel=5e-2), (block, name)
                layer.weight.copy_(wanted_OI)


def test_channels_are_llm_pruners(dense: OPTForCausalLM, sources: Sources, tmp_path: Path) -> None:
    """First-order Taylor of the mean loss, |w g| over a channel's row, bias and column (Ma et al. 2023)."""
    prune = {"method": "structured", "sparsity": 0.25, "units": ["channel"], "compensate": False}
    found = result_of(sources, tmp_path / "found", score={"method": "taylor"}, prune=prune)
    windows_NT = windows(sources)
    dense(windows_NT, labels=windows_NT).loss.backward()
    for block in range(3):
        before, after = linears(dense, block), linears(found, block)
        up, down = before["fc1"], before["fc2"]
        up_gradient, bias_gradient, down_gradient = (p.grad for p in (up.weight, up.bias, down.weight))
        assert up_gradient is not None
        assert bias_gradient is not None
        assert down_gradient is not None
        importance = (up.weight * up_gradient).abs().sum(1) + (up.bias * bias_gradient).abs()
        importance += (down.weight * down_gradient).abs().sum(0)
        kept = importance.argsort(stable=True)[len(importance) - after["fc1"].out_features :].sort().values
        assert torch.equal(after["fc1"].weight, up.weight[kept])
        assert torch.equal(after["fc1"].bias, up.bias[kept])
        assert torch.equal(after["fc2"].weight, down.weight[:, kept])
        assert torch.equal(after["fc2"].bias, down.bias)


def test_the_block_that_goes_is_shortgpts(dense: OPTForCausalLM, sources: Sources, tmp_path: Path) -> None:
    """The one whose output is most like its input (Men et al. 2024)."""
    score = {"method": "block_influence"}
    found = result_of(sources, tmp_path / "found", score=score, prune={"method": "depth", "layers": 1})
    with torch.no_grad():
        states = dense(windows(sources), output_hidden_states=True, use_cache=False).hidden_states
        last = states[-1]  # after the final norm: the last block's output is taken from the block itself
        outputs = []
        handle = dense.model.decoder.layers[2].register_forward_hook(lambda _, __, output: outputs.append(output))
        dense(windows(sources), use_cache=False)
        handle.remove()
        assert last.shape == outputs[0].shape
        ends = [*states[:3], outputs[0]]
        influence = [1 - cosine_similarity(ends[b], ends[b + 1], dim=-1).mean().item() for b in range(3)]
    gone = influence.index(min(influence))
    kept = [block for block in range(3) if block != gone]
    for new, block in enumerate(kept):
        for name, layer in linears(dense, block).items():
            assert torch.equal(layer.weight, linears(found, new)[name].weight)


@pytest.mark.parametrize(
    ("entries", "parameters"),
    [
        ({}, 125_239_296),
        (
            {
                "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096,
                "word_embed_proj_dim": 512, "do_layer_norm_before": False,
            },
            331_196_416,
        ),
        ({"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "ffn_dim": 8192}, 1_315_758_080),
        ({"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 10240}, 2_651_596_800),
        ({"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 16384}, 6_658_473_984),
    ],
    ids=["125m", "350m", "1.3b", "2.7b", "6.7b"],
)  # fmt: skip
def test_a_plan_counts_the_published_parameters(
    entries: dict[str, Any], parameters: int, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From headers alone: the file is as long as its header says, and holds nothing."""
    config = OPTConfig(**{"word_embed_proj_dim": entries.get("hidden_size", 768)} | entries)
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in OPTForCausalLM(config).named_parameters()}
    folder = sources.models_dir / "tiny"
    config.architectures = ["OPTForCausalLM"]
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + 2 * math.prod(shape)]}
        end += 2 * math.prod(shape)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    monkeypatch.setattr(resolve, "sha256_file", lambda _: "0" * 64)
    found = plan(spec_of(score={"method": "magnitude"}, calibrate=None), sources)
    assert found.parameters == parameters
    assert found.prunable_parameters == sum(math.prod(s) for n, s in shapes.items() if ".layers." in n and len(s) > 1)

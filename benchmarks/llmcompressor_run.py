"""The peer's half of `benchmarks.engine`: llm-compressor prunes a model folder. Runs in the peer's own environment.

    python llmcompressor_run.py MODEL WINDOWS OUT --method sparsegpt [--sparsity 0.5] [--dtype float32] [--batch 8]

Imports nothing of ours. The last line on standard output is a JSON object: seconds of loading, pruning and saving.
N = windows, T = tokens of a window.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

MODIFIERS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}
TARGETS = ["re:.*_proj$"]
"""The decoder's linear layers. `Linear`, its default, also takes an output head, and with it tied embeddings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("windows", type=Path, help="safetensors file with `windows`, token ids [N, T]")
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", choices=MODIFIERS, required=True)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=1, help="windows per forward pass")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    marks = [time.perf_counter()]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    model.to(arguments.device)
    marks.append(time.perf_counter())
    windows_NT = load_file(arguments.windows)["windows"]
    oneshot(
        model=model,
        # No attention mask: the windows have no padding, and a causal mask alone takes the faster attention.
        dataset=DataLoader([{"input_ids": window_T} for window_T in windows_NT], batch_size=arguments.batch),
        recipe=MODIFIERS[arguments.method](sparsity=arguments.sparsity, targets=TARGETS),
        num_calibration_samples=len(windows_NT),
    )
    marks.append(time.perf_counter())
    model.save_pretrained(arguments.out, save_compressed=False)
    marks.append(time.perf_counter())

    load_s, prune_s, save_s = (after - before for before, after in pairwise(marks))
    result = {"load_s": load_s, "prune_s": prune_s, "save_s": save_s}
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

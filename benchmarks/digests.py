"""Whether a change of the code changes a result: digests of the weights of many specs, by two commits on one machine.

    python -m benchmarks.digests BASE [--only taylor]      or: make digests BASE=main

BASE is checked out beside this tree; both make every result from the same random models and texts, one thread each.
Prints what differs and exits with 1 if anything does. A digest covers the tensors (name, type, shape, bytes) and the
config of the result, not what is written beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TEXT = {"dataset": "calibration.txt", "samples": 6, "sequence_length": 128}
PERPLEXITY = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 128, "samples": 4}
WANDA = {"score": {"method": "wanda"}, "prune": {"method": "mask", "sparsity": 0.5}}
SIZES = {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.22, "embedding_multiplier": 12.0},
    "cohere2": {"logit_scale": 0.25}, "olmo2": {}, "stablelm": {},
}  # fmt: skip


def specs() -> dict[str, dict[str, Any]]:
    """Name -> spec, but for the text: every method, allocator, pattern, target, refresh, removal, tuning and family."""
    found = {f"score {name}": _masked(name) for name in ("magnitude", "wanda", "ria")}
    found |= {
        f"allocate {name}": WANDA | {"allocate": {"method": name}}
        for name in ("alpha_pruning", "atp", "dlp", "isc", "owl", "search")
    }
    found["allocate alpha_pruning, mixed"] = WANDA | {"allocate": {"method": "alpha_pruning", "granularity": "mixed"}}
    for pruner in ("sparsegpt", "mrp", "fista"):
        found[f"prune {pruner}"] = {"prune": {"method": pruner, "sparsity": 0.5}}
        found[f"prune {pruner} 2:4"] = {"prune": {"method": pruner, "pattern": "2:4"}}
    found["prune mask 2:4"] = WANDA | {"prune": {"method": "mask", "pattern": "2:4"}}
    found["prune mask 4:8, owl"] = found["prune mask 2:4"] | {
        "prune": {"method": "mask", "pattern": "4:8"}, "allocate": {"method": "owl"},
    }  # fmt: skip
    found["perplexity_ratio"] = WANDA | {
        "prune": {"method": "mask", "perplexity_ratio": 1.2}, "evaluate": [PERPLEXITY],
    }  # fmt: skip
    found["refine dsnot"] = WANDA | {"refine": {"method": "dsnot"}}
    found["refresh projection"] = WANDA | {"calibrate": TEXT | {"refresh": "projection"}}
    found["sparsegpt, projection"] = found["prune sparsegpt"] | {"calibrate": TEXT | {"refresh": "projection"}}
    found["package float32"] = found["prune sparsegpt"] | {"package": {"dtype": "float32"}}
    found["compute bfloat16"] = found["prune sparsegpt"] | {"compute": {"dtype": "bfloat16"}}
    found["memory budget"] = found["prune sparsegpt"] | {"compute": {"memory_budget": 3 * 2**28}}
    for name in ("taylor", "saap", "random", "wanda", "magnitude", "ria"):
        found[f"units {name}"] = _units(name)
    found["units taylor, ranking"] = _units("taylor") | {"allocate": {"method": "ranking"}}
    found["units taylor, owl"] = _units("taylor") | {"allocate": {"method": "owl"}}
    found["units at_most"] = _units("taylor") | {
        "prune": {"method": "structured", "at_most": {"parameters": 6_000_000}}
    }
    for name in ("block_influence", "layer_magnitude", "layer_taylor", "layer_perplexity", "reverse_order"):
        found[f"depth {name}"] = {"score": {"method": name}, "prune": {"method": "depth", "layers": 1}}
    for name in ("taylor", "wanda"):
        found[f"hidden {name}"] = {"score": {"method": name}, "prune": {"method": "hidden", "sparsity": 0.25}}
    tuned = {"dataset": "calibration.txt", "steps": 4, "batch": 2, "sequence_length": 64, "learning_rate": 1e-3}
    tuned |= {"distill": None}
    for name in ("full", "lora", "last_layers", "group"):
        found[f"tune {name}"] = WANDA | {"tune": {"method": name} | tuned}
    found["tune lora, distilled"] = _units("taylor") | {"tune": tuned | {"method": "lora", "distill": {"weight": 1.0}}}
    for name in FAMILIES:
        found[f"{name}: sparsegpt"] = found["prune sparsegpt"] | {"model": {"id": name}}
        found[f"{name}: depth"] = found["depth block_influence"] | {"model": {"id": name}}
        if name not in ("olmo2", "stablelm"):
            found[f"{name}: units"] = _units("taylor") | {"model": {"id": name}}
    return {name: {"model": {"id": "bookworm-7m"}, "calibrate": TEXT} | spec for name, spec in found.items()}


def _masked(score: str) -> dict[str, Any]:
    return WANDA | {"score": {"method": score}}


def _units(score: str) -> dict[str, Any]:
    return {"score": {"method": score}, "prune": {"method": "structured", "sparsity": 0.25}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="commit to compare with")
    parser.add_argument("--only", default="", help="specs whose name holds this text")
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)  # a child: print name -> digest
    arguments = parser.parse_args()
    if arguments.models:
        for name, spec in specs().items():
            if arguments.only in name:
                print(json.dumps({"name": name, "digest": _digest_of(spec, arguments.models)}), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        base, models = Path(folder) / "base", Path(folder) / "models"
        _make(models)
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", base, arguments.base], check=True)
        try:
            before, after = (_child(tree, models, arguments.only) for tree in (base, ROOT))
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", base], check=True)
    differing = [name for name in after if before[name] != after[name]]
    for name in differing:
        print(f"{name}\n    {before[name]}\n    {after[name]}")
    print(f"{len(after)} specs, {len(differing)} differ from {arguments.base}")
    sys.exit(bool(differing))


def _make(models: Path) -> None:
    """The shipped model, and a random one of every family with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    bookworm = ROOT / "examples/models/bookworm-7m"
    shutil.copytree(bookworm, models / "bookworm-7m")
    for name, details in FAMILIES.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **SIZES | details)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(models / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(bookworm / file, models / name)


def _child(tree: Path, models: Path, only: str) -> dict[str, str]:
    """Name of each spec -> digest, or the error, by the engine in `tree`."""
    command = [sys.executable, str(ROOT / "benchmarks/digests.py"), "--models", str(models), "--only", only]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = {}
    with subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            row = json.loads(line)
            found[row["name"]] = row["digest"]
            print(f"{tree.name}: {row['name']} {row['digest'][:20]}", flush=True)
    if child.returncode:
        sys.exit(f"the engine of {tree} ended with {child.returncode}")
    return found


def _digest_of(spec: dict[str, Any], models: Path) -> str:
    from workers.engine.errors import EngineError
    from workers.engine.events import Silent
    from workers.engine.pipeline import compress
    from workers.engine.spec import CompressionSpec

    try:
        from workers.engine.sources.resolve import Sources
    except ModuleNotFoundError:  # of a base from before the engine had rooms
        from workers.engine.sources import Sources  # type: ignore[attr-defined, no-redef]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            compress(
                CompressionSpec.model_validate(spec),
                folder,
                Sources(models, ROOT / "examples/data"),
                Silent(),
                folder / "checkpoint",
            )
        except EngineError as error:
            return f"{error.code}: {error}"
        return digest(folder / "model")


def digest(model: Path) -> str:
    """Of a result: its tensors (name, type, shape, bytes) and its config."""
    import torch
    from safetensors import safe_open

    found = hashlib.sha256()
    config = json.loads((model / "config.json").read_text())
    found.update(json.dumps(config, sort_keys=True).encode())
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in sorted(stored.keys()):
                tensor = stored.get_tensor(name)
                found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()

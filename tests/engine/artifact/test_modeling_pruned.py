"""A result of different widths in the hands of a user who has transformers and nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.families import FAMILIES
from tests.helpers.small_models import SaveModel, spec_of, walk
from workers.engine.architectures.per_layer import MODELING
from workers.engine.model.loaded import load_model
from workers.engine.removals.assemble import assemble
from workers.engine.sources.resolve import Sources

USER = """
import hashlib, json, sys
from pathlib import Path
import torch
from transformers import AutoModel, AutoModelForCausalLM

def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in Path(folder).iterdir()}

def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()

found = {}
for folder in sys.argv[1:]:
    model = load(folder)
    ids = torch.arange(100, 124).reshape(2, 12)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}
    cached, uncached = (model.generate(ids, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, uncached)
    logits = model(ids).logits
    model.save_pretrained(folder + "-again")
    again = load(folder + "-again")
    assert torch.equal(again(ids).logits, logits)
    again.save_pretrained(folder + "-thrice")
    assert digests(folder + "-again") == digests(folder + "-thrice")
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        refusal = f"{type(error).__name__}: {error}"
    else:
        refusal = ""
    base = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()  # what vLLM builds on
    assert torch.equal(base(ids).last_hidden_state @ model.lm_head.weight.T, logits)
    found[folder] = {
        "class": type(model).__name__,
        "shapes": [[b.self_attn.k_proj.out_features, b.mlp.up_proj.out_features] for b in model.model.layers],
        "logits": logits[0, -1, :50].tolist(),
        "refusal": refusal,
    }
assert not {"workers", "app"} & {name.partition(".")[0] for name in sys.modules}
json.dump(found, sys.stdout)
"""
NAMES = ("llama-tied", "mistral", "qwen2-mixed", "qwen3")


@pytest.fixture
def folders(save_model: SaveModel, sources: Sources, tmp_path: Path) -> dict[str, Path]:
    """Family -> a result whose blocks differ: the first is protected, the others lose a head and channels."""
    found = {}
    for name in NAMES:
        save_model("tiny", FAMILIES[name])
        prune = {"method": "structured", "sparsity": 0.35, "protect_first": 1}
        spec = spec_of(prune=prune, score={"method": "magnitude"})
        done = walk(spec, sources, tmp_path / f"walk-{name}")
        found[name] = tmp_path / name
        assemble(spec, done.model, done.outcome, done.checkpoint, found[name])
    return found


def test_loads_generates_and_is_saved_with_transformers_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    # Isolated: no PYTHONPATH, no working directory, and a cache of its own for the modelling file.
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", USER, *map(str, folders.values())]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    for name, folder in folders.items():
        seen = found[str(folder)]
        assert seen["class"].startswith("Pruned")
        assert (folder / MODELING).is_file()
        config = json.loads((folder / "config.json").read_text())
        own = config["per_layer_config"].values()
        shapes = [[block["num_key_value_heads"] * config["head_dim"], block["intermediate_size"]] for block in own]
        assert seen["shapes"] == shapes, name
        assert len({tuple(shape) for shape in seen["shapes"]}) == 2
        # As the service itself loads it, without running code from the folder.
        ours = load_model(folder, torch.device("cpu"), torch.float32)
        with torch.no_grad():
            logits = ours(torch.arange(100, 124).reshape(2, 12)).logits[0, -1, :50]
        torch.testing.assert_close(torch.tensor(seen["logits"]), logits, rtol=1e-5, atol=1e-6)
        assert "mismatch" in seen["refusal"], "stock classes must not load it quietly"

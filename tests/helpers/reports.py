"""A report of a small job, as the pages and cards of the tests show it."""

from __future__ import annotations

from typing import Any

from tests.helpers.small_models import spec_of
from workers.engine.report import Report


def report_of(**changes: Any) -> Report:
    layers = [
        {
            "name": f"model.layers.{block}.{part}",
            "block": block,
            "shape": (4, 8),
            "parameters": 32,
            "zeros": 16,
            "reads": reads,
            "target_sparsity": 0.5,
            "sparsity": 0.5,
        }
        for block in range(3)
        for part, reads in (("self_attn.o_proj", "head"), ("mlp.down_proj", "channel"))
    ]
    metric = {
        "name": "perplexity/heldout.txt",
        "unit": "perplexity",
        "higher_is_better": False,
        "dense": 35.0,
        "pruned": 38.5,
        "ratio": 1.1,
    }
    provenance = {
        "spec_digest": "sha256:0",
        "model_id": "tiny",
        "model_commit": "sha256:1",
        "data_digests": {"calibrate": "sha256:2"},
        "seed": 0,
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "threads": 1,
        "compute_dtype": "float32",
    }
    return Report.model_validate(
        {
            "spec": spec_of().model_dump(mode="json"),
            "provenance": provenance,
            "parameters": 1000,
            "prunable_parameters": 192,
            "zeros": 96,
            "sparsity": 0.5,
            "layers": layers,
            "metrics": [metric],
            "stages": [
                {"stage": name, "elapsed_s": 1.5, "peak_memory_bytes": 10**8} for name in ("load", "prune", "evaluate")
            ],
            "runtimes": [{"runtime": "transformers", "loads": True, "faster": False, "note": "plain"}],
            "warnings": [],
        }
        | changes
    )

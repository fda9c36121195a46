"""What decided the numbers: for the report, and for telling whether a resume point is still good."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from workers.engine import DISTRIBUTION
from workers.engine.report import Provenance

if TYPE_CHECKING:
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.spec import CompressionSpec

PACKAGES = (
    DISTRIBUTION,
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "peft",
    "datasets",
    "numpy",
    "scipy",
)


def versions() -> dict[str, str]:
    """Versions of Python and of every package that touches a number."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def provenance(spec: CompressionSpec, model: LoadedModel, data_digests: Mapping[str, str]) -> Provenance:
    """Everything needed to do it again and get the same numbers."""
    return Provenance(
        spec_digest=spec.digest(),
        model_id=model.source.id,
        model_commit=model.source.commit,
        data_digests=dict(data_digests),
        seed=spec.seed,
        versions=versions(),
        device=device_name(model.device),
        threads=torch.get_num_threads(),
        compute_dtype=spec.compute.dtype,
    )


def environment(model: LoadedModel) -> dict[str, str]:
    """What decides numbers beside the data and the method: measurements are shared only where all of it is the same."""
    return {
        "model": model.source.commit,
        "compute": str(model.dtype).removeprefix("torch."),
        "device": device_name(model.device),
        **{package: version(package) for package in (DISTRIBUTION, "torch", "transformers")},
    }


def fingerprint(
    spec: CompressionSpec, model: LoadedModel, *, calibration: str | None, tuning: str | None
) -> dict[str, str]:
    """What a resume point must share with the run that goes on from it. `calibration`, `tuning`: digests of the texts,
    None where none is read."""
    return environment(model) | {
        "resume_points": "3",  # of what is kept in them, and how
        "spec": spec.digest(),
        "calibration": calibration or "none",
        "tuning": tuning or "none",
        "peft": version("peft"),
        "batch_tokens": str(model.batch_tokens),  # decides in which order sums are rounded
    }


def device_name(device: torch.device) -> str:
    """E.g. `cpu (x86_64)` or `cuda (NVIDIA H200)`."""
    detail = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({detail})"

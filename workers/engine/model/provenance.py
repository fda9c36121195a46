"""Versions, digests and settings that numbers depend on: for the report, and to tell whether resume points are
valid."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from xxhash import xxh3_128

from workers.engine import DISTRIBUTION
from workers.engine.method_packages import offered
from workers.engine.report import Provenance
from workers.engine.store.sealed import digest

if TYPE_CHECKING:
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.spec import CompressionSpec

PACKAGES = (
    DISTRIBUTION,
    "torch",
    "torchao",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "peft",
    "datasets",
    "numpy",
    "scipy",
)

_version = cache(version)  # reads files, for every report and cache key


def versions() -> dict[str, str]:
    """Versions of Python and of every package that computes or reads numbers."""
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        **_method_packages(),
    }


def provenance(spec: CompressionSpec, model: LoadedModel, data_digests: Mapping[str, str]) -> Provenance:
    """Everything needed to repeat the job and get the same numbers."""
    return Provenance(
        spec_digest=spec.digest(),
        model_id=model.source.id,
        model_commit=model.source.commit,
        data_digests=dict(data_digests),
        seed=spec.seed,
        versions=versions(),
        device=device_name(model.device),
        devices=model.ranks.total,
        threads=torch.get_num_threads(),
        compute_dtype=spec.compute.dtype,
    )


def environment(model: LoadedModel) -> dict[str, str]:
    """Model, precision, device, batches and versions: cached measurements are shared only where all are the same."""
    return {
        "model": model.source.commit,
        "compute": str(model.dtype).removeprefix("torch."),
        "device": device_name(model.device),
        "batch_tokens": str(model.batch_tokens),  # decides in which order sums are rounded
        # Sums over the shares of several are rounded in another order.
        **({"devices": str(model.ranks.total)} if model.ranks.total > 1 else {}),
        **{package: _version(package) for package in (DISTRIBUTION, "torch", "transformers")},
        **_method_packages(),
    }


def _method_packages() -> dict[str, str]:
    """Packages whose methods are in use -> version."""
    return {one.package: one.version for one in offered() if one.allowed}


def fingerprint(
    spec: CompressionSpec,
    model: LoadedModel,
    *,
    calibration: str | None,
    training: str | None = None,
    tuning: str | None = None,
) -> dict[str, str]:
    """Values that a resume point and the run that continues from it must share. `calibration`, `training`, `tuning`:
    digests of the texts, None where none is read."""
    return environment(model) | {
        "resume_points": "4",  # of what is kept in them, and how
        "spec": spec.digest(),
        "calibration": calibration or "none",
        **({"training": training} if training else {}),
        "tuning": tuning or "none",
        "peft": version("peft"),
    }


def tokens_made_by(model: LoadedModel) -> str:
    """Digest of what a text's tokens depend on beside the text: the files of the tokenizer, and versions."""
    found = xxh3_128(repr(sorted(versions().items())).encode())
    for name in model.source.companions:
        found.update(f"{name} {digest(model.path / name)}".encode())
    return str(found.hexdigest())


def device_name(device: torch.device) -> str:
    """E.g. `cpu (x86_64)` or `cuda (NVIDIA H200)`."""
    detail = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({detail})"

"""The jobs that run on each family, through the engine as a worker runs them, and the verdict on each."""

from __future__ import annotations

import json
import re
import shutil
import traceback
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.families import of_blocks, of_experts, of_masks, of_widths, sides
from tests.families.sides import Side, Wrong
from tests.helpers.small_models import EXAMPLES, load, text_of
from workers.engine.architectures.recognise import recognise
from workers.engine.errors import BadRequest
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import feasible
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources, resolve_model
from workers.engine.spec import CompressionSpec
from workers.engine.stages import package

SPARSITY = 0.5
LENGTH = 32
_CALIBRATE = {"dataset": "calibration.txt", "samples": 8, "sequence_length": LENGTH}
_PERPLEXITY = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": LENGTH, "samples": 4}
_RANDOM = {"method": "random", "seed": 6}
_STRUCTURED = {"method": "structured", "sparsity": SPARSITY, "compensate": False}
_TUNE = {
    "method": "lora", "dataset": "calibration.txt", "sequence_length": LENGTH, "steps": 2, "batch": 4, "holdout": 4,
    "learning_rate": 1e-3, "warmup_steps": 0, "distill": None,
}  # fmt: skip
_OF_EXPERTS = ("experts", "expert_channels")
JOBS: dict[str, list[dict[str, Any]]] = {
    "wanda": [
        {
            "calibrate": _CALIBRATE,
            "score": {"method": "wanda"},
            "prune": {"method": "mask", "sparsity": SPARSITY},
            "evaluate": [_PERPLEXITY],
        }
    ],
    "sparsegpt": [{"calibrate": _CALIBRATE, "prune": {"method": "sparsegpt", "sparsity": SPARSITY}}],
    "structured": [
        {"score": _RANDOM, "prune": _STRUCTURED},
        {"score": _RANDOM, "prune": _STRUCTURED | {"units": ["channel"], "sparsity": 0.25}},
        {"score": _RANDOM, "prune": _STRUCTURED | {"units": ["head"], "sparsity": 0.2}},
        # Of a mixture all heads together are a few percent.
        {"score": _RANDOM, "prune": _STRUCTURED | {"units": ["head"], "sparsity": 0.08}},
        {"score": _RANDOM, "prune": _STRUCTURED | {"units": ["head"], "sparsity": 0.04}},
    ],
    "hidden": [{"score": _RANDOM, "prune": {"method": "hidden", "sparsity": 0.25}}],
    "depth": [{"score": _RANDOM, "prune": {"method": "depth", "layers": 1}}],
    "experts": [{"calibrate": _CALIBRATE, "score": {"method": "reap"}, "prune": {"method": "experts", "experts": 4}}],
    "expert_channels": [
        {"score": _RANDOM, "prune": {"method": "expert_channels", "channels": 16, "compensate": False}},
    ],
    "tune": [
        {
            "score": {"method": "magnitude"},
            "prune": {"method": "mask", "sparsity": SPARSITY},
            "tune": _TUNE,
            "evaluate": [_PERPLEXITY],
        }
    ],
}
"""Job -> its spec, and what is tried where that is refused. The seed's lowest draw of four is that of block 1."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a job."""

    verdict: str
    """`verified`, `refused`, `wrong` or `crash`."""
    detail: str = ""
    """The parts that were cut, the matrices left alone, why not, or the fault."""

    def row(self) -> dict[str, str]:
        return {"verdict": self.verdict} | ({"detail": self.detail} if self.detail else {})


def texts(folder: Path) -> None:
    """Put the beginnings of the shipped texts into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("calibration.txt", "heldout.txt"):
        (folder / name).write_text((EXAMPLES / "data" / name).read_text()[:20_000])


def verdicts(
    dense: Side,
    data: Path,
    work: Path,
    jobs: Container[str] = JOBS,
    begins: Callable[[str], None] = lambda job: None,
) -> Iterator[tuple[str, Verdict]]:
    """Job -> its verdict, for a checkpoint that lies alone in its folder's parent."""
    sources = Sources(dense.folder.parent, data)
    for job in filter(jobs.__contains__, JOBS):
        if job in _OF_EXPERTS and not dense.has_experts:
            continue
        begins(job)
        yield job, _verdict(job, dense, sources, work / job)


def _verdict(job: str, dense: Side, sources: Sources, work: Path) -> Verdict:
    refusals = []
    for number, parts in enumerate(JOBS[job]):
        spec = CompressionSpec.model_validate_json(json.dumps({"model": {"id": dense.folder.name}} | parts))
        folder = work / str(number)
        try:
            feasible(spec, resolve_model(spec.model, sources), sources)
        except BadRequest as error:
            refusals.append(error.message)
            continue
        except Exception as error:
            return Verdict("crash", f"planning: {_said(error)}")
        try:
            with _plain_page(job):
                report = compress(spec, folder, sources, Silent(), folder / "checkpoint")
        except Exception as error:
            return Verdict("crash", f"not refused by the plan: {_said(error)}")
        if refusals and job == "structured" and not _cut(spec, sources, report):
            continue  # too little to be a whole unit
        try:
            return Verdict("verified", _checked(job, spec, dense, sources, folder, report))
        except Wrong as error:
            return Verdict("wrong", str(error))
        except Exception as error:
            return Verdict("crash", f"in the check: {_said(error)}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Verdict("refused", "; ".join(_different(refusals)))


def _different(reasons: Sequence[str]) -> list[str]:
    """One of those that begin alike; of several none that says how much cannot go."""
    kinds = {re.sub(r"[\d.]+", "", reason)[:40]: reason for reason in reversed(reasons)}
    found = list(reversed(kinds.values()))
    return [reason for reason in found if "cannot lose" not in reason] or found


@contextmanager
def _plain_page(job: str) -> Iterator[None]:
    """Draw figures of one job only: they take longer than all the rest."""
    if job == "structured":
        yield
        return
    with patch.object(package, "render_page", lambda report: ""):
        yield


def _said(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({Path(where.filename).name}, line {where.lineno})"


def _checked(job: str, spec: CompressionSpec, dense: Side, sources: Sources, folder: Path, report: Report) -> str:
    """The change, once it is found to be as promised. Raises Wrong."""
    result = Side(folder / "model", dense.loader)
    sides.loads(result)
    detail = ""
    if job in ("wanda", "sparsegpt"):
        changed = of_masks.same_otherwise(dense, result)
        wanda = job == "wanda"
        of_masks.zeros_per_row(changed, SPARSITY, rows=wanda, kept=wanda)
        if wanda:
            windows_NT = text_of(spec, load(spec, sources), sources).windows_NT
            of_masks.same_masks(dense, changed, windows_NT, SPARSITY)
            (metric,) = report.metrics
            of_masks.perplexity(result, _heldout(dense, sources), metric.pruned)
        detail = ", ".join(of_masks.left(dense, changed))
    elif job == "depth":
        detail = of_blocks.without_block(dense, result)
    elif job == "experts":
        detail = of_experts.without_experts(dense, result)
    elif job == "expert_channels":
        of_experts.with_narrow_experts(dense, result)
        reader = next(layer for layer in report.layers if layer.reads == "expert_channel")
        detail = f"{reader.shape[1]} of {reader.parameters // reader.shape[0]}"
    elif job == "tune":
        changed = of_masks.same_otherwise(dense, result)
        better = report.tune is not None and report.tune.best_step > 0
        of_masks.zeros_per_row(changed, SPARSITY, rows=False, kept=not better)
        if better:
            of_masks.learnt(changed)
        detail = "" if better else "no step made it better"
        of_masks.perplexity(result, _heldout(dense, sources), report.metrics[0].pruned)
    elif job in ("structured", "hidden"):
        (folder / "masked").mkdir()
        of_widths.masked(dense, result, folder / "masked")
        if job == "structured":
            detail = " and ".join(_cut(spec, sources, report))
    if dense.caches and (off := sides.cached(result)) > sides.TOLERANCE:
        raise Wrong(f"generation with and without a cache differs, by {off:.1e}")
    return detail


def _cut(spec: CompressionSpec, sources: Sources, report: Report) -> list[str]:
    """`heads`, `channels`: what the readers of the result have fewer of."""
    architecture = recognise(*_read(spec, sources))
    before = {layer.name: layer.shape for layer in architecture.layers}
    kinds = {layer.reads for layer in report.layers if layer.shape[1] < before[layer.name][1]}
    return [f"{kind}s" for kind in ("head", "channel") if kind in kinds]


def _read(spec: CompressionSpec, sources: Sources) -> tuple[Any, Any]:
    source = resolve_model(spec.model, sources)
    return source.config, source.stored


def _heldout(dense: Side, sources: Sources) -> torch.Tensor:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(dense.folder)
    ids = tokenizer((sources.data_dir / "heldout.txt").read_text(), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: _PERPLEXITY["samples"] * LENGTH]).view(-1, LENGTH)

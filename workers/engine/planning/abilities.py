"""Which pruners and growers fit a model, and why others do not: the planner's answers to a small spec of each.

Import-light; no weights and no texts are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from workers.engine.contracts.params import EDITS, Stat
from workers.engine.errors import EngineError, InvalidSpec
from workers.engine.planning.plan import prospect_of
from workers.engine.registry import Method, methods
from workers.engine.spec import CompressionSpec

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.params import Stage
    from workers.engine.sources.resolve import ModelSource

SPARSITIES = (0.5, 0.25, 0.1)
"""Asked for in this order: of a model with few heads, half of them may be too much."""
TEXT = {"dataset": "calibration.txt", "samples": 1, "sequence_length": 8}


@dataclass(frozen=True)
class Ability:
    """Whether a method that edits models fits one of them."""

    stage: Stage
    method: str
    fits: bool
    spec: dict[str, Any] | None
    """The fields, beside the model, of a spec that was accepted."""
    code: str | None
    reason: str | None
    """The planner's refusal of the first that was not, where none was."""


def abilities(source: ModelSource) -> tuple[Architecture, list[Ability]]:
    """The model's structure, and for every pruner and grower whether it fits. Raises UnsupportedModel."""
    architecture = source.checked_architecture
    return architecture, [_ability(source, architecture, method) for stage in EDITS for method in methods(stage)]


def _ability(source: ModelSource, architecture: Architecture, method: Method) -> Ability:
    refusal: EngineError | None = None
    for edit in _edits(method, architecture):
        for fields in _specs(method.stage, json.dumps(edit)):
            spec = CompressionSpec.model_validate({"model": {"id": source.id}, **fields})
            try:
                prospect_of(spec, source, architecture)
            except EngineError as error:
                refusal = refusal or error
            else:
                return Ability(method.stage, method.name, True, fields, None, None)
    if refusal is None:
        refusal = InvalidSpec("what it takes is not known without a target", "ask for a dry run with one")
    return Ability(method.stage, method.name, False, None, refusal.code, f"{refusal.message}: {refusal.hint}")


def _edits(method: Method, architecture: Architecture) -> Iterator[dict[str, Any]]:
    """Parameters of a change, those that most users would ask for first, then smaller ones."""
    fields = method.params.model_fields
    if "sparsity" in fields:
        for sparsity in SPARSITIES:
            yield {"method": method.name, "sparsity": sparsity}
        if "units" in fields:
            # Of a mixture all heads together are a few percent.
            shares = ((unit, share) for unit in method.units for share in (SPARSITIES[-1], 0.02))
            yield from ({"method": method.name, "sparsity": share, "units": [unit]} for unit, share in shares)
    elif "layers" in fields:  # how many stay, or come
        layers = 1 if method.stage == "grow" else max(1, architecture.blocks - 1)
        yield {"method": method.name, "layers": layers}
        # Where blocks must stay, narrower ones may do.
        yield from ({"method": method.name, other: 1} for other in ("channels", "hidden") if other in fields)


@cache
def _specs(stage: Stage, edit: str) -> list[dict[str, Any]]:
    """The edit, which is JSON, with the least else that a spec needs, such as the first score that goes with it: as
    that is by default, and without blocks that it protects. None where none of ours is valid."""
    scorers = sorted(methods("score"), key=lambda scorer: scorer.needs is not Stat.NONE)
    for scorer in (None, *scorers):
        for text in (None, TEXT):
            fields: dict[str, Any] = {stage: json.loads(edit)}
            fields |= {"calibrate": text} if text else {}
            if scorer is None:
                scores: list[dict[str, Any]] = [{}]
            else:
                open_ = {name: 0 for name in ("protect_first", "protect_last") if name in scorer.params.model_fields}
                scores = [{"score": {"method": scorer.name, **more}} for more in ({}, open_) if not more or open_]
            with suppress(ValidationError):
                for score in scores:
                    CompressionSpec.model_validate({"model": {"id": "m"}, **fields, **score})
                return [{**score, **fields} for score in scores]
    return []

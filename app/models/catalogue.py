"""The models in the service's folder, each described once for as long as its files stay as they are."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.jobs.local_models import Identity, identity, local_model
from workers.engine.contracts.refs import NAME

if TYPE_CHECKING:
    from workers.engine.sources.resolve import Sources

MOST_FOLDERS = 10_000
"""More than that are not listed."""


def names(models_dir: Path) -> list[str]:
    """Folders that a spec may name, in order."""
    if not models_dir.is_dir():
        return []
    with os.scandir(models_dir) as entries:
        return sorted(entry.name for entry in islice(entries, MOST_FOLDERS) if may_name(entry.name) and entry.is_dir())


def may_name(text: str) -> bool:
    """Whether a spec can name a folder so."""
    return re.fullmatch(NAME.strip("^$"), text) is not None


def described(name: str, sources: Sources) -> dict[str, Any]:
    """The model of that folder as schemas.ModelRead has it."""
    files = identity(sources.models_dir / name)
    return _described(name, sources) if files is None else _kept(name, sources, files)


@lru_cache(maxsize=256)
def _kept(name: str, sources: Sources, files: Identity) -> dict[str, Any]:
    return _described(name, sources)


def _described(name: str, sources: Sources) -> dict[str, Any]:
    from workers.engine.contracts.refs import ModelRef
    from workers.engine.errors import EngineError
    from workers.engine.planning.abilities import abilities

    found: dict[str, Any] = {
        "id": name,
        "source": "local",
        **dict.fromkeys(("model_type", "family", "parameters", "blocks", "context_length", "weight_bytes")),
        "compressible": False,
        "methods": [],
        "code": None,
        "reason": None,
        "abilities": [],
    }
    try:
        source = local_model(ModelRef(id=name), sources)
        found |= {
            "model_type": source.config["model_type"],
            "weight_bytes": sum(facts.bytes for facts in source.stored.values()),
        }
        architecture, each = abilities(source)
    except EngineError as error:
        return found | {"code": error.code, "reason": f"{error.message}: {error.hint}"}
    fitting = [ability.method for ability in each if ability.fits]
    found |= {
        "family": architecture.layout.name,
        "parameters": source.parameters,
        "blocks": architecture.blocks,
        "context_length": architecture.context_length,
        "compressible": bool(fitting),
        "methods": fitting,
        "abilities": [asdict(ability) for ability in each],
    }
    if not fitting:  # as each says of itself
        found |= {"code": each[0].code, "reason": each[0].reason}
    return found

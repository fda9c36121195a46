"""Which families there are, and what is known of each. Import-light: documents are rendered from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
ROWS = _HERE.parents[1] / "docs/families.jsonl"
JOBS = ("wanda", "sparsegpt", "structured", "hidden", "depth", "experts", "expert_channels", "tune")
"""Names of the jobs that run on each family (`jobs.py`)."""
TYPES: dict[str, str | None] = json.loads((_HERE / "types.json").read_text())
"""Every model type that transformers has a causal language model of -> why it is no decoder of text; null where it
is."""
WRAPPERS: dict[str, str | None] = json.loads((_HERE / "wrappers.json").read_text())
"""Model types with a text tower beside others -> why none is made; null where one is."""


def known() -> dict[str, dict[str, Any]]:
    """Family -> its row."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {row["family"]: row for row in map(json.loads, lines)}


def written(rows: dict[str, dict[str, Any]]) -> str:
    """A line a family, in the order of their names."""
    return "".join(f"{json.dumps(rows[name])}\n" for name in sorted(rows))

"""Renews what is generated: the tables of README.md, and docs/parameters.md. `python docs/render.py`, or `make docs`.

With `--check` nothing is written, and the exit code is 1 where something is out of date; `make lint` asks that.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from app.capabilities.reference import parameters
from app.capabilities.schemas import FieldRead, MethodRead, capabilities
from app.cli.admin import settings_markdown
from app.cli.exits import MEANINGS
from workers.engine.contracts.params import STAGES
from workers.engine.registry import methods
from workers.engine.spec import CompressionSpec

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PARAMETERS = ROOT / "docs" / "parameters.md"


def documents() -> dict[Path, str]:
    """Each document that is generated, in whole or in part -> its text as it should be."""
    return {README: rendered(README.read_text()), PARAMETERS: parameters_markdown()}


def rendered(text: str) -> str:
    """`text` with every generated table renewed, each between `<!-- name … -->` and `<!-- /name -->`."""
    for name, table in {
        "methods": methods_markdown(),
        "settings": settings_markdown(),
        "exits": exits_markdown(),
    }.items():
        section = re.compile(rf"(<!-- {name}\b[^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = section.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"{count} sections named {name}")
    return text


def methods_markdown() -> str:
    lines = ["| stage | method | what it does | paper |", "|---|---|---|---|"]
    for stage in STAGES:
        for method in methods(stage):
            lines.append(f"| {stage} | `{method.name}` | {_cell(method.summary)} | {_link(method.paper)} |")
    return "\n".join(lines)


def exits_markdown() -> str:
    return "\n".join(
        ["| code | meaning |", "|---|---|", *(f"| {int(c)} | {meaning} |" for c, meaning in MEANINGS.items())]
    )


def parameters_markdown() -> str:
    found = capabilities()
    parts = [
        "# Parameters",
        "Every field of a spec, made by `make docs` from what the service checks specs by; `espalier methods NAME` and "
        "`GET /v1/capabilities` show the same. Fields of an object are named with dots. `null` is how JSON says none. "
        "[methods.md](methods.md) says which method to take.",
        "## The spec",
        "One field per stage (`score`, `allocate`, `prune`, `refine`, `tune`, `evaluate`: below), and these:",
        *(_field(field) for field in found.fields),
    ]
    for stage in found.stages:
        parts += [f"## {stage.stage}", _stage(stage.stage), *(_method(method) for method in stage.methods)]
    return "\n\n".join(parts) + "\n"


def _stage(stage: str) -> str:
    field = CompressionSpec.model_fields[stage]
    if field.is_required():
        return f"{field.description} Required."
    value = field.get_default(call_default_factory=True)
    return f"{field.description} Default: `{json.dumps(getattr(value, 'method', value))}`."


def _field(field: FieldRead) -> str:
    return f"### {field.name}\n\n{_table(field.parameters)}"


def _method(method: MethodRead) -> str:
    facts = [f"about {', '.join(method.units)}"] if method.units else []
    facts += [f"patterns {', '.join(method.patterns)}"] if method.patterns else []
    facts += [f"`score` {method.score}"] if method.score else []
    facts += [f"gathers {', '.join(method.needs)}"] if method.needs else []
    line = f"{method.summary} {_link(method.paper)}".strip() + (f" ({'; '.join(facts)})" if facts else "")
    return f"### {method.name}\n\n{line}\n\n{_table(method.parameters)}"


def _table(schema: dict[str, Any]) -> str:
    rows = parameters(schema)
    if not rows:
        return "No parameters."
    lines = ["| parameter | type | default | range | meaning |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (f"`{row.name}`", row.type, f"`{row.default}`", row.range, row.description)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _link(paper: str) -> str:
    if paper.startswith("arXiv:"):
        return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    return paper


def main() -> None:
    stale = {path: text for path, text in documents().items() if not path.exists() or path.read_text() != text}
    if "--check" in sys.argv[1:] and stale:
        sys.exit(f"out of date: {', '.join(str(path.relative_to(ROOT)) for path in stale)}: run `make docs`")
    for path, text in stale.items():
        path.write_text(text)


if __name__ == "__main__":
    main()

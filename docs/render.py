"""Fills the generated tables of README.md: `python docs/render.py`. A test fails when one is out of date."""

from __future__ import annotations

import re
from pathlib import Path

from app.cli.admin import settings_markdown
from app.cli.exits import MEANINGS
from workers.engine.registry import STAGES, methods

README = Path(__file__).parent.parent / "README.md"


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


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _link(paper: str) -> str:
    if paper.startswith("arXiv:"):
        return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    return paper


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))

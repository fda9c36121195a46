"""Renews what is generated: tables of README.md, docs/parameters.md and docs/families.md, laws of docs/extending.md.

`python docs/render.py`, or `make docs`.
With `--check` nothing is written, and the exit code is 1 where something is out of date; `make lint` asks that.
"""

from __future__ import annotations

import ast
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
EXTENDING = ROOT / "docs" / "extending.md"
FAMILIES, ROWS = ROOT / "docs" / "families.md", ROOT / "docs" / "families.jsonl"
TYPES, WRAPPERS = (ROOT / "tests/families" / name for name in ("types.json", "wrappers.json"))
JOBS = {
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "structured": "heads and channels",
    "hidden": "hidden",
    "depth": "depth",
    "experts": "experts",
    "expert_channels": "experts' channels",
    "tune": "LoRA",
}
"""Of `make families` -> heading of its column."""


def documents() -> dict[Path, str]:
    """Each document that is generated, in whole or in part -> its text as it should be."""
    return {
        README: rendered(README, {
            "methods": methods_markdown(),
            "settings": settings_markdown(),
            "exits": exits_markdown(),
            "families": families_list(),
        }),
        PARAMETERS: parameters_markdown(),
        FAMILIES: families_markdown(),
        EXTENDING: rendered(EXTENDING, {"laws": laws_markdown()}),
    }  # fmt: skip


def rendered(document: Path, sections: dict[str, str]) -> str:
    """Its text with every generated section renewed, each between `<!-- name … -->` and `<!-- /name -->`."""
    text = document.read_text()
    for name, table in sections.items():
        section = re.compile(rf"(<!-- {name}\b[^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = section.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if count != 1:
            raise ValueError(f"{count} sections named {name} in {document.name}")
    return text


def laws_markdown() -> str:
    """The first lines of what the suites that methods inherit say of their tests, read without importing them."""
    lines = []
    for stage in ("score", "allocate"):
        tree = ast.parse((ROOT / f"workers/engine/laws/{stage}.py").read_text())
        (suite,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
        lines += ["", f"`{stage}` (`workers.engine.laws.{stage}.{suite.name}`):", ""]
        for law in suite.body:
            if isinstance(law, ast.FunctionDef):
                lines.append(f"- {(ast.get_docstring(law) or '').splitlines()[0]}")
    return "\n".join(lines[1:])


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


def families_list() -> str:
    """README's paragraph: how many families each kind of job was verified on, and which."""
    rows, made, wrappers = _rows(), _made(TYPES), _made(WRAPPERS)
    counts = [f"{sum(_is_verified(rows, name, job) for name in made)} {title}" for job, title in JOBS.items()]
    masked, towers = _pruned(rows, made), _pruned(rows, wrappers)
    return "\n".join([
        f"Of the {len(made)} families of decoders that transformers can build, results are verified in "
        f"[docs/families.md](docs/families.md) for: {', '.join(counts)}. The text tower is pruned of {len(towers)} of "
        f"{len(wrappers)} wrappers, models with towers for images or sound beside it.",
        "",
        "<details>",
        "<summary>Their names</summary>",
        "",
        f"Weights are pruned of {', '.join(masked)}.",
        "",
        f"Of wrappers: {', '.join(towers)}.",
        "",
        "</details>",
    ])  # fmt: skip


def _pruned(rows: dict[str, Any], made: list[str]) -> list[str]:
    return [f"`{name}`" for name in sorted(made) if _is_verified(rows, name, "wanda")]


def families_markdown() -> str:
    rows = _rows()
    parts = [
        "# Families",
        "Made by `make docs` from [families.jsonl](families.jsonl), which `make families` writes: every job below ran "
        "through the engine on a tiny random checkpoint of each family, and its result was checked with transformers "
        "and torch alone. `yes` means: `from_pretrained` finds no missing, unexpected or mismatched tensor; generation "
        "is the same with and without a cache; half of each row of each pruned matrix is zero, all other weights are "
        "bit-equal to the dense ones, and a Wanda of our own, by hooks, drops the same weights (Wanda); without a "
        "block the dense model's logits are the result's (depth); with zeros for what was cut they are (heads, "
        "channels, hidden dimensions, channels of each expert); the reported perplexity is that of the result, after "
        "two steps of LoRA on half of the weights too, which leave every zero and change each matrix, unless neither "
        "made the model better on held-out text (LoRA). What is refused is so by the dry run, in these words. A family "
        "is one `model_type`, counted once.",
    ]
    for title, path in (("Decoders", TYPES), ("Wrappers: a text tower beside others", WRAPPERS)):
        if made := _made(path):
            parts += [f"## {title}", _counts(rows, made), _family_table(rows, made)]
            if refused := [name for name in made if "refused" in rows.get(name, {})]:
                lines = [f"| `{name}` | {_cell(_why(name, rows[name]['refused']))} |" for name in sorted(refused)]
                parts.append("\n".join(["| refused altogether | |", "|---|---|", *lines]))
    left: dict[str, list[str]] = {}
    for name, reason in (json.loads(TYPES.read_text()) | json.loads(WRAPPERS.read_text())).items():
        if reason is not None:
            left.setdefault(reason, []).append(f"`{name}`")
    lines = [f"| {_cell(reason)} | {', '.join(sorted(names))} |" for reason, names in sorted(left.items())]
    parts += ["## Not counted", "\n".join(["| what it is | types |", "|---|---|", *lines])]
    return "\n\n".join(parts) + "\n"


def _rows() -> dict[str, Any]:
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {row["family"]: row for row in map(json.loads, lines)}


def _made(path: Path) -> list[str]:
    return [name for name, reason in json.loads(path.read_text()).items() if reason is None]


def _is_verified(rows: dict[str, Any], name: str, job: str) -> bool:
    return rows.get(name, {}).get("jobs", {}).get(job, {}).get("verdict") == "verified"


def _counts(rows: dict[str, Any], made: list[str]) -> str:
    counts = [f"{sum(_is_verified(rows, name, job) for name in made)} {title}" for job, title in JOBS.items()]
    tried = sum(name in rows for name in made)
    return f"{len(made)} families, {tried} tried. Verified: {', '.join(counts)}."


def _family_table(rows: dict[str, Any], made: list[str]) -> str:
    lines = [f"| family | class | {' | '.join(JOBS.values())} | notes |", f"|---|---|{'---|' * len(JOBS)}---|"]
    for name in sorted(set(made) & rows.keys()):
        if jobs := rows[name]["jobs"]:
            cells = [_verdict(job, jobs.get(job)) for job in JOBS]
            reasons = {_why(name, job["detail"]): None for job in jobs.values() if job["verdict"] != "verified"}
            notes = [*reasons, *([rows[name]["note"]] if "note" in rows[name] else [])]
            if left := jobs.get("wanda", {}).get("detail") if _is_verified(rows, name, "wanda") else None:
                notes.insert(0, f"never pruned: {left}")
            lines.append(
                f"| `{name}` | {rows[name].get('class', '')} | {' | '.join(cells)} | {_cell('; '.join(notes))} |"
            )
    return "\n".join(lines)


def _verdict(name: str, job: dict[str, str] | None) -> str:
    if job is None:
        return ""
    if job["verdict"] == "verified":
        return job["detail"] if name in ("structured", "experts", "expert_channels") else "yes"
    return {"refused": "no"}.get(job["verdict"], f"**{job['verdict']}**")


def _why(name: str, reason: str) -> str:
    return reason.removeprefix(f"{name}: ")


def parameters_markdown() -> str:
    found = capabilities()
    parts = [
        "# Parameters",
        "Every field of a spec, made by `make docs` from what the service checks specs by; `espalier methods NAME` and "
        "`GET /v1/capabilities` show the same. Fields of an object are named with dots. `null` is how JSON says none. "
        "[methods.md](methods.md) says which method to take.",
        "## The spec",
        "One field per stage (`score`, `allocate`, `train`, `prune` or `grow`, `refine`, `tune`, `evaluate`: below), "
        "and these:",
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

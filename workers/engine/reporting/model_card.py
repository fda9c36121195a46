"""The model card: the compression, its papers and numbers, and how to load the model."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from workers.engine.reporting import wording

if TYPE_CHECKING:
    from workers.engine.report import Report


def render(report: Report) -> str:
    """Markdown with the YAML front matter that the Hugging Face hub reads. No text of the spec becomes markup."""
    return _template().render(
        report=report,
        wording=wording,
        methods=wording.compressing_methods(report),
        kind=wording.edited(report),
        # A local model is not on the hub.
        base_model=report.provenance.model_id if "/" in report.provenance.model_id else None,
        spec_json=json.dumps(report.spec, indent=2),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("workers.engine.reporting", "templates"),
        autoescape=False,  # Markdown: `inert` is applied to every free text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inert"] = _inert
    return environment.get_template("model_card.md")


def _inert(text: str) -> str:
    """Free text that cannot break out of a table cell, start a heading, link anywhere or become HTML."""
    flat = " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("[", "\\[")
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

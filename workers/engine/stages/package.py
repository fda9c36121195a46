"""Package: the files beside the weights that make a folder a model, a report and a proof.

Weights, config and tokenizer are the same bytes for the same spec on the same machine; the report, its page, the
model card and the manifest carry timings and differ from run to run.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from workers.engine.manifest import MANIFEST, file_entries
from workers.engine.model_card import render as render_card
from workers.engine.report import Manifest
from workers.engine.report_page import render as render_page

if TYPE_CHECKING:
    from pathlib import Path

    from workers.engine.report import Report

COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)
"""What a text model needs beside weights and config, and what its licence asks to be passed on; copied as they are."""


def package(source_dir: Path, model_dir: Path, report: Report) -> Manifest:
    """Complete `model_dir` (weights and config are there): tokenizer, generation config, card, report, manifest.

    Written last, so the manifest lists every other file; the time this takes is the one it cannot tell.
    """
    for name in COMPANIONS:
        if (source_dir / name).is_file():
            shutil.copyfile(source_dir / name, model_dir / name)
    (model_dir / "README.md").write_text(render_card(report), encoding="utf-8")
    (model_dir / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (model_dir / "report.html").write_text(render_page(report), encoding="utf-8")
    manifest = Manifest(
        spec=report.spec, provenance=report.provenance, stages=report.stages, files=file_entries(model_dir)
    )
    (model_dir / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest

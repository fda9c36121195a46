"""Package: write the files beside the weights: tokenizer, settings, report, model card, manifest.

Weights, config and tokenizer are the same bytes for the same spec on the same machine; the report, its page, the
model card and the manifest carry timings and differ from run to run.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from workers.engine.files.companions import TOKENIZER_CONFIG, companions, names_in
from workers.engine.files.manifest import MANIFEST, file_entries
from workers.engine.files.model_files import TOKENIZER_DIGITS, open_file, read_json
from workers.engine.report import Manifest
from workers.engine.reporting.model_card import render as render_card
from workers.engine.reporting.page import render as render_page

if TYPE_CHECKING:
    from pathlib import Path

    from workers.engine.report import Report


def package(source_dir: Path, model_dir: Path, report: Report) -> Manifest:
    """Complete `model_dir` (weights and config are there): tokenizer, generation config, card, report, manifest.

    The manifest is written last, so it lists every other file. The report cannot have the time of this stage.
    """
    for name in companions(names_in(source_dir)):
        _copy(source_dir, model_dir, name)
    with ThreadPoolExecutor(1) as other:
        weights = other.submit(file_entries, model_dir)
        written = {
            "README.md": render_card(report),
            "report.json": report.model_dump_json(indent=2) + "\n",
            "report.html": render_page(report),
        }
    for name, text in written.items():
        (model_dir / name).write_text(text, encoding="utf-8")
    manifest = Manifest(
        spec=report.spec,
        provenance=report.provenance,
        stages=report.stages,
        files=file_entries(model_dir, weights.result()),
    )
    (model_dir / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _copy(source_dir: Path, model_dir: Path, name: str) -> None:
    """Copy a companion file, without an `auto_map`, which names code that is not copied."""
    (model_dir / name).parent.mkdir(exist_ok=True)
    if name == TOKENIZER_CONFIG and "auto_map" in (settings := read_json(source_dir, name, digits=TOKENIZER_DIGITS)):
        del settings["auto_map"]
        (model_dir / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    with open_file(source_dir, name) as source, (model_dir / name).open("wb") as copy:
        shutil.copyfileobj(source, copy)

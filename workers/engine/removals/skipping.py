"""Dynamic skipping: measure beta of every block of a result, and write it into its config beside the file that skips.

Lu et al. 2024 (NAEE, arXiv:2402.14800, section 3.3): beta is the median over calibration tokens of the second weight
over the first. Where a token is sent to more than two experts, each is compared with the first: our extension.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from workers.engine import artifact
from workers.engine.architectures.skipping import SKIPPING, skipping_entries
from workers.engine.maths.experts import second_over_first
from workers.engine.model.experts import mixture_in
from workers.engine.model.loaded import result_of
from workers.engine.model.walk import walk

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.calibration import Calibration
    from workers.engine.model.experts import Routed
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.model.walk import At
    from workers.engine.store.run import Run

_KEPT = "betas"
"""Resume point."""


def let_skip(dense: LoadedModel, folder: Path, text: Calibration, run: Run) -> dict[str, float]:
    """Let the result in `folder` skip experts. Returns block, as text -> beta. By the first rank alone."""
    betas: dict[str, float] | None = run.checkpoint.load_json(_KEPT)
    if betas is None:
        betas = {str(block): beta for block, beta in measured(result_of(dense, folder), text, run).items()}
        run.checkpoint.save_json(_KEPT, betas)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= skipping_entries(config["model_type"], {int(block): beta for block, beta in betas.items()})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(Path(artifact.__file__).parent / SKIPPING, folder / SKIPPING)
    return betas


def measured(model: LoadedModel, text: Calibration, run: Run) -> dict[int, float]:
    """Block with a mixture -> beta, in [0, 1], of a model that skips nothing."""

    def ratios(at: At) -> float | None:
        mixture = mixture_in(model, at.block, at.module)
        if mixture is None:
            at.advance()
            return None
        found: list[Tensor] = []

        def read(routed: Routed) -> None:
            found.append(second_over_first(routed.weight_TK).cpu())

        with mixture.watched(read):
            at.run_all()
        return float(torch.cat(found).median())

    with walk(model, text, run.checkpoint.scratch_file) as way:
        return {block: beta for block, _, beta in way.blocks(way.enter(), ratios) if beta is not None}

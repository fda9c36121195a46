"""Small models, on one thread."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.renamed_llama import renamed_layout
from tests.helpers.small_models import examples, save_model, scratch, sources, tiny
from tests.helpers.tuning import pruned
from workers.engine.reporting import figures

__all__ = ["examples", "pruned", "renamed_layout", "save_model", "scratch", "sources", "tiny"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def drawn() -> None:
    """Asked for by tests that look at the figures of a page: matplotlib draws them."""


@pytest.fixture(autouse=True)
def _figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out but not drawn, which would be half of what a job of a small model takes."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(figures, "_svg", lambda figure, label: f'<svg role="img" aria-label="{label}"></svg>')

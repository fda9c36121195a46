"""Small models, on one thread."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import figures
from tests.helpers.renamed_llama import renamed_layout
from tests.helpers.small_models import examples, save_model, scratch, sources, tiny
from tests.helpers.tokenizers import tokenized_once
from tests.helpers.tuning import pruned

__all__ = ["examples", "pruned", "renamed_layout", "save_model", "scratch", "sources", "tiny", "tokenized_once"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def drawn() -> None:
    """Asked for by tests that look at the figures of a page: matplotlib draws them."""


@pytest.fixture(autouse=True)
def _figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out but not drawn."""
    if "drawn" not in request.fixturenames:
        figures.lay_out(monkeypatch)

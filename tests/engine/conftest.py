"""Small models, on one thread."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.renamed_llama import renamed_layout
from tests.helpers.small_models import examples, save_model, scratch, sources, tiny

__all__ = ["examples", "renamed_layout", "save_model", "scratch", "sources", "tiny"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)

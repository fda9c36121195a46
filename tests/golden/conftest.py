"""The windows that the authors' code was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.golden import HERE


@pytest.fixture(scope="module")
def windows() -> dict[str, Tensor]:
    with np.load(HERE / "tokens.npz") as tokens:
        return {name: torch.from_numpy(tokens[name].astype(np.int64)) for name in tokens}

"""Settings of the process that loading a model makes."""

from __future__ import annotations

import torch

from tests.helpers.small_models import load, spec_of
from workers.engine.sources.resolve import Sources


def test_float32_is_float32_whatever_the_image_sets(tiny: object, sources: Sources) -> None:
    """As TORCH_ALLOW_TF32_CUBLAS_OVERRIDE does when torch is imported."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        load(spec_of(), sources)
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")

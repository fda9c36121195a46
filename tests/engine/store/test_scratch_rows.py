"""Rows on the disk: what was put is taken, wherever it lies."""

from __future__ import annotations

import os

import pytest
import torch

from tests.helpers.small_models import Scratch
from workers.engine.store.scratch_rows import ScratchRows


def test_rows_of_neighbouring_blocks_come_together(scratch: Scratch) -> None:
    rows = ScratchRows(scratch.scratch_file(), blocks=4, width=3)
    all_BRI = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    for block in (2, 0, 3, 1):
        rows.put(block, all_BRI[block])
    found_N2I = rows.take(torch.tensor([4, 0, 4]), torch.tensor([1, 2, 0]), 2)
    assert torch.equal(found_N2I, torch.stack([all_BRI[1:3, 4], all_BRI[2:4, 0], all_BRI[0:2, 4]]))
    assert rows.take(torch.arange(0), torch.arange(0), 2).shape == (0, 2, 3)


def test_a_disk_that_takes_a_few_bytes_at_a_time(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda number, data, at: pwrite(number, data[:5], at))
    rows = ScratchRows(scratch.scratch_file(), blocks=1, width=3)
    rows.put(0, torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert rows.take(torch.tensor([0, 1]), torch.tensor([0, 0]), 1).tolist() == [[[1, 2, 3]], [[4, 5, 6]]]

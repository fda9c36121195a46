"""Which GPU a rank takes, and the way of tensors between ranks."""

from __future__ import annotations

import pytest

from workers.engine.ranks import backend, visible_device

NCCL = "cpu:gloo,cuda:nccl"


@pytest.mark.parametrize(
    ("gpus", "way"),
    [
        ([], "gloo"),
        (["0", "1"], NCCL),
        (["GPU-5c3a", "GPU-77b0"], NCCL),
        (["0", "0"], "gloo"),
        (["MIG-1d2e", "MIG-9f00"], "gloo"),  # perhaps of one GPU
    ],
)
def test_nccl_connects_whole_gpus(gpus: list[str], way: str) -> None:
    assert backend(gpus) == way


@pytest.mark.parametrize(
    ("visible", "devices"),
    [(None, ["0", "1"]), ("3, GPU-77b0", ["3", "GPU-77b0"]), ("0,0", ["0", "0"]), ("2", ["2", ""]), ("", ["", ""])],
)
def test_a_rank_takes_one_of_the_visible_gpus(visible: str | None, devices: list[str]) -> None:
    assert [visible_device(rank, visible) for rank in range(2)] == devices

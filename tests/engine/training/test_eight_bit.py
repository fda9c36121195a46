"""AdamW with moments of 8 bits: near AdamW, small, and kept exactly in resume points, on one rank and on several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.helpers.on_ranks import on_ranks
from tests.helpers.small_models import spec_of
from tests.helpers.tuning import Folder, Killed, dying, saving_every_step, tuning, weights
from workers.engine.ranks import Ranks
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.training.eight_bit import EightBitAdamW
from workers.engine.training.moments import BLOCK, in_full, put_back, room, stored

NEAR = 0.05
"""Of the length of a step, how far codes may lead away from AdamW's: a code is within 1/32 of a moment's largest digit,
and the square root halves what is wrong with the second."""


def layer(rows: int = 64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(BLOCK, rows, bias=False)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, BLOCK, generator=generator), torch.randn(8, 64, generator=generator)
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    optimizer.step()


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    (found,) = optimizer.state_dict()["state"].values()
    return {name: moment for name, moment in found.items() if name != "step"}


def test_its_steps_are_near_those_of_adamw() -> None:
    models = [layer(), layer()]
    begun = models[0].weight.detach().clone()
    given: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
    ours, plain = EightBitAdamW(models[0].parameters(), **given), torch.optim.AdamW(models[1].parameters(), **given)
    for seed in range(10):
        before = models[1].weight.detach().clone()
        step(models[0], ours, seed)
        step(models[1], plain, seed)
        if not seed:  # codes are read from the second step on
            torch.testing.assert_close(models[0].weight, models[1].weight, atol=1e-6, rtol=0)
        moved = (models[1].weight - before).norm()
        apart = (models[0].weight - models[1].weight).norm()
        assert apart < NEAR * (seed + 1) * moved
    assert not torch.equal(models[0].weight, begun)


def test_a_moment_takes_a_byte_and_a_scale_for_256() -> None:
    model = layer()
    optimizer = EightBitAdamW(model.parameters(), lr=1e-2)
    step(model, optimizer, 0)
    for moment in moments(optimizer).values():
        parts, kind = stored(moment)
        assert kind == "codes"
        assert sum(part.nbytes for part in parts.values()) == model.weight.numel() * (1 + 4 / BLOCK)


def test_rates_are_numbers_and_follow_the_schedule() -> None:
    model = layer()
    optimizer = EightBitAdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    step(model, optimizer, 0)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05]


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_kept_comes_back_code_by_code(signed: bool) -> None:
    model = layer()
    optimizer = EightBitAdamW(model.parameters(), lr=1e-2)
    for seed in range(3):
        step(model, optimizer, seed)
    moment = moments(optimizer)["exp_avg" if signed else "exp_avg_sq"]
    parts, kind = stored(moment)
    read = room(model.weight.detach(), kind)
    assert read.keys() == parts.keys()
    for end, tensor in read.items():
        tensor.copy_(parts[end])
    found = put_back(optimizer.moment(model.weight, signed=signed), read, signed=signed)
    assert torch.equal(found.codes, moment.codes)
    assert torch.equal(in_full(found), in_full(moment))


def test_a_tuning_is_resumed_to_the_same_bytes_and_keeps_its_zeros(
    pruned: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tuning("full", steps=4, moments="8bit")
    pruned.tune("whole", tune=params)
    saving_every_step(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save_training", dying(Checkpoint.save_training, 2))
        with pytest.raises(Killed):
            pruned.tune("killed", tune=params)
    report, folder = pruned.tune("killed", tune=params)
    assert report.resumed_step == 3
    whole = pruned.scratch / "whole/model"
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    before, after = weights(pruned.model), weights(folder)
    for name, weight in before.items():
        assert torch.equal(after[name][weight == 0], weight[weight == 0]), name
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())


def test_methods_that_do_not_offer_it_have_no_such_field() -> None:
    with pytest.raises(ValueError, match="moments"):
        spec_of(tune=tuning("lora", moments="8bit"))


def _on_two(ranks: Ranks, folder: Path) -> None:
    model = layer()
    fully_shard(model, mesh=init_device_mesh("cpu", (ranks.count,)))
    optimizer = EightBitAdamW(model.parameters(), lr=1e-2)
    for seed in range(3):
        step(model, optimizer, seed)
    alone = torch.load(folder / "alone.pt")
    for name, moment in moments(optimizer).items():
        assert hasattr(moment.to_local(), "codes")
        parts, kind = stored(moment)
        assert kind is False
        assert isinstance(parts[""], DTensor)
        numbers = parts[""].full_tensor()
        torch.testing.assert_close(numbers, alone[name]["numbers"], rtol=0, atol=1e-6)
        signed = name == "exp_avg"
        for kept in ({"": parts[""]}, {end: alone[name][end] for end in ("", "/scales")}):
            found = put_back(optimizer.moment(model.weight, signed=signed), kept, signed=signed)
            again = in_full(found).full_tensor()
            torch.testing.assert_close(again, numbers, rtol=NEAR, atol=float(numbers.abs().max()) / 100)


def test_divided_over_two_ranks_it_is_that_of_one(tmp_path: Path) -> None:
    model = layer()
    optimizer = EightBitAdamW(model.parameters(), lr=1e-2)
    for seed in range(3):
        step(model, optimizer, seed)
    kept = {name: stored(moment)[0] | {"numbers": in_full(moment)} for name, moment in moments(optimizer).items()}
    torch.save(kept, tmp_path / "alone.pt")
    on_ranks(2, _on_two, tmp_path)

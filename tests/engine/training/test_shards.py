"""A training divided over ranks, beside the same on one: what it makes, and resumed on another number of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.helpers.divided_tuning import Job, run_all
from tests.helpers.on_ranks import on_ranks
from tests.helpers.tuning import Folder, tuning
from workers.engine.ranks import Ranks

TUNE = tuning("full", steps=6, batch=4, holdout=5, distill={"weight": 0.5}, weight_decay=0.1)
"""Five held-out windows, which two ranks cannot share evenly."""
ROUNDING = 2e-4
"""Of trained weights relative to the largest of their tensor, after six steps: gradients are summed in another order,
and AdamW divides by roots of small numbers."""


def test_no_step_asks_the_first_rank(pruned: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a resume point is due goes the way of the loss; where more steps are done, no more messages are sent."""
    asked: list[Any] = []
    first = Ranks.first
    monkeypatch.setattr(Ranks, "first", lambda ranks, find: asked.append(find) or first(ranks, find))
    counts = []
    for steps in (2, 6):
        asked.clear()
        pruned.tune(f"{steps} steps", tune=tuning("full", steps=steps, evaluate_every=steps))
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0


def test_ranks_train_what_one_trains_and_another_number_goes_on_with_it(pruned: Folder) -> None:
    whole = Job(pruned.scratch, pruned.model, "whole", {"tune": TUNE})
    one, two, damaged = (replace(whole, name=name, stop=2) for name in ("one", "two", "damaged"))
    one, two = (replace(job, portion=5) for job in (one, two))  # of 24 windows, which are told to the other rank
    replace(whole, portion=5).run(Ranks())
    one.run(Ranks())
    on_ranks(2, run_all, [replace(one, stop=None), two, damaged])  # goes on from one to two
    replace(two, stop=None).run(Ranks())  # from two to one
    expected, weights = whole.read()
    for job in (one, two):
        report, found = job.read()
        assert report["resumed_step"] == 3
        for looked, again in zip(expected["curve"], report["curve"], strict=True):
            assert again["holdout_loss"] == pytest.approx(looked["holdout_loss"], rel=1e-6)
        for name, tensor in weights.items():
            assert torch.equal(found[name] == 0, tensor == 0), name
            assert (found[name] - tensor).abs().max() <= ROUNDING * tensor.abs().max(), name

    (point,) = (pruned.scratch / "damaged/checkpoint").glob("tuning-????????")
    part = next(point.glob("*.distcp"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    replace(damaged, stop=None).run(Ranks())
    assert damaged.read()[0]["resumed_step"] == 0, "of a damaged point nothing is used"

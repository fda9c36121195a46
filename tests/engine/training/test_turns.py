from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from workers.engine.training.turns import Turns


def test_by_hand() -> None:
    domain_N, number_N = Turns([1.0, 1.0], [2 / 3, 1 / 3]).take(6)
    assert domain_N.tolist() == [0, 1, 0, 0, 1, 0]
    assert number_N.tolist() == [0, 0, 1, 2, 1, 3]


def test_after_any_number_of_windows_each_has_had_what_its_weights_promised() -> None:
    turns = Turns([2.0, 2.0, 2.0], [0.6, 0.3, 0.1])
    had, due = torch.zeros(3), torch.zeros(3)
    for look in range(20):
        for _ in range(13):
            domain_N, _ = turns.take(3)
            had += domain_N.bincount(minlength=3)
            due += 3 * torch.tensor(turns.weights)
            assert (had - due).abs().max() < 2
        turns.look([2.0, 2.1 if look < 10 else 1.8, 2.05])
    assert turns.taken == had.tolist()


def test_windows_of_a_domain_are_numbered_one_after_another() -> None:
    turns, numbers = Turns([1.0, 1.0], [0.7, 0.3]), [0, 0]
    for _ in range(10):
        for domain, number in zip(*turns.take(4), strict=True):
            assert number == numbers[domain]
            numbers[domain] += 1


def test_a_domain_above_its_reference_gets_more_windows() -> None:
    turns = Turns([2.0, 2.0], [0.5, 0.5])
    turns.look([2.4, 2.0])
    first, _ = turns.take(1000)
    # exp(0.4) to 1.
    assert int((first == 0).sum()) == pytest.approx(1000 * 1.4918 / 2.4918, abs=2)


def test_the_state_written_down_goes_on_alike() -> None:
    turns = Turns([2.0, 2.0, 2.0], [0.2, 0.3, 0.5])
    turns.take(7)
    turns.look([2.3, 2.2, 1.9])
    again = Turns(**json.loads(json.dumps(asdict(turns))))
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(turns.take(5), again.take(5), strict=True))
    assert turns == again

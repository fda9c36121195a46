"""Comparing two models on a machine that does other work: no verdict that is not so, and those that are."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from tests.helpers.machine import LOADS, Load, Machine, noise, times
from workers.engine.contracts.facts import Probe
from workers.engine.gates import Gate, judge
from workers.engine.maths.paired import Comparison, compare, trimmed_mean
from workers.engine.maths.standard_errors import half_width
from workers.engine.model import turns
from workers.engine.report import Metric
from workers.engine.reporting.wording import verdict
from workers.engine.stages.evaluate import metric_of


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Metric]:
    def measure(load: Load, speed: float, seed: int, *, resident: bool = True) -> Metric:
        machine = Machine(load, random.Random(seed))
        monkeypatch.setattr(turns.gc, "collect", lambda: None)  # nothing is loaded
        monkeypatch.setattr(turns.time, "monotonic", lambda: machine.now_s)
        ((probe, found),) = turns.in_turn(
            lambda: [machine.probe(1.0)], lambda: [machine.probe(speed)], resident=resident
        )
        return metric_of(probe, found)

    return measure


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_copy_is_the_same_and_a_faster_model_is_faster(load: Load, measured: Callable[..., Metric]) -> None:
    copies = [measured(load, 1.0, seed) for seed in range(20)]
    assert {verdict(metric) for metric in copies} == {"same"}
    gate = Gate(metric="generation_speed/decode", min=1.1)
    assert "pass" not in {judge([gate], [metric])[0].verdict for metric in copies}
    assert {verdict(measured(load, 1.2, seed)) for seed in range(20)} == {"better"}
    assert {verdict(measured(load, 0.8, seed)) for seed in range(20)} == {"worse"}


def test_one_after_the_other_would_not_do(measured: Callable[..., Metric]) -> None:
    """As it was measured before: the machine slows down between the two, and the copy is called worse."""
    machine = Machine(LOADS["a step in the middle"], random.Random(0))
    dense, copy = (statistics.median(machine.probe(1.0).read() for _ in range(13)) for _ in range(2))
    assert copy / dense < 0.6


def test_models_that_take_turns_in_memory_are_compared_too(measured: Callable[..., Metric]) -> None:
    for name in ("quiet", "drifts", "a step in the middle"):
        copies = [measured(LOADS[name], 1.0, seed, resident=False) for seed in range(20)]
        assert {verdict(metric) for metric in copies} == {"same"}
    assert {verdict(measured(LOADS["quiet"], 1.2, seed, resident=False)) for seed in range(20)} == {"better"}


def test_a_change_within_the_margin_is_the_same_however_sure(measured: Callable[..., Metric]) -> None:
    found = measured(noise(0.001), 1.03, 0)
    assert found.ratio == pytest.approx(1.03, abs=0.003)
    assert verdict(found) == "same"


def test_two_in_a_row_are_of_one_model_so_that_neither_is_always_first() -> None:
    machine = Machine(noise(0.01), random.Random(0))
    turns.in_turn(lambda: [machine.probe(1.0, 4)], lambda: [machine.probe(2.0, 4)], resident=True)
    assert machine.read == [1.0, 2.0, 2.0, 1.0] * (len(machine.read) // 4)


def test_it_goes_on_until_the_interval_is_narrow_and_no_longer_than_allowed(measured: Callable[..., Metric]) -> None:
    def rounds(load: Load) -> int:
        return int(measured(load, 1.0, 0).note.split(", ")[1].split()[0])

    # Narrow at once: as many as last three seconds (two readings of 0.05 s a round), or as are asked for.
    assert 30 <= rounds(noise(0.01)) <= 30 * turns.MORE
    assert rounds(times(noise(0.01), lambda now_s, rng: 10)) == 24
    assert 24 < rounds(noise(0.12)) < turns.MOST_ROUNDS
    # Never narrow: the most rounds, or a minute.
    assert rounds(noise(0.6)) == turns.MOST_ROUNDS
    assert 24 < rounds(times(noise(0.6), lambda now_s, rng: 10)) < turns.MOST_ROUNDS


def test_each_is_loaded_three_times_where_only_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns.gc, "collect", lambda: None)  # counted references are enough here
    machine, held, loads = Machine(noise(0.01), random.Random(0)), list[str](), list[str]()

    class Held:
        def __init__(self, name: str) -> None:
            assert not held  # the other one is gone
            held.append(name)
            loads.append(name)

        def __del__(self) -> None:
            held.clear()

    def opened(name: str, speed: float) -> Callable[[], Sequence[Probe]]:
        def open_() -> Sequence[Probe]:
            model, probe = Held(name), machine.probe(speed)
            return [Probe("x", "s", True, 0.05, 4, "", lambda: (model, probe.read())[1])]

        return open_

    ((_, found),) = turns.in_turn(opened("dense", 1.0), opened("pruned", 1.5), resident=False)
    assert loads == [*["dense", "pruned"] * 4, "dense"]
    assert found.ratio == pytest.approx(1.5, rel=0.02)
    assert found.rounds == turns.VISITS


# -- the estimate ------------------------------------------------------------------------------------------------------


def test_it_is_yuens_interval_where_rounds_are_independent() -> None:
    """By hand: ten values, two trimmed at either end; winsorised they are 3 3 3 4 5 6 7 8 8 8."""
    values_N = np.array([9.0, 1.0, 5.0, 3.0, 100.0, 4.0, 8.0, 6.0, -50.0, 7.0])
    mean, stderr, freedom = trimmed_mean(values_N)
    assert mean == pytest.approx((3 + 4 + 5 + 6 + 7 + 8) / 6)
    assert stderr == pytest.approx(statistics.stdev([3, 3, 3, 4, 5, 6, 7, 8, 8, 8]) / math.sqrt(10) / 0.6)
    assert freedom == 5


def test_neighbours_that_are_alike_make_it_wider() -> None:
    shuffled_N = np.random.default_rng(0).normal(size=256)
    alike_N = np.concatenate([np.sort(shuffled_N[:128]), np.sort(shuffled_N[128:])[::-1]])
    assert trimmed_mean(alike_N)[0] == pytest.approx(trimmed_mean(shuffled_N)[0])
    assert trimmed_mean(alike_N)[1] > 2 * trimmed_mean(shuffled_N)[1]


def ratios(comparisons: int, rounds: int, load: Load) -> Iterator[Comparison]:
    rng = random.Random(1)
    for _ in range(comparisons):
        values: tuple[list[float], list[float]] = ([], [])
        for turn in range(2 * rounds):
            side = (0, 1, 1, 0)[turn % 4]
            values[side].append((1.0, 1.3)[side] / load(turn / 10, rng))
        yield compare(*values)


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_the_interval_holds_the_ratio_as_often_as_it_says(load: Load) -> None:
    found = list(ratios(200, 32, load))
    assert sum(low <= 1.3 <= high for low, high in (one.interval for one in found)) >= 184  # 92 %, of 95 % asked
    assert all(one.pruned / one.dense == pytest.approx(one.ratio) for one in found)


def test_too_few_rounds_are_refused() -> None:
    for rounds in (2, 5):
        with pytest.raises(ValueError, match="four or more"):
            compare([1.0] * rounds, [1.0] * rounds)


def test_rounds_without_any_spread_are_certain() -> None:
    found = compare([2.0] * 8, [3.0] * 8)
    assert (found.dense, found.pruned, found.ratio) == pytest.approx((2.0, 3.0, 1.5))
    assert found.ratio_stderr == 0


def test_an_interval_reaches_as_far_as_students_t() -> None:
    assert half_width(1, None, 0.95) == pytest.approx(1.959964)
    assert half_width(1, 3, 0.95) == pytest.approx(3.182446)
    assert half_width(1, 10, 0.99) == pytest.approx(3.169273)

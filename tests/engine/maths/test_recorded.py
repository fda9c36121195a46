"""The loops of a solve as a GPU runs them: recorded once, replayed for every stripe, few launches. On a CPU, where a
stand-in records operation by operation. O = outputs, I = inputs, T = tokens."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from tests.helpers.kernels import Graphs, Kernels
from workers.engine.contracts.facts import LayerTask
from workers.engine.maths import second_order
from workers.engine.maths.recorded import recorded
from workers.engine.maths.second_order import Hessian, hessian_of, solve_columns
from workers.engine.maths.selection import dropped, lowest_of_groups_at_once, lowest_unseen

PATTERNS = [None, (2, 4), (4, 8), (3, 4)]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Take the paths of a GPU on the CPU: selections that read nothing back, and graphs."""
    made = Graphs()
    monkeypatch.setattr(second_order, "recorded", made)
    monkeypatch.setattr(second_order, "lowest", lowest_unseen)
    monkeypatch.setattr(second_order, "lowest_of_groups", lowest_of_groups_at_once)
    return made


def problem(inputs: int, *outputs: int, sparsity: float = 0.5) -> tuple[list[LayerTask], Hessian]:
    """Layers of one stream, of which an input is dead."""
    generator = torch.Generator().manual_seed(0)
    x_TI = torch.randn(400, inputs, generator=generator).cumsum(dim=1)
    x_TI[:, 3] = 0
    layers = [LayerTask(f"{o}", torch.randn(o, inputs, generator=generator), sparsity) for o in outputs]
    return layers, hessian_of(x_TI.T @ x_TI / len(x_TI), 0.01, layers)


@pytest.mark.parametrize("kept_of", PATTERNS)
def test_a_replayed_loop_solves_every_stripe(kept_of: tuple[int, int] | None, graphs: Graphs) -> None:
    """To the bytes of the plain loop; the last stripe is a smaller one."""
    layers, hessian = problem(88, 12, 5, sparsity=0.25 if kept_of == (3, 4) else 0.5)
    replayed = solve_columns(layers, hessian, kept_of, 32)
    assert graphs.launches == 3
    assert len(graphs.kernels) == 2
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(second_order, "recorded", recorded)
        expected = solve_columns(layers, hessian, kept_of, 32)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(replayed, expected, strict=True))


@pytest.mark.parametrize(("kept_of", "kernels", "launches"), [(None, 272, 52), ((2, 4), 704, 14)])
def test_a_stripe_is_a_few_launches(
    kept_of: tuple[int, int] | None, kernels: int, launches: int, graphs: Graphs
) -> None:
    """Of 128 inputs, for the three layers of an attention: they are solved together. Each once took 550, 4,167 for
    2:4."""
    layers, hessian = problem(512, 12, 6, 6)
    with Kernels() as made:
        solve_columns(layers, hessian, kept_of, 128)
    stripes = 4
    assert graphs.launches == stripes
    assert graphs.kernels == [pytest.approx(kernels, abs=2)]
    assert made.count / stripes + 1 <= launches


def test_on_a_cpu_nothing_is_recorded() -> None:
    def steps() -> None:
        raise AssertionError("called before its turn")

    assert recorded(steps, torch.device("cpu")) is None


@pytest.mark.parametrize("kept_of", PATTERNS)
def test_a_device_is_not_waited_for(kept_of: tuple[int, int] | None) -> None:
    """Tensors without values take the way of a GPU's, and whatever asks for a value fails."""
    layers = [LayerTask(f"{o}", torch.empty(o, 88, device="meta"), 0.5 if kept_of != (3, 4) else 0.25) for o in (12, 5)]
    square_II, row_I = torch.empty(88, 88, device="meta"), torch.empty(88, device="meta")
    hessian = Hessian(square_II, square_II, row_I, row_I == 0)
    solved = solve_columns(layers, hessian, kept_of, 32)
    assert [weight_OI.shape for weight_OI in solved] == [(12, 88), (5, 88)]
    for group in ("row", "matrix"):
        assert dropped(layers[0].weight_OI, 0.5, group, kept_of).shape == (12, 88)


class Failing:
    """A CUDA graph whose recording is broken off."""

    def __init__(self, how: Exception | None) -> None:
        self.how, self.begun = how, 0

    def capture_begin(self, pool: tuple[int, int], capture_error_mode: str) -> None:
        assert (pool, capture_error_mode) == ((0, 7), "thread_local")
        self.begun += 1

    def capture_end(self) -> None:
        if self.how is not None:
            raise self.how


@pytest.mark.parametrize("fails", ["when it ends", "in the steps"])
def test_a_loop_that_is_not_recorded_says_so_and_leaves_the_allocator_as_it_was(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of want of memory too: the plain loop may find some, as the allocator gives back nothing while it records."""
    graph = Failing(RuntimeError("operation not permitted when stream is capturing") if "ends" in fails else None)
    stream, left = MagicMock(), []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr("workers.engine.maths.recorded._side_stream", lambda _: stream)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *of, name=name: left.append((name, *of)), raising=False)

    def steps() -> None:
        if graph.begun and graph.how is None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.warns(UserWarning, match="kernel by kernel"):
        assert recorded(steps, torch.device("cuda", 0)) is None
    assert graph.begun == 1
    assert left == [("_cuda_endAllocateToPool", 0, (0, 7)), ("_cuda_releasePool", 0, (0, 7))]


def test_a_solve_frees_its_memory_when_it_ends() -> None:
    """Not when cycles of references are next collected: it is as large as the layers."""
    alive: list[weakref.ref[torch.Tensor]] = []

    class Noting(second_order._Stripe):
        def __init__(self, *of: Any) -> None:
            super().__init__(*of)
            alive.append(weakref.ref(self.now_BR))

    layers, hessian = problem(64, 8)
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(second_order, "_Stripe", Noting)
            solve_columns(layers, hessian, None, 32)
        assert [buffer() for buffer in alive] == [None]
    finally:
        gc.enable()

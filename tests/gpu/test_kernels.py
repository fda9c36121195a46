"""The code that runs on a GPU alone, beside the plain way of the same: recorded loops, 16-bit products, transfers.

ESPALIER_TEST_DEVICE=cpu runs the same tests without a GPU, to try them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.contracts.facts import LayerTask
from workers.engine.contracts.params import Stat
from workers.engine.maths import second_order, spectrum
from workers.engine.maths.recorded import recorded as record
from workers.engine.maths.second_order import hessian_of, solve_columns
from workers.engine.maths.selection import lowest, lowest_of_groups
from workers.engine.model.input_statistics import InputSums
from workers.engine.model.repeatable import Repeatable
from workers.engine.model.transfers import to_device, to_host

pytestmark = pytest.mark.gpu
DEVICE = torch.device(os.environ.get("ESPALIER_TEST_DEVICE", "cuda"))
on_a_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="of CUDA's own")


@pytest.fixture(autouse=True)
def _a_device() -> None:
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.fail("no CUDA device: ESPALIER_TEST_DEVICE=cpu tries these tests without one")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kept_of", [None, (2, 4), (8, 16)])
def test_a_recorded_loop_is_the_plain_one(kept_of: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same kernels on the same numbers: the same bytes. Solved twice, as memory is used again."""
    x_TI = normal(2000, 400).cumsum(dim=1).to(DEVICE)
    layers = [LayerTask(f"{o}", normal(o, 400, seed=o).to(DEVICE), 0.5) for o in (96, 32)]
    hessian = hessian_of(x_TI.T @ x_TI / len(x_TI), 0.01, layers)
    made: list[Callable[[], None] | None] = []

    def noted(steps: Callable[[], None], device: torch.device) -> Callable[[], None] | None:
        made.append(record(steps, device))
        return made[-1]

    monkeypatch.setattr(second_order, "recorded", noted)
    recorded = [solve_columns(layers, hessian, kept_of, 128) for _ in range(2)]
    monkeypatch.setattr(second_order, "recorded", lambda steps, device: None)
    plain = solve_columns(layers, hessian, kept_of, 128)
    assert len(made) == 4  # a stripe of 128 inputs and one of 16, twice
    assert all((replay is None) == (DEVICE.type == "cpu") for replay in made)
    for found in recorded:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, plain, strict=True))


@on_a_gpu
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # torch's, of the recording that broke off
def test_a_recording_that_fails_leaves_memory_and_later_recordings_usable() -> None:
    """Tensors that two streams used are given again once they are freed, but not while the allocator records."""
    value = torch.ones(4, device=DEVICE)

    def looks() -> None:
        value.tolist()

    def doubles() -> None:
        value.mul_(2)

    with pytest.warns(UserWarning, match="kernel by kernel"):
        assert record(looks, value.device) is None
    assert not torch.cuda.is_current_stream_capturing()
    host, before = torch.ones(2**26, dtype=torch.uint8).pin_memory(), torch.cuda.memory_reserved()
    for _ in range(20):
        to_device({"": host}, DEVICE)()
        torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() - before < 10 * host.nbytes
    replay = record(doubles, value.device)
    assert replay is not None
    value.fill_(1)
    replay()
    assert value.tolist() == [2.0] * 4


@on_a_gpu
def test_many_solves_keep_no_memory() -> None:
    x_TI = normal(2000, 512).to(DEVICE)
    layers = [LayerTask("", normal(4096, 512).to(DEVICE), 0.5)]
    hessian = hessian_of(x_TI.T @ x_TI / len(x_TI), 0.01, layers)
    kept = []
    for _ in range(12):
        for kept_of in (None, (2, 4), (8, 16)):
            solve_columns(layers, hessian, kept_of, 128)
        kept.append(torch.cuda.memory_reserved())
    assert kept[-1] - kept[2] < 2**30  # pools of recordings that are gone: freed when memory is wanted, not before


@on_a_gpu
def test_recording_bears_another_thread_that_copies_and_waits() -> None:
    """As the reader of weights, the writer of blocks, and the watchdog of NCCL do."""
    host, stop, errors = torch.ones(2**24, dtype=torch.uint8).pin_memory(), threading.Event(), list[BaseException]()

    def copy() -> None:
        try:
            while not stop.is_set():
                to_host(to_device({"": host}, DEVICE)())()
                torch.empty(2**22, pin_memory=True)
                torch.ones(2**20, device=DEVICE).cpu()
        except BaseException as error:
            errors.append(error)

    value = torch.zeros(1000, device=DEVICE)

    def adds() -> None:
        value.add_(1)

    other = threading.Thread(target=copy)
    other.start()
    try:
        replays = [record(adds, value.device) for _ in range(50)]
    finally:
        stop.set()
        other.join()
    assert errors == []
    assert None not in replays


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backward_pass_done_twice_gives_the_same_bytes(dtype: torch.dtype) -> None:
    """Attention's fused kernels may add gradients in any order; resume points promise the same bytes."""

    def passes() -> list[Tensor | None]:
        heads = [normal(2, 8, 1024, 64, seed=n).to(DEVICE, dtype).requires_grad_() for n in range(3)]
        scaled_dot_product_attention(*heads, is_causal=True).square().sum().backward()
        return [head.grad for head in heads]

    repeatable = Repeatable(DEVICE)
    found = [repeatable.run(passes, torch.nn.Module()) for _ in range(4)]
    for again in found[1:]:
        assert all(ours is not None and torch.equal(ours, theirs) for ours, theirs in zip(again, found[0], strict=True))


def test_selections_are_those_of_the_cpu() -> None:
    score_RC = torch.randint(50, (40, 1000), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(lowest(score_RC.to(DEVICE), 333).cpu(), lowest(score_RC, 333))
    score_GM = score_RC.reshape(-1, 4)
    assert torch.equal(lowest_of_groups(score_GM.to(DEVICE), 2).cpu(), lowest_of_groups(score_GM, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_those_in_float64(dtype: torch.dtype) -> None:
    """To float32's rounding, also of 16-bit inputs: their products are exact."""
    batches = [normal(2, 300, 1500, seed=seed).to(DEVICE, dtype) for seed in range(2)]
    sums = [InputSums(needs) for needs in (Stat.GRAM | Stat.INPUT_MOMENTS, Stat.INPUT_SQ_MEAN)]
    for total in sums:
        for x_BTI in batches:
            total.add(x_BTI)
    x_NI = torch.cat(batches).flatten(0, 1).double()
    with_gram, alone = (total.finish() for total in sums)
    assert with_gram.gram_II is not None
    torch.testing.assert_close(with_gram.gram_II.double(), x_NI.T @ x_NI / len(x_NI), rtol=0, atol=1e-5)
    for found in (with_gram, alone):
        assert found.input_sq_mean_I is not None
        torch.testing.assert_close(found.input_sq_mean_I.double(), x_NI.square().mean(dim=0), rtol=1e-5, atol=0)


def test_eigenvalues_are_those_of_the_cpu() -> None:
    """But for the noise of a Gram matrix in float32, which only the smallest of a badly conditioned matrix show."""
    matrices = [normal(*shape) * normal(shape[1], seed=1).exp() for shape in ((700, 600), (600, 900), (100, 80))]
    found = spectrum.eigenvalues_of([matrix_OI.to(DEVICE) for matrix_OI in matrices])
    for values_N, matrix_OI in zip(found, matrices, strict=True):
        expected_N = spectrum.eigenvalues(matrix_OI)
        noise = 2 * spectrum.NOISE * float(expected_N[-1])
        torch.testing.assert_close(values_N, expected_N, rtol=1e-5, atol=noise)
        assert spectrum.alpha_mid(values_N) == pytest.approx(spectrum.alpha_mid(expected_N), rel=1e-3)


def test_tensors_arrive_as_they_were_when_they_were_sent() -> None:
    pinned = DEVICE.type == "cuda"
    sent = {f"{n}": (torch.arange(2**20) + n).pin_memory() if pinned else torch.arange(2**20) + n for n in range(8)}
    there = to_device(sent, DEVICE)()
    doubled = {name: tensor * 2 for name, tensor in there.items()}
    back = to_host(doubled)
    doubled = {name: tensor.clone().zero_() for name, tensor in doubled.items()}  # the device goes on meanwhile
    for name, tensor in back().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, sent[name] * 2)

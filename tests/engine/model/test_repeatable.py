from __future__ import annotations

from typing import Any

import pytest
import torch

from workers.engine.model.repeatable import Repeatable

CUDA = torch.device("cuda")  # the modes are torch's own and need no GPU


def modes() -> tuple[bool, bool]:
    mode: Any = torch.utils.deterministic
    return torch.are_deterministic_algorithms_enabled(), mode.fill_uninitialized_memory


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def test_passes_run_by_kernels_that_repeat_on_a_gpu_alone() -> None:
    before = modes()
    assert Repeatable(CUDA).run(modes, torch.nn.Module()) == (True, False)
    assert Repeatable(torch.device("cpu")).run(modes, torch.nn.Module()) == before
    assert modes() == before


def test_an_operation_that_does_not_repeat_is_done_all_the_same_and_said_once() -> None:
    module, repeatable, tried = torch.nn.Linear(2, 1, bias=False), Repeatable(CUDA), []

    def passes() -> int:
        tried.append(modes()[0])
        module(torch.ones(1, 2)).sum().backward()
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
        return len(tried)

    with pytest.warns(UserWarning, match="up to rounding, not to the byte: put_"):
        assert repeatable.run(passes, module) == 2
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[1.0, 1.0]]  # not of both tries
    module.zero_grad()
    assert repeatable.run(passes, module) == 3
    assert tried == [True, False, False]


def test_other_errors_are_passed_on() -> None:
    def passes() -> None:
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Repeatable(CUDA).run(passes, torch.nn.Module())
    assert not modes()[0]

"""A job on two ranks beside the same on one, and what is left of it when a rank, or the first of them, is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from tests.helpers.cluster import eventually
from tests.helpers.running import Running, weights, write_spec
from tests.helpers.small_models import SIZES, SaveModel, spec_of
from workers.engine.errors import MemoryBudgetTooSmall, NumericalFailure, StorageUnavailable
from workers.engine.stages import load as loading
from workers.warm import Warm

pytestmark = pytest.mark.xdist_group("runners")  # of one warm parent
BLOCKS = 3
MANY_BLOCKS = 24
"""Of a job that a signal must reach during its walk, however late a loaded machine sends it."""
DEEP = {"id": "deep"}
TIES = 1e-3
"""Share of the weights that may be masked otherwise: their scores differ by less than sums do that are rounded in
another order."""
ROUNDING = 1e-4
"""Of weights that stay, relative to the largest of their layer: solvers multiply what sums differ by."""
PERPLEXITY_ROUNDING = 1e-5
"""Relative."""
TEXT = {"dataset": "calibration.txt", "samples": 7, "sequence_length": 32}
"""Windows that two ranks cannot share evenly."""
TUNE = {"method": "full", "dataset": "calibration.txt", "steps": 2, "batch": 2, "sequence_length": 32, "holdout": 3}
SPECS: dict[str, dict[str, Any]] = {
    "wanda": {},
    "sparsegpt": {"score": None, "prune": {"method": "sparsegpt", "sparsity": 0.5}},
    "sparsegpt, staged": {
        "score": None,
        "prune": {"method": "sparsegpt", "sparsity": 0.5},
        "calibrate": TEXT | {"refresh": "projection"},
    },
    "taylor": {"score": {"method": "taylor"}, "prune": {"method": "structured", "sparsity": 0.25}},
    "tuned": {"tune": TUNE},
    "trained": {"score": None, "calibrate": None, "train": TUNE | {"method": "gradual", "distill": None}},
}
PERPLEXITY = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 64, "samples": 5}


@pytest.fixture
def root(save_model: SaveModel, tmp_path: Path) -> Path:
    """Models and data; work directories are made beside them."""
    save_model("tiny", LlamaConfig(**SIZES | {"num_hidden_layers": BLOCKS}))
    save_model("deep", LlamaConfig(**SIZES | {"num_hidden_layers": MANY_BLOCKS}))
    return tmp_path


def job(root: Path, name: str, devices: int = 2, **parts: Any) -> Path:
    spec = spec_of(**{"calibrate": TEXT, "evaluate": [PERPLEXITY], "compute": {"devices": devices}} | parts)
    return write_spec(root / name, spec.model_dump(mode="json"))


def finished(workdir: Path, parent: Warm, **how: Any) -> dict[str, Any]:
    """The report of a job that succeeds."""
    code, events, log = Running(workdir, parent, **how).finish()
    assert code == 0, (events[-1], log)
    assert not list(workdir.glob("ranks-*"))  # where they met
    found: dict[str, Any] = events[-1]["report"]
    return found


@pytest.mark.parametrize("parts", SPECS.values(), ids=SPECS)
def test_two_ranks_make_what_one_makes(parts: dict[str, Any], root: Path, parent: Warm) -> None:
    found = {}
    for devices in (1, 2):
        workdir = job(root, f"on-{devices}", devices, **parts)
        found[devices] = finished(workdir, parent, checkpoint=f"checkpoint-{devices}")
        assert found[devices]["provenance"]["devices"] == devices
    one, two = (load_file(root / f"on-{devices}/model/model.safetensors") for devices in (1, 2))
    for name, expected in one.items():
        assert two[name].shape == expected.shape, name
        differing = (two[name] == 0) != (expected == 0)
        assert differing.float().mean() <= TIES, name
        off = (two[name] - expected).masked_fill(differing, 0).abs().max()
        assert off <= ROUNDING * expected.abs().max(), name
    for before, after in zip(found[1]["metrics"], found[2]["metrics"], strict=True):
        assert after["dense"] == pytest.approx(before["dense"], rel=PERPLEXITY_ROUNDING)
        assert after["pruned"] == pytest.approx(before["pruned"], rel=PERPLEXITY_ROUNDING)


def test_a_rank_that_is_killed_is_one_failure_and_a_resume(root: Path, parent: Warm) -> None:
    whole = job(root, "whole")
    code, events, log = Running(whole, parent, checkpoint="checkpoint-whole").finish()
    assert code == 0, log
    # Events come from the first rank alone.
    assert max(Counter(json.dumps({k: v for k, v in e.items() if k != "at"}) for e in events).values()) == 1
    assert [event["block"] for event in events if event["event"] == "checkpoint"] == list(range(BLOCKS))

    running = Running(job(root, "killed"), parent)
    running.until("checkpoint", block=1)
    first, second = ranks(parent)
    os.kill(second, signal.SIGKILL)
    code, events, _ = running.finish()
    assert code == 128 + signal.SIGKILL
    errors = [event for event in events if event["event"] == "error"]
    assert [(error["code"], error["rank"], error["retryable"]) for error in errors] == [("runner_died", 1, True)]
    assert "rank 1 of 2 ended with signal SIGKILL" in errors[0]["message"]
    assert not alive(first)

    again = job(root, "again")
    assert finished(again, parent)["resumed_blocks"] >= 2
    assert weights(again) == weights(whole)


def test_a_rank_that_dies_in_training_is_the_jobs_one_failure(root: Path, parent: Warm) -> None:
    running = Running(job(root, "killed", tune=TUNE | {"steps": 10_000}), parent)
    running.until("progress", done=2, unit="step")
    first, second = ranks(parent)
    os.kill(second, signal.SIGKILL)
    code, events, _ = running.finish()
    assert code == 128 + signal.SIGKILL
    errors = [event for event in events if event["event"] == "error"]
    assert [(error["code"], error["rank"], error["retryable"]) for error in errors] == [("runner_died", 1, True)]
    assert not alive(first)


def test_a_host_too_small_for_so_many_processes_says_so() -> None:
    """The spec sets no budget that could be raised."""
    budget = MemoryBudgetTooSmall("it takes 502 MiB, the budget is 377 MiB", "compute in bfloat16", field="/compute")
    cpu, bounded = torch.device("cpu"), spec_of(compute={"memory_budget": 2**28})
    share = pytest.raises(MemoryBudgetTooSmall, match="share of one of 64 processes")
    with share as refused, loading._named_as_a_share(spec_of(), cpu, 64):
        raise budget
    assert (refused.value.field, "less than 64" in refused.value.hint) == ("/compute/devices", True)
    with pytest.raises(MemoryBudgetTooSmall) as refused, loading._named_as_a_share(bounded, cpu, 64):
        raise budget
    assert refused.value is budget


@pytest.mark.parametrize("devices", [1, 2])
def test_a_scratch_that_cannot_be_written_is_no_bug(devices: int, root: Path, parent: Warm) -> None:
    code, events, log = Running(job(root, "job", devices), parent, checkpoint="data/heldout.txt/below").finish()
    errors = [event for event in events if event["event"] == "error"]
    assert [(error["code"], error["retryable"]) for error in errors] == [("storage_unavailable", True)], log
    assert "heldout.txt" in errors[0]["message"]
    assert code == StorageUnavailable.exit_code


@pytest.mark.parametrize("order", [signal.SIGUSR1, signal.SIGTERM])
def test_orders_to_the_group_are_the_first_ranks(order: signal.Signals, root: Path, parent: Warm) -> None:
    running = Running(job(root, "stopped", model=DEEP), parent, points_every=3600)
    running.until("progress", done=2, unit="block")
    second = ranks(parent)[1]
    if order is signal.SIGTERM:
        os.kill(second, signal.SIGSTOP)  # so that the first rank waits for it, and obeys while it does
        time.sleep(0.2)
    running.child.signal(order)
    code, events, _ = running.finish()
    assert (code, [event for event in events if event["event"] == "error"]) == (75, [])
    eventually(lambda: not alive(second), 10)
    points = {path.name[:17] for path in (root / "checkpoint").glob("hidden-*")}
    assert len(points) == (2 if order is signal.SIGUSR1 else 0)  # each rank's part of one point
    if points:
        assert finished(job(root, "again", model=DEEP), parent)["resumed_blocks"] >= 2


@pytest.mark.parametrize("killed", ["first rank", "parent"])
def test_no_rank_outlives_the_first_or_its_parent(killed: str, root: Path, parent: Warm) -> None:
    running = Running(job(root, "killed", model=DEEP), parent)
    running.until("checkpoint", block=0)
    first, second = ranks(parent)
    os.kill(second, signal.SIGSTOP)  # so that it cannot end by itself
    os.kill(first if killed == "first rank" else parent.pid, signal.SIGKILL)
    eventually(lambda: not alive(first) and not alive(second), 10)
    assert running.finish()[0] == -signal.SIGKILL
    assert [*(root / "checkpoint").glob("hidden-*")]  # of block 0, or of what was done before the signals came


SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
from workers.engine.errors import NumericalFailure
from workers.followers import Followers, described

followers = Followers(3, Path(sys.argv[1]))

def lost():
    threading.Event().wait(0.2)
    raise ConnectionError("another rank is gone")

def ends():
    if sys.argv[2] == "error":
        raise NumericalFailure("no number", "take another", field="/score")
    if sys.argv[2] == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGSEGV)

if followers.fork():
    followers.follow(ends if followers.rank == 2 else lost)
followers.on_fall(lambda error: print(error["code"], error["rank"], error["field"], error["message"], flush=True))
if sys.argv[3] == "waits":
    threading.Event().wait()
fall = followers.cause()
followers.end()
print(fall.error["code"], fall.error["rank"], fall.error["field"], fall.error["message"])
sys.exit(fall.exit_code)
"""


@pytest.mark.parametrize("first", ["waits", "fails"])
@pytest.mark.parametrize(
    ("end", "said", "code"),
    [
        ("error", "numerical_failure 2 /score no number (on rank 2 of 3)", NumericalFailure.exit_code),
        ("exit", "runner_died 2 None the process on rank 2 of 3 ended with exit code 3", 3),
        ("signal", "runner_died 2 None the process on rank 2 of 3 ended with signal SIGSEGV", 128 + signal.SIGSEGV),
    ],
)
def test_a_ranks_failure_is_its_own(end: str, said: str, code: int, first: str, tmp_path: Path) -> None:
    """Not that of a rank which only misses it; whether the first waits for it in vain, or is failed by its loss too."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path, end, first], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.strip(), done.returncode) == (said, code), done.stderr


def ranks(parent: Warm) -> list[int]:
    """Ids of the processes of a job on two ranks, the first of them first."""
    (first,) = children(parent.pid)
    return [first, *children(first)]


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False

"""The runner as a process: what it prints, how it exits, and that kill -9 costs at most one block."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from tests.helpers.cluster import eventually
from tests.helpers.running import Running, arguments, weights, write_spec
from tests.helpers.small_models import SIZES, SaveModel, spec_of
from workers.engine.sources.resolve import Sources
from workers.engine.store.checkpoint import Checkpoint
from workers.warm import Warm

pytestmark = pytest.mark.xdist_group("runners")  # of one warm parent
BLOCKS = 8


@pytest.fixture
def job(save_model: SaveModel, sources: Sources, tmp_path: Path) -> Path:
    """A work directory whose spec prunes a model of BLOCKS blocks; models, data and checkpoint lie beside it."""
    save_model("tiny", LlamaConfig(**SIZES | {"num_hidden_layers": BLOCKS}))
    return write_spec(tmp_path / "job", spec_of().model_dump(mode="json"))


def test_a_whole_job(job: Path) -> None:
    code, events, err = Running(job, None).finish()
    assert (code, err) == (0, "")  # libraries say nothing of their own
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    assert stages == ["load", "calibrate", "allocate", "prune", "verify", "evaluate", "package"]
    progress = [
        (e["done"], e["total"], e["unit"]) for e in events if e["event"] == "progress" and e["stage"] == "prune"
    ]
    assert progress == [(done, BLOCKS, "block") for done in range(BLOCKS + 1)]
    assert events[-1]["event"] == "result"
    report = events[-1]["report"]
    assert report["sparsity"] == 0.5
    assert report["provenance"]["threads"] == 1
    assert {stage["stage"] for stage in report["stages"]} >= {"load", "calibrate", "score", "prune"}


def test_kill_9_costs_at_most_one_block(job: Path, tmp_path: Path, parent: Warm) -> None:
    spec = json.loads((job / "spec.json").read_text())
    done = -1
    for attempt in range(3):
        running = Running(write_spec(tmp_path / f"attempt-{attempt}", spec), parent)
        events = running.until("checkpoint")
        running.child.signal(signal.SIGKILL)
        code, later, _ = running.finish()  # on a busy machine it goes on for a while before it is dead
        assert code == -signal.SIGKILL
        resumed = [event["block"] for event in events if event["event"] == "resume"]
        # Durable blocks are never done again; the one after may have become durable unannounced.
        assert resumed in ([done + 1], [done + 2]) if attempt else resumed == []
        done = [event["block"] for event in [*events, *later] if event["event"] == "checkpoint"][-1]

    code, events, err = Running(job, parent).finish()
    assert code == 0, err
    assert events[-1]["report"]["resumed_blocks"] in (done + 1, done + 2)

    (tmp_path / "checkpoint").rename(tmp_path / "old")
    fresh = write_spec(tmp_path / "fresh", spec)
    assert Running(fresh, parent).finish()[1][-1]["event"] == "result"
    assert weights(job) == weights(fresh)


def test_a_zombie_and_its_successor_share_a_checkpoint(job: Path, tmp_path: Path, parent: Warm) -> None:
    other = write_spec(tmp_path / "other", json.loads((job / "spec.json").read_text()))
    zombie = Running(job, parent)
    zombie.until("checkpoint")
    zombie.child.signal(signal.SIGSTOP)
    code, events, err = Running(other, None).finish()
    assert code == 0, err
    before = weights(other)
    zombie.child.signal(signal.SIGCONT)
    zombie.finish()
    checkpoint = tmp_path / "checkpoint"
    assert len(list(checkpoint.glob("blocks-*"))) == BLOCKS
    again = write_spec(tmp_path / "again", json.loads((job / "spec.json").read_text()))
    _, events, _ = Running(again, parent).finish()
    assert [event["block"] for event in events if event["event"] == "resume"] == [BLOCKS]
    assert weights(again) == before


def test_another_spec_does_not_resume(job: Path, tmp_path: Path, parent: Warm) -> None:
    Checkpoint(tmp_path / "checkpoint").claim({"spec": "another"})
    exit_code, events, _ = Running(job, parent).finish()
    assert (exit_code, events[-1]["code"]) == (64, "checkpoint_mismatch")
    assert "calibration" in events[-1]["message"]
    assert "spec" in events[-1]["message"]


@pytest.mark.parametrize(
    ("spec", "code", "exit_code", "field"),
    [
        (
            {"model": {"id": "none"}, "calibrate": None, "score": {"method": "magnitude"}},
            "model_not_found",
            64,
            "/model/id",
        ),
        ({"calibrate": {"dataset": "short.txt", "sequence_length": 64}}, "dataset_too_short", 64, "/calibrate"),
        ({"model": {"id": "tiny"}, "prune": {"method": "mask", "sparsity": 2}}, "invalid_spec", 64, "/prune/sparsity"),
        ({"model": {"id": "org/name"}}, "hub_unavailable", 69, "/model/id"),
        ({"compute": {"device": "cuda"}}, "invalid_spec", 64, "/compute/device"),
    ],
)
def test_errors_are_events_and_exit_codes(
    spec: dict[str, Any], code: str, exit_code: int, field: str, job: Path, tmp_path: Path, parent: Warm
) -> None:
    (tmp_path / "data/short.txt").write_text("Too short.")
    parts = json.loads((job / "spec.json").read_text()) | spec
    returned, events, _ = Running(write_spec(tmp_path / "bad", parts), parent).finish()
    error = events[-1]
    assert (error["event"], error["code"], error["field"]) == ("error", code, field)
    assert error["hint"]
    assert error["retryable"] == (code == "hub_unavailable")
    assert returned == exit_code


def test_a_bug_is_an_event_with_a_traceback_in_the_log(job: Path, parent: Warm) -> None:
    (job / "model").write_text("a file where the folder should go")
    code, events, err = Running(job, parent).finish()
    assert code == 70
    assert (events[-1]["event"], events[-1]["code"]) == ("error", "internal")
    assert "FileExistsError" in events[-1]["message"]
    assert "Traceback" in err


def test_sigterm_ends_it_at_once(job: Path, parent: Warm) -> None:
    running = Running(job, parent)
    running.until("checkpoint", block=0)
    running.child.signal(signal.SIGTERM)
    assert running.finish()[0] == 75


def test_dies_with_its_parent(job: Path) -> None:
    # A parent that starts the runner, tells its id, and is killed.
    code = (
        "import subprocess, sys; child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True);"
        "child.stdout.readline(); print(child.pid, flush=True); child.wait()"
    )
    command = [sys.executable, "-m", "workers.runner", *arguments(job)]
    parent = subprocess.Popen([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, signal.SIGSTOP)  # so that it cannot end by itself
    parent.kill()
    parent.communicate()
    eventually(lambda: not _alive(child), 10)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False

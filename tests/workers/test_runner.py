"""The runner as a process: what it prints, how it exits, and that kill -9 costs at most one block."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from tests.helpers.small_models import SIZES, SaveModel, spec_of
from workers.engine.sources.resolve import Sources
from workers.engine.store.checkpoint import Checkpoint

BLOCKS = 6


@pytest.fixture
def job(save_model: SaveModel, sources: Sources, tmp_path: Path) -> Path:
    """A work directory whose spec prunes a model of six blocks; models, data and checkpoint lie beside it."""
    save_model("tiny", LlamaConfig(**SIZES | {"num_hidden_layers": BLOCKS}))
    return write_spec(tmp_path / "job", spec_of().model_dump(mode="json"))


def write_spec(workdir: Path, spec: Any) -> Path:
    workdir.mkdir()
    (workdir / "spec.json").write_text(json.dumps(spec))
    return workdir


def command(workdir: Path) -> list[str]:
    root = workdir.parent
    folders = ["--models", root / "models", "--data", root / "data", "--checkpoint", root / "checkpoint"]
    options = ["--threads", "1", "--points-every", "0"]
    return [str(part) for part in (sys.executable, "-m", "workers.runner", workdir, *folders, *options)]


def start(workdir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(workdir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """All events, each line of standard output being one, and standard error."""
    out, err = process.communicate(timeout=120)
    return [json.loads(line) for line in out.splitlines()], err


def weights(workdir: Path) -> bytes:
    return (workdir / "model/model.safetensors").read_bytes()


def test_a_whole_job(job: Path) -> None:
    process = start(job)
    events, err = finish(process)
    assert process.returncode == 0, err
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


def test_kill_9_costs_at_most_one_block(job: Path, tmp_path: Path) -> None:
    spec = json.loads((job / "spec.json").read_text())
    done = -1
    for attempt, last in enumerate((0, 2, 4)):
        process = start(write_spec(tmp_path / f"attempt-{attempt}", spec))
        assert process.stdout is not None
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1].get("block") == last and events[-1]["event"] == "checkpoint":
                break
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        resumed = [event["block"] for event in events if event["event"] == "resume"]
        # Durable blocks are never done again; the one after may have become durable unannounced.
        assert resumed in ([done + 1], [done + 2]) if attempt else resumed == []
        done = last

    process = start(job)
    events, err = finish(process)
    assert process.returncode == 0, err
    assert [event["block"] for event in events if event["event"] == "checkpoint"][-1] == BLOCKS - 1
    assert events[-1]["report"]["resumed_blocks"] in (done + 1, done + 2)

    (tmp_path / "checkpoint").rename(tmp_path / "old")
    fresh = write_spec(tmp_path / "fresh", spec)
    assert finish(start(fresh))[0][-1]["event"] == "result"
    assert weights(job) == weights(fresh)


def test_a_zombie_and_its_successor_share_a_checkpoint(job: Path, tmp_path: Path) -> None:
    other = write_spec(tmp_path / "other", json.loads((job / "spec.json").read_text()))
    zombie = start(job)
    assert zombie.stdout is not None
    while json.loads(zombie.stdout.readline())["event"] != "checkpoint":
        pass
    zombie.send_signal(signal.SIGSTOP)
    successor = start(other)
    events, err = finish(successor)
    assert successor.returncode == 0, err
    before = weights(other)
    zombie.send_signal(signal.SIGCONT)
    zombie.communicate(timeout=120)
    checkpoint = tmp_path / "checkpoint"
    assert len(list(checkpoint.glob("blocks-*"))) == BLOCKS
    again = write_spec(tmp_path / "again", json.loads((job / "spec.json").read_text()))
    events, _ = finish(start(again))
    assert [event["block"] for event in events if event["event"] == "resume"] == [BLOCKS]
    assert weights(again) == before


def test_another_spec_does_not_resume(job: Path, tmp_path: Path) -> None:
    Checkpoint(tmp_path / "checkpoint").claim({"spec": "another"})
    process = start(job)
    events, _ = finish(process)
    assert (process.returncode, events[-1]["code"]) == (64, "checkpoint_mismatch")
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
    spec: dict[str, Any], code: str, exit_code: int, field: str, job: Path, tmp_path: Path
) -> None:
    (tmp_path / "data/short.txt").write_text("Too short.")
    parts = json.loads((job / "spec.json").read_text()) | spec
    process = start(write_spec(tmp_path / "bad", parts))
    events, _ = finish(process)
    error = events[-1]
    assert (error["event"], error["code"], error["field"]) == ("error", code, field)
    assert error["hint"]
    assert error["retryable"] == (code == "hub_unavailable")
    assert process.returncode == exit_code


def test_a_bug_is_an_event_with_a_traceback_in_the_log(job: Path) -> None:
    (job / "model").write_text("a file where the folder should go")
    process = start(job)
    events, err = finish(process)
    assert process.returncode == 70
    assert (events[-1]["event"], events[-1]["code"]) == ("error", "internal")
    assert "FileExistsError" in events[-1]["message"]
    assert "Traceback" in err


def test_sigterm_ends_it_at_once(job: Path) -> None:
    process = start(job)
    assert process.stdout is not None
    while json.loads(process.stdout.readline())["event"] != "checkpoint":
        pass
    begin = time.monotonic()
    process.terminate()
    assert process.wait(timeout=20) == 75
    assert time.monotonic() - begin < 5
    process.communicate()


def test_dies_with_its_parent(job: Path) -> None:
    # A parent that starts the runner, tells its id, and is killed.
    code = (
        "import subprocess, sys; child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True);"
        "child.stdout.readline(); print(child.pid, flush=True); child.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, *command(job)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, signal.SIGSTOP)  # so that it cannot end by itself
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False

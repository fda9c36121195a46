"""A bit turned in a file of each kind between two attempts: the file is set aside, said in the events, made again, and
the job ends in the same bytes. `make chaos` runs it.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cluster import WANDA, Cluster, eventually
from tests.helpers.results import job_digests, verify

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(2400)]
TEXT: dict[str, Any] = {"dataset": "calibration.txt", "samples": 8, "sequence_length": 128}
PERPLEXITY = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 128, "samples": 8}
BOUNDED: dict[str, Any] = {
    "model": {"id": "bookworm-7m"},
    "calibrate": TEXT,
    "prune": {"method": "sparsegpt", "perplexity_ratio": 1.5},
    "evaluate": [PERPLEXITY, PERPLEXITY | {"sequence_length": 64}],
}
TUNED: dict[str, Any] = {
    "model": {"id": "bookworm-7m"},
    "calibrate": TEXT,
    "score": {"method": "taylor"},
    "prune": {"method": "structured", "sparsity": 0.25},
    "tune": {"method": "lora", "dataset": "calibration.txt", "steps": 6, "batch": 2, "sequence_length": 64},
    "evaluate": BOUNDED["evaluate"],
}
OWL = WANDA | {"allocate": {"method": "owl"}}
FLIPPED: list[tuple[str, dict[str, Any]]] = [
    *((stem, BOUNDED) for stem in ("grams-00003", "fingerprint", "allocation", "outside", "blocks-00001")),
    *((stem, BOUNDED) for stem in ("hidden-00003", "dense-measurements")),
    *((stem, TUNED) for stem in ("unit-scores", "tuning")),
]
"""Beginning of a file's name, and a job that makes such a file."""


def clock(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints what was done, with the seconds since now."""
    began = time.monotonic()

    def say(what: str) -> None:
        with capsys.disabled():
            print(f"\n{time.monotonic() - began:4.0f} s  {what}", end="", flush=True)  # noqa: T201

    return say


def flip(path: Path, rng: random.Random) -> None:
    """Turn one bit."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def warnings(cluster: Cluster, job_id: str) -> list[str]:
    return [
        event["data"]["message"]
        for event in cluster.events(job_id)
        if event["type"] == "log" and event["data"]["level"] == "warning"
    ]


def digests(cluster: Cluster, job_id: str, folder: Path) -> dict[str, str]:
    """Of the weights, downloaded and compared with the manifest."""
    folder.mkdir()
    verify(cluster, job_id, folder)
    return job_digests(folder)


def interrupted(cluster: Cluster, job_id: str, beginning: str) -> Path:
    """A resume point whose name begins so, in the moment it was made: runner and worker are dead."""
    folder = cluster.home / "work" / job_id / "checkpoint"
    (runner,) = eventually(cluster.runners, 60, "a runner starts")

    def made() -> list[Path]:
        return [path for path in folder.glob(f"{beginning}*.*.*") if path.suffix != ".tmp"]

    (path, *_) = eventually(made, 300, f"{beginning} is made")
    runner.suspend()  # so that it removes nothing more
    cluster.kill("worker0", signal.SIGKILL)
    cluster.processes["worker0"].wait()
    eventually(lambda: not cluster.runners(), 30, "its runner is gone")
    return path


def undisturbed(cluster: Cluster, spec: dict[str, Any], folder: Path) -> dict[str, str]:
    job_id = cluster.submit(spec)
    assert cluster.wait(job_id, 300)["status"] == "succeeded"
    return digests(cluster, job_id, folder)


def test_a_bit_flipped_in_each_kind_of_resume_point(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say = clock(capsys)
    rng, found = random.Random(3), Counter[str]()
    expected = {}
    for name, spec in (("bounded", BOUNDED), ("tuned", TUNED)):
        expected[id(spec)] = undisturbed(cluster, spec, tmp_path / name)
        say(f"{name}, undisturbed")
    for stem, spec in FLIPPED:
        shutil.rmtree(cluster.home / "cache")  # where another job's measurements are found, none are made
        job_id = cluster.submit(spec)
        # Hidden states of earlier blocks go when a further one is there.
        path = interrupted(cluster, job_id, stem.partition("-")[0] if stem.startswith("hidden") else stem)
        flip(path, rng)
        cluster.start("worker0")
        job = cluster.wait(job_id, 300)
        assert job["status"] == "succeeded", job["error"]
        assert any(path.name in line and "set aside" in line for line in warnings(cluster, job_id)), stem
        assert digests(cluster, job_id, tmp_path / stem) == expected[id(spec)], stem
        found[stem] += 1
        say(path.name)
    assert len(found) == len(FLIPPED)


def test_a_bit_flipped_in_each_kind_of_cache_entry(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say = clock(capsys)
    rng = random.Random(4)
    specs = (OWL, TUNED, BOUNDED)
    expected = [undisturbed(cluster, spec, tmp_path / f"first-{n}") for n, spec in enumerate(specs)]
    entries = [path for path in (cluster.home / "cache").rglob("*") if path.is_file()]
    assert {path.parent.name for path in entries} >= {"dense-input-statistics", "allocator-metrics", "unit-measures"}
    say(f"{len(entries)} entries")
    for path in entries:
        flip(path, rng)
    said = []
    for n, spec in enumerate(specs):
        job_id = cluster.submit(spec)
        assert cluster.wait(job_id, 300)["status"] == "succeeded"
        assert digests(cluster, job_id, tmp_path / f"again-{n}") == expected[n]
        said += warnings(cluster, job_id)
        say(f"{len(said)} warnings")
    # What another entry, measured again, makes needless is not looked at.
    assert len([line for line in said if "set aside" in line]) >= 3

"""A drain: the runner makes durable what it has finished, and ends; a cancel ends it at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from transformers import LlamaConfig

from tests.helpers.small_models import SIZES, SaveModel, spec_of
from workers.children import Spawned
from workers.engine.sources.resolve import Sources
from workers.engine.store.checkpoint import Checkpoint
from workers.supervisor import Order, supervise

TOLD = """
import signal, sys, time
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: sys.exit(number))
print('{"event": "progress"}', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (Order.DRAIN, signal.SIGUSR1),
        (Order.PAUSE, signal.SIGUSR1),
        (Order.CANCEL, signal.SIGTERM),
        (Order.TIMEOUT, signal.SIGTERM),
    ],
)
def test_only_drain_and_pause_let_the_child_keep_what_it_has_finished(
    order: Order, told: signal.Signals, tmp_path: Path
) -> None:
    seen: list[object] = []

    def on_tick(events: list[dict[str, object]]) -> Order:
        seen.extend(events)
        return order if seen else Order.CONTINUE

    started = partial(Spawned, [sys.executable, "-c", TOLD])
    end = supervise(started, log=tmp_path / "log", on_tick=on_tick, tick_s=0.05, grace_s=30)
    assert (end.order, end.returncode) == (order, told)


def test_a_drained_runner_leaves_a_point_behind_its_last_finished_block(
    save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    save_model("tiny", LlamaConfig(**SIZES | {"num_hidden_layers": 12}))
    job, checkpoint = tmp_path / "job", tmp_path / "checkpoint"
    job.mkdir()
    (job / "spec.json").write_text(spec_of().model_dump_json())
    folders = ["--models", sources.models_dir, "--data", sources.data_dir, "--checkpoint", checkpoint]
    options = ["--threads", "1", "--points-every", "3600"]
    command = [sys.executable, "-m", "workers.runner", job, *folders, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as runner:
        assert runner.stdout is not None
        for line in runner.stdout:
            event = json.loads(line)
            assert event["event"] != "checkpoint", "no point is due"
            if event["event"] == "progress" and event["stage"] == "prune" and event["done"] == 2:
                break
        runner.send_signal(signal.SIGUSR1)
        runner.communicate(timeout=60)
    assert runner.returncode == 75
    left = Checkpoint(checkpoint)
    assert left.finished_blocks() >= 2
    if left.finished_blocks() < 12:
        found = left.latest_hidden()
        assert found is not None
        found[1].close()
        assert found[0] >= 2

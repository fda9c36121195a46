"""`espalier serve` as a user starts it, for tests: a real process with real children."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.helpers.cluster import ROOT
from tests.helpers.command import espalier
from workers import runner

ESPALIER = Path(sys.executable).with_name("espalier")


@dataclass
class Embedded:
    process: subprocess.Popen[str]
    url: str
    home: Path
    environment: dict[str, str]

    def run(self, *arguments: str, exit_code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """`espalier …` against this service; its exit code must be `exit_code`."""
        done = espalier(*arguments, env={**self.environment, **variables})
        assert done.returncode == exit_code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, **kwargs: Any) -> Any:
        """The same with --json: what it printed, or with another exit code than 0 the error on stderr."""
        done = self.run(*arguments, "--json", **kwargs)
        return json.loads(done.stdout if done.returncode == 0 else done.stderr.splitlines()[-1])

    def family(self) -> list[psutil.Process]:
        """Every process below `serve`."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def runner(self, job_id: str) -> psutil.Process | None:
        """The process that works on the job, while it does: there is one worker, and it runs one job at a time."""
        if self.json("status", job_id)["status"] != "running":
            return None
        for process in self.family():
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if process.name() == runner.NAME:
                    return process
        return None

    def child(self, part: str) -> psutil.Process | None:
        """The direct child that is alive and whose command line holds `part`."""
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if part in " ".join(process.cmdline()):
                    return process
        return None


def environment(home: Path) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("ESPALIER_")} | {
        "ESPALIER_HOME": str(home),
        "ESPALIER_MODELS_DIR": str(ROOT / "examples/models"),
        "ESPALIER_DATA_DIR": str(ROOT / "examples/data"),
        "ESPALIER_WORKER_THREADS": "1",
        "ESPALIER_RETRY_BACKOFF_S": "0.2",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }


@contextlib.contextmanager
def embedded(home: Path, **variables: str) -> Iterator[Embedded]:
    home.mkdir(parents=True, exist_ok=True)
    variables = {**environment(home), **variables}
    with (home / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [ESPALIER, "serve", "--port", "0", "--json"], env=variables, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (home / "serve.log").read_text()
        ready = json.loads(line)
        port = ready["url"].rpartition(":")[2]
        yield Embedded(process, ready["url"], home, {**variables, "ESPALIER_PORT": port})
    finally:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)  # the second one does not wait for Celery's leisurely goodbye
        process.wait(timeout=60)
        assert process.stdout is not None
        process.stdout.close()

"""`compress`: the engine alone, no service. A child process does the work; an interrupted one is resumed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from app.cli import output
from app.cli.display import Display, display, resumed
from app.cli.exits import JobFailed, Usage
from app.cli.extras import needs
from app.cli.jobs import SpecFile, read_json
from app.cli.options import AsJson, load_settings
from app.cli.report import print_report

if TYPE_CHECKING:
    from workers.engine.spec import CompressionSpec

STOP_S = 5


@needs("worker")
def compress(
    spec: SpecFile,
    out: Annotated[Path, typer.Option(help="Folder of the compressed model; must not exist yet, or be empty.")],
    models: Annotated[Path | None, typer.Option(help="Folder of local models. Default: ESPALIER_MODELS_DIR.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of local texts. Default: ESPALIER_DATA_DIR.")] = None,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0 leaves it to torch.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compress a model here and now, without a service. Interrupted, the same command goes on where it stopped."""
    settings = load_settings()
    parsed = _validated(read_json(spec))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Usage(f"{out} exists already: choose a new folder")
    work = out.absolute().with_name(f".{out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    (work / "spec.json").write_text(parsed.model_dump_json())
    command = [sys.executable, "-m", "workers.runner", str(work), "--checkpoint", str(work / "checkpoint")]
    command += ["--models", str(models or settings.models_dir), "--data", str(data or settings.data_dir)]
    command += ["--cache", str(settings.cache_dir)]
    command += ["--threads", str(threads)] if threads else []
    _run(command, work / "runner.log")

    if out.exists():
        out.rmdir()
    (work / "model").rename(out)
    shutil.rmtree(work)
    report = json.loads((out / "report.json").read_text())
    if as_json:
        output.print_json(report)
    else:
        print_report(report)
        page = (out / "report.html").absolute().as_uri()
        output.stdout.print(f"\nmodel: {out.absolute()}\nreport: {page}")


def _validated(body: Any) -> CompressionSpec:
    from app.http.field_problems import field_problem
    from workers.engine.spec import CompressionSpec

    try:
        return CompressionSpec.model_validate(body)
    except ValidationError as error:
        places = [{**e, "loc": ("body", "spec", *e["loc"])} for e in error.errors(include_url=False)]
        found = [field_problem(place) for place in places]
        lines = [f"  {f['pointer'].removeprefix('/spec') or '/'}: {f['detail']}" for f in found]
        raise Usage("The spec is not valid:\n" + "\n".join(lines)) from None


def _run(command: list[str], log: Path) -> None:
    """Run the runner to its end, showing its events. Raises JobFailed with its error."""
    error: dict[str, Any] | None = None
    with log.open("wb") as log_file, display() as shown:
        # Its own session: an interrupt reaches it through us, as the SIGTERM it is made for.
        runner = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            start_new_session=True,
        )
        try:
            assert runner.stdout is not None
            for line in runner.stdout:
                event = json.loads(line)
                if event["event"] == "error":
                    error = event
                else:
                    _show(event, shown)
            runner.wait()
        finally:
            _stop(runner)
    if runner.returncode != 0 and error is None:
        error = {"code": "runner_died", "message": f"the runner ended with code {runner.returncode}", "hint": ""}
    if error is not None:
        shown_keys = ("code", "message", "stage", "field")
        raise JobFailed({key: error.get(key) for key in shown_keys} | {"hint": f"{error['hint']}\nlog: {log}".strip()})


def _stop(runner: subprocess.Popen[str]) -> None:
    """Nothing if it has ended; otherwise we were interrupted, and it is to keep what it has finished."""
    if runner.poll() is None:
        runner.send_signal(signal.SIGUSR1)
        try:
            runner.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            runner.kill()
            runner.wait()


def _show(event: dict[str, Any], shown: Display) -> None:
    match event["event"]:
        case "stage":
            shown.show(event["stage"], 0, 0, "")
        case "progress":
            shown.show(event["stage"], event["done"], event["total"], event["unit"])
        case "resume":
            shown.say(resumed(event))
        case "log" if event["level"] != "info":
            shown.say(f"{event['level']}: {event['message']}")
        case _:
            pass

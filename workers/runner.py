"""One attempt at one job, as a process: `python -m workers.runner WORKDIR --models DIR --data DIR --checkpoint DIR`.

`WORKDIR/spec.json` in, and `origin.json` from a service; `WORKDIR/model/` out; JSON-lines events on standard output,
everything else on standard error.
Exit code 0 after a `result` event, that of the error's class (`workers/engine/errors.py`) after an `error` event, 75
on SIGTERM, and on SIGUSR1, which first makes durable what is finished. Works with no service around it. Dies with its
parent.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
from pydantic import ValidationError

from workers.children import die_with_parent, leave
from workers.engine.errors import EngineError, InvalidSpec
from workers.engine.events import Events, JsonLines, Silent
from workers.engine.registry import untagged
from workers.engine.report import Origin, Report
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec
from workers.engine.store.points import EVERY_S, Points
from workers.followers import Error, Followers, described

TERMINATED = 75
ENVIRONMENT = {
    # No progress bars in logs.
    "TQDM_DISABLE": "1",
    # OpenMP threads that wait by spinning take the cores from whoever they wait for: beside two busy processes on two
    # cores a job took 110 s with spinning and 41 s without.
    "OMP_WAIT_POLICY": "PASSIVE",
    # numpy's and scipy's own BLAS starts threads when it is imported, on a machine of several cores. No fork has them,
    # so that neither the warm parent nor a runner of several ranks could fork. Products of any size are torch's.
    "OPENBLAS_NUM_THREADS": "1",
}
"""Read by libraries when they are imported, so set before they are; the operator's own values win."""
NAME = "espalier-run"
_PR_SET_NAME = 15


def prepare_libraries() -> None:
    """Set what torch, transformers and their like are to find when they are imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    disable_progress_bars()  # of transformers too, which asks when it is imported; the hub's client is there already


@contextmanager
def importing() -> Iterator[None]:
    """For imports of the engine. All that they make stays: garbage collections meanwhile are a quarter of their time,
    and later ones pass over it, in a fork too, which shares it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return the exit code."""
    arguments = _arguments(argv)
    die_with_parent(arguments.parent)
    _call_it(NAME)
    points = Points(arguments.points_every)
    # At once: most of what is finished is durable, and the job is cancelled or over time.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(TERMINATED))
    # The job continues elsewhere. In a thread: the code that the handler interrupts may hold a lock that it needs.
    signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=_drain, args=[points], daemon=True).start())
    events = _events_on_stdout()
    prepare_libraries()
    if arguments.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = arguments.gpus  # read when CUDA is first used, so in a fork too

    def told(error: Error) -> None:
        events.emit("error", **error)

    followers = None
    try:
        spec = _read_spec(arguments.workdir / "spec.json")
        with importing():  # before the fork: the ranks share what was imported
            import workers.engine.pipeline  # noqa: F401
            from workers.engine.failures import translated

        with translated():
            followers = Followers(spec.compute.devices, arguments.workdir)
            further = followers.fork()
        if further:
            events.close()
            followers.follow(lambda: _work(arguments, spec, followers, Silent(), points))
        if followers.count > 1:
            _obey_while_waiting(points)
        followers.on_fall(told)
        report = _work(arguments, spec, followers, events, points)
    except Exception as error:
        said, code = described(error)
        if followers is not None:
            fall = None if isinstance(error, EngineError) else followers.cause()
            said, code = (fall.error, fall.exit_code) if fall else (said, code)
            followers.end()
        told(said)
        return code
    followers.end()
    events.emit("result", report=report.model_dump(mode="json"))
    return 0


def _work(
    arguments: argparse.Namespace, spec: CompressionSpec, followers: Followers, events: Events, points: Points
) -> Report:
    """The job, as any of its ranks does it."""
    import torch

    from workers.engine.pipeline import compress
    from workers.engine.ranks import Ranks, join

    count, ranks = followers.count, Ranks()
    if arguments.threads or count > 1:
        torch.set_num_threads(max(1, (arguments.threads or torch.get_num_threads()) // count))
    if count > 1:
        ranks = join(followers.rank, count, followers.meeting, cuda=spec.compute.device != "cpu")
    return compress(
        spec,
        arguments.workdir,
        Sources(arguments.models, arguments.data),
        events,
        arguments.checkpoint,
        cache_dir=arguments.cache,
        origin=_read_origin(arguments.workdir / "origin.json"),
        points=points,
        ranks=ranks,
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.runner", description=__doc__)
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="folder with spec.json; gets model/")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="folder of local models")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of text files")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="resume points; kept by attempts")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="measurements of dense models, shared between jobs")
    parser.add_argument("--gpus", metavar="NAMES", help="the GPUs to see, in place of CUDA_VISIBLE_DEVICES")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; torch's choice if left out")
    parser.add_argument(
        "--points-every",
        type=float,
        default=EVERY_S,
        metavar="S",
        help="seconds of finished work that a kill may cost; 0 makes every block a resume point",
    )
    parser.add_argument(
        "--parent", type=int, default=os.getppid(), metavar="PID", help="process to die with; the caller if left out"
    )
    return parser.parse_args(argv)


def _obey_while_waiting(points: Points) -> None:
    """Handle SIGTERM and SIGUSR1 on a thread: Python runs no handler while its main thread waits for another rank."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write)

    def obey() -> None:
        while numbers := os.read(read, 1):
            if numbers[0] == signal.SIGTERM:
                os._exit(TERMINATED)
            if numbers[0] == signal.SIGUSR1:
                threading.Thread(target=_drain, args=[points], daemon=True).start()

    threading.Thread(target=obey, name="orders", daemon=True).start()


def _drain(points: Points) -> None:
    points.drain()
    os._exit(TERMINATED)


def _call_it(name: str) -> None:
    """Set the name that `ps -o comm` shows of this process (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode())


def _events_on_stdout() -> JsonLines:
    """Events on the standard output we were given; whatever else is printed goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return JsonLines(stream)


def _read_origin(path: Path) -> Origin | None:
    """The job that the attempt is made at, where a service told us."""
    return Origin.model_validate_json(path.read_bytes()) if path.exists() else None


def _read_spec(path: Path) -> CompressionSpec:
    try:
        return CompressionSpec.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidSpec(
            f"spec.json: {first['msg']}",
            "correct the spec",
            field="/" + "/".join(str(part) for part in untagged(first["loc"])),
        ) from error


if __name__ == "__main__":
    leave(main())  # at its exit torch would wait for ranks that are dead, and free what the system frees anyway

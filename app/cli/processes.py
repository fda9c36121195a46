"""The service's processes, as commands: what `api`, `worker` and `reconciler` become, and what `serve` starts."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from app.cli.exits import Usage
from app.cli.extras import needs
from app.cli.options import load_settings

if TYPE_CHECKING:
    from app.settings import Settings

GRACEFUL_S = 5
"""Time open requests, event streams above all, have to end when the API stops."""


def api_command(*listen: str) -> list[str]:
    """`listen` is uvicorn's: --host and --port, or --fd of a socket that listens already."""
    return [
        *(sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", *listen),
        # No web sockets, and nothing that a proxy may or may not have set: the bounds of `http` are on all there is.
        *("--http", "app.http.protocol:BoundedProtocol", "--ws", "none", "--no-proxy-headers"),
        # Requests are logged by the application, structured.
        *("--no-access-log", "--no-server-header", "--timeout-graceful-shutdown", str(GRACEFUL_S)),
    ]


def worker_command(settings: Settings) -> list[str]:
    """Raises Usage where the worker is to have GPUs and there are none."""
    from workers import devices

    kind, names = devices.found(settings)
    if not names:
        raise Usage(devices.NO_GPU)
    queues = "gpu,any" if kind == "gpu" else "any"
    # One job at a time on each device, which the worker counts. Its name must differ from others' on this host.
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", "workers.celery_app", "worker"),
        *("--pool", "prefork", "--queues", queues),
        *("--hostname", f"espalier-{os.getpid()}@%h", "--loglevel", settings.log_level),
        *("--without-gossip", "--without-mingle"),
    ]


def reconciler_command() -> list[str]:
    return [sys.executable, "-m", "workers.reconciler"]


@needs("api")
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: ESPALIER_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: ESPALIER_PORT.")] = None,
) -> None:
    """Run the HTTP API alone."""
    settings = load_settings()
    _become(api_command("--host", host or settings.host, "--port", str(settings.port if port is None else port)))


@needs("worker")
def worker() -> None:
    """Run a worker: as many jobs at once as ESPALIER_WORKER_DEVICES and ESPALIER_WORKER_SLOTS give it devices for."""
    _become(worker_command(load_settings()))


@needs("api")
def reconciler() -> None:
    """Run the reconciler: expired leases, lost messages, orphaned files."""
    load_settings()
    _become(reconciler_command())


def _become(command: list[str]) -> NoReturn:
    """Replace this process, so that signals and exit codes are the service's own."""
    os.execv(command[0], command)

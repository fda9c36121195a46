"""`serve`: the whole service on one machine, by one command: API, one worker, the reconciler."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Annotated

import httpx2
import typer
from rich.panel import Panel

from app.cli import output
from app.cli.exits import Usage
from app.cli.extras import needs
from app.cli.family import Child, Family
from app.cli.options import AsJson, is_loopback, load_settings, local_key_path, local_url
from app.cli.processes import api_command, reconciler_command, worker_command

if TYPE_CHECKING:
    from app.settings import Settings


@needs("worker")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: ESPALIER_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 takes a free one. Default: ESPALIER_PORT.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run everything on this machine: API, worker and reconciler, with files in ESPALIER_HOME.

    Listening on loopback, it makes an API key on its first start and keeps it in ESPALIER_HOME/local-key.
    """
    from app.cli.prepare import local_key, prepare

    settings = load_settings()
    # The socket is ours and outlives a crash of the API: connections wait in it instead of being refused.
    listener = _listen(host or settings.host, settings.port if port is None else port)
    address, bound_port = listener.getsockname()[:2]
    settings = settings.model_copy(update={"host": address, "port": bound_port})
    prepare(settings)
    key = local_key(settings) if is_loopback(address) else None

    family = Family(
        [
            Child("API", api_command("--fd", str(listener.fileno())), pass_fds=(listener.fileno(),)),
            Child("worker", worker_command(settings)),
            Child("reconciler", reconciler_command()),
        ],
        {**os.environ, "ESPALIER_HOST": address, "ESPALIER_PORT": str(bound_port)},
        # A worker that is told to stop looks up at its heartbeat, then gives its job that long to stop.
        grace_s=10 + settings.heartbeat_s + settings.cancel_grace_s,
    )
    family.start()
    try:
        while not family.stopping and not _answers(local_url(settings)):
            family.tick()
        if not family.stopping:
            _greet(settings, key, as_json=as_json)
        while not family.stopping:
            family.tick()
    finally:
        family.stop()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise Usage(
            f"cannot listen on {host}:{port}: {error.strerror}. Another port: --port, or ESPALIER_PORT"
        ) from None


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/livez", timeout=1, trust_env=False).is_success
    except httpx2.TransportError:
        return False


def _greet(settings: Settings, key: str | None, *, as_json: bool) -> None:
    url = local_url(settings)
    if as_json:
        key_file = str(local_key_path(settings)) if key else None
        output.print_json({"url": url, "home": str(settings.home), "key_file": key_file}, indent=None)
        return
    lines = [
        f"API        {url}",
        f"API docs   {url}/docs",
        f"files      {settings.home!s}",
        f"models     {settings.models_dir.absolute()!s}",
    ]
    if key:
        lines += [
            f"API key    {key}  (in {local_key_path(settings)!s})",
            "",
            f'curl -H "Authorization: Bearer $(cat {local_key_path(settings)!s})" {url}/v1/jobs',
        ]
    else:
        lines += ["", "Reachable from outside: no local key is made. Make keys with `espalier keys create`."]
    said = output.marked("[bold]espalier is running[/], stop it with Ctrl-C\n\n{}", "\n".join(lines))
    output.stdout.print(Panel(said, expand=False))

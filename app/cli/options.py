"""Options that commands share: the connection, `--json`, and exit codes of errors."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from app.cli.exits import CliError, Usage, cli_error
from app.cli.extras import has
from app.cli.output import print_error
from espalier import Client, EspalierError

if TYPE_CHECKING:
    from app.settings import Settings


def _remember(context: typer.Context, value: bool) -> bool:
    context.meta["json"] = value
    return value


AsJson = Annotated[
    bool, typer.Option("--json", callback=_remember, help="Print JSON on stdout, and errors as JSON on stderr.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, job_….")]


class Commands(TyperGroup):
    """The root command: turns errors of the command line and of the client into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (CliError, EspalierError) as raised:
            error = cli_error(raised) if isinstance(raised, EspalierError) else raised
            print_error(error, as_json=ctx.meta.get("json", False))
            raise typer.Exit(error.exit_code) from None


@dataclass(frozen=True)
class Connection:
    """Which service the command speaks to. Without a URL, the embedded one of ESPALIER_HOME, where this installation
    has one."""

    url: str | None
    api_key: str | None

    def client(self) -> Client:
        if not has("api"):
            return Client(self.url, self.api_key)
        settings = load_settings()
        local = local_url(settings)
        url = self.url or local
        api_key = self.api_key
        if not api_key and url.rstrip("/") == local:  # the local key is sent to no other service
            path = local_key_path(settings)
            api_key = path.read_text().strip() if path.exists() else None
        return Client(url, api_key)


def connect(context: typer.Context) -> Client:
    """A client of the service named on the command line."""
    connection = context.find_root().obj
    assert isinstance(connection, Connection)
    return connection.client()


def load_settings() -> Settings:
    """The settings; Usage naming the variables that are wrong."""
    from app.settings import get_settings

    try:
        return get_settings()
    except ValidationError as error:
        lines = [
            f"  {'ESPALIER_' + '_'.join(map(str, e['loc'])).upper() if e['loc'] else 'settings'}: {e['msg']}"
            for e in error.errors(include_input=False, include_url=False)
        ]
        raise Usage("The configuration is wrong:\n" + "\n".join(lines)) from None


def local_key_path(settings: Settings) -> Path:
    return settings.home / "local-key"


def local_url(settings: Settings) -> str:
    """Where this machine reaches the service that `serve` starts here."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

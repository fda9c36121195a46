"""Commands of the operator: API keys, tenants, migrations, configuration. They work on the database, not over HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr

from app.cli import output
from app.cli.exits import CliError, Usage
from app.cli.extras import needs
from app.cli.options import AsJson, load_settings
from app.keys.scopes import SCOPES, USUAL

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from app.db import Database
    from app.keys.models import ApiKey
    from app.settings import Settings


@contextmanager
def answering(settings: Settings) -> Iterator[None]:
    """A database that does not answer, or whose URL is none, ends the command with a message."""
    from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError

    try:
        yield
    except (OperationalError, InterfaceError, ArgumentError) as error:
        why = getattr(error, "orig", None) or error
        url = _masked(settings.database_url)
        raise CliError(f"the database {url} (ESPALIER_DATABASE_URL) does not do what it is asked: {why}") from error


@contextmanager
def migrated(settings: Settings) -> Iterator[Database]:
    """The database, at this version's schema; an AppError becomes a usage error."""
    from app import migrate
    from app.db import Database
    from app.errors import AppError

    with answering(settings):
        database = Database(settings.database_url)
        try:
            if migrate.current(database) != migrate.head():
                raise Usage("the database's schema is not up to date: run `espalier db upgrade`")
            yield database
        except AppError as error:
            raise Usage(error.detail) from error
        finally:
            database.dispose()


@needs("api")
def keys_create(
    tenant: Annotated[str, typer.Option(help="Whose jobs the key sees; made if new.")],
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(SCOPES)}; repeatable. Default: all but admin.")
    ] = None,
    expires_days: Annotated[int | None, typer.Option(min=1, max=3650, help="Default: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. Its text is printed once and stored nowhere."""
    from app.keys import service as keys

    settings = load_settings()

    def make(session: Session) -> dict[str, Any]:
        key, text = keys.create_key(
            session,
            secret=settings.secret(),
            tenant=tenant,
            name=name,
            scopes=scope or list(USUAL),
            expires_days=expires_days,
        )
        return {**_key_json(key), "tenant": tenant, "text": text}

    with migrated(settings) as database:
        made = database.transact(make)
    if as_json:
        output.print_json(made)
    else:
        output.stderr.print(f"key {made['id']} of tenant {tenant}; this is the only time its text is shown:")
        output.stdout.print(made["text"])


@needs("api")
def keys_list(as_json: AsJson = False) -> None:
    """List the API keys of all tenants."""
    from app.keys import service as keys

    with migrated(load_settings()) as database, database.read() as session:
        found = [{**_key_json(key), "tenant": tenant} for key, tenant in keys.list_keys(session)]
    if as_json:
        output.print_json(found)
        return
    table = output.table("", "id", "tenant", "name", "scopes", "created", "last used", "expires", "revoked")
    for key in found:
        times = [output.local_time(key[at]) if key[at] else "" for at in TIMES]
        table.add_row(key["id"], key["tenant"], key["name"], " ".join(key["scopes"]), *times)
    output.stdout.print(table)


@needs("api")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="A key's id, from `keys list`.")], as_json: AsJson = False
) -> None:
    """Revoke an API key, at once and for good."""
    from app.keys import service as keys

    with migrated(load_settings()) as database:
        revoked = database.transact(lambda session: _key_json(keys.revoke_key(session, key_id)))
    output.print_json(revoked) if as_json else output.stdout.print(f"{key_id} revoked")


@needs("api")
def tenants_list(as_json: AsJson = False) -> None:
    """List the tenants, their shares, and what they use of their quotas."""
    from app.account import tenants

    with migrated(load_settings()) as database, database.read() as session:
        found = [tenants.detail(session, tenant) for tenant in tenants.every(session)]
    _print_tenants(found, as_json=as_json)


class Keep(StrEnum):
    """Policies of a tenant."""

    ALL = "all"
    REPORT = "report"


Quota = Annotated[int | None, typer.Option(min=-1, help="-1 takes it away.")]


@needs("api")
def tenants_set(
    name: Annotated[str, typer.Argument(metavar="TENANT", help="A tenant's name, from `tenants list`.")],
    weight: Annotated[int | None, typer.Option(min=1, max=1000, help="Its share of the workers.")] = None,
    queued: Quota = None,
    running: Quota = None,
    stored_bytes: Quota = None,
    device_seconds: Quota = None,
    requests: Quota = None,
    keep: Annotated[
        Keep | None, typer.Option(help="What stays of results of jobs that do not say: all or report.")
    ] = None,
    keep_days: Annotated[int, typer.Option(min=0, max=36_500, help="Days after a job's end until then.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Set a tenant's share of the workers, its quotas, and what stays of its results."""
    from app.account import tenants
    from app.jobs.schemas import Retention
    from app.keys.repository import tenant_named

    given = {
        "queued": queued,
        "running": running,
        "stored_bytes": stored_bytes,
        "device_seconds": device_seconds,
        "requests": requests,
    }
    quotas = {quota: None if bound == -1 else bound for quota, bound in given.items() if bound is not None}
    if quotas.get("requests") == 0:
        raise Usage("--requests 0 would lock the tenant out: revoke its keys instead")

    if keep_days and keep is not Keep.REPORT:
        raise Usage("--keep-days is for --keep report")
    retention = None if keep is None else Retention(keep=keep.value, days=keep_days)

    def change(session: Session) -> dict[str, Any]:
        found = tenant_named(session, name)
        tenant = None if found is None else tenants.locked(session, found.id)
        if tenant is None:
            raise Usage(f"there is no tenant {name}: `espalier tenants list` shows the ones there are")
        tenants.change(session, tenant, weight=weight, quotas=quotas, retention=retention)
        return tenants.detail(session, tenant)

    with migrated(load_settings()) as database:
        _print_tenants([database.transact(change)], as_json=as_json)


def _print_tenants(found: list[dict[str, Any]], *, as_json: bool) -> None:
    from app.account.tenants import QUOTAS

    if as_json:
        output.print_json(found)
        return
    table = output.table("", "tenant", "weight", *(name.replace("_", " ") for name in QUOTAS), "keeps")
    for tenant in found:
        used, quotas = tenant["usage"], tenant["quotas"]
        shown = [_used(used.get(name), quotas[name]) for name in QUOTAS]
        keeps = tenant["retention"]["keep"] + (f" after {days} d" if (days := tenant["retention"]["days"]) else "")
        table.add_row(tenant["name"], str(tenant["weight"]), *shown, keeps)
    output.stdout.print(table)


def _used(used: float | None, quota: int | None) -> str:
    parts = [f"{used:,.0f}" if used is not None else "", f"of {quota:,}" if quota is not None else ""]
    return " ".join(part for part in parts if part)


@needs("api")
def db_upgrade(
    revision: Annotated[str, typer.Argument(help="Migrate up to this revision.")] = "head", as_json: AsJson = False
) -> None:
    """Bring the database's schema up to date. Safe to repeat, and to run at several places at once."""
    from app import migrate

    settings = load_settings()
    with answering(settings):
        migrate.upgrade(settings.database_url, revision)
    db_current(as_json)


@needs("api")
def db_current(as_json: AsJson = False) -> None:
    """Show the schema's revision and the newest there is."""
    from app import migrate
    from app.db import Database

    settings = load_settings()
    with answering(settings):
        database = Database(settings.database_url)
        current, head = migrate.current(database), migrate.head()
        database.dispose()
    if as_json:
        output.print_json({"current": current, "head": head})
    else:
        output.stdout.print(f"at {current or 'nothing yet'}, newest is {head}")


@needs("api")
def config(
    markdown: Annotated[bool, typer.Option(help="The table of all variables, as in the README.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the configuration in effect, secrets and passwords masked."""
    from app.settings import Settings

    if markdown:
        output.stdout.print(settings_markdown())
        return
    settings = load_settings()
    values = {_variable(name): _masked(getattr(settings, name)) for name in Settings.model_fields}
    if as_json:
        output.print_json(values)
        return
    table = output.table("", "variable", "value")
    for variable, value in values.items():
        table.add_row(variable, value)
    output.stdout.print(table)


def settings_markdown() -> str:
    """README's configuration table."""
    from app.settings import Settings

    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else str(field.default)
        shown = f"`{default}`" if default not in ("", ".") or name == "home" else ""
        lines.append(f"| `{_variable(name)}` | {shown} | {field.description} |")
    return "\n".join(lines)


TIMES = ("created_at", "last_used_at", "expires_at", "revoked_at")


def _key_json(key: ApiKey) -> dict[str, Any]:
    times = {at: getattr(key, at) for at in TIMES}
    return {"id": key.id, "name": key.name, "scopes": key.scopes} | {
        at: ms and datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds") for at, ms in times.items()
    }


def _variable(name: str) -> str:
    return f"ESPALIER_{name.upper()}"


def _masked(value: object) -> str:
    """The value as text, with passwords in URLs masked; SecretStr masks itself."""
    return re.sub(r"(://[^/@:]*:)[^@]*@", r"\1***@", str(value))

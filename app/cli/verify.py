"""`verify`: whether a downloaded folder is what the service signed, file by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from app.cli import output
from app.cli.exits import ExitCode, Unreachable, Usage
from app.cli.extras import needs
from app.cli.options import AsJson, connect, is_loopback

WELL_KNOWN = "/.well-known/espalier-keys.json"
TIMEOUT_S = 30
MOST_BYTES = 2**20
"""Of a set of keys."""


@needs("verify")
def verify(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `download` made.")],
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="URL|FILE", help="The published keys, whose file needs no network. Default: the service's."
        ),
    ] = None,
    job: Annotated[str | None, typer.Option(metavar="JOB", help="It must be the result of this job.")] = None,
    tenant: Annotated[str | None, typer.Option(help="It must be a result of the tenant of this name.")] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Files that may be there besides, such as .gitattributes; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of a result, and who signed it. Exit code 10 if anything differs."""
    from app.signing.check import check  # cryptography, which no other command needs

    if not folder.is_dir():
        raise Usage(f"{folder} is no folder")
    try:
        found = check(folder, _published(context, keys), job_id=job, tenant=tenant, ignored=ignore or [])
    except OSError as error:
        raise Usage(f"{error.filename or folder}: {error.strerror}") from None
    statement = found.statement
    if as_json:
        output.print_json(
            {
                "verified": not found.findings,
                "files": found.files,
                "key": found.kid,
                "statement": statement and statement.model_dump(),
                "findings": [each._asdict() for each in found.findings],
            }
        )
    else:
        for each in found.findings:
            output.stdout.print(output.marked("[red]{}[/] {}: {}", each.code, each.path, each.message))
        if statement:
            output.stdout.print(f"signed by {found.kid} as the result of {statement.job_id}, tenant {statement.tenant}")
        if not found.findings:
            output.stdout.print(f"{found.files} files are as they were signed: {folder.absolute()}")
    if found.findings:
        raise typer.Exit(ExitCode.NOT_VERIFIED)


def _published(context: typer.Context, keys: str | None) -> dict[str, Any]:
    """The set of keys, from a file, an address or the service."""
    if keys is None:
        with connect(context) as client:
            _check_way(client.url)
            return _checked(client.get(WELL_KNOWN), f"{client.url}{WELL_KNOWN}")
    if "://" not in keys:
        try:
            return _checked(json.loads(Path(keys).read_text()), keys)
        except OSError as error:
            raise Usage(f"{keys}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise Usage(f"{keys} is no JSON") from None
    return _checked(_fetched(keys), keys)


def _fetched(url: str) -> Any:
    try:
        parts = httpx2.URL(url)
    except httpx2.InvalidURL:
        raise Usage(f"{url} is no URL") from None
    _check_way(url)
    local = is_loopback(parts.host)
    try:
        with httpx2.stream("GET", url, timeout=TIMEOUT_S, trust_env=not local) as answer:
            answer.raise_for_status()
            body = b""
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise Usage(f"{url} is no set of keys")
        return json.loads(body)
    except httpx2.HTTPError as error:
        raise Unreachable(f"{url}: {error or type(error).__name__}") from error
    except (ValueError, RecursionError):
        raise Usage(f"{url} is no JSON") from None


def _check_way(url: str) -> None:
    parts = httpx2.URL(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.host)):
        raise Usage(
            f"{url}: keys come over https, or from a file (--keys): whoever changes them on the way can sign anything"
        )


def _checked(document: Any, source: str) -> dict[str, Any]:
    fine = isinstance(document, dict) and all(
        isinstance(document.get(name, []), list) and all(isinstance(each, dict) for each in document.get(name, []))
        for name in ("keys", "revoked")
    )
    if not fine or "keys" not in document:
        raise Usage(f"{source} is no JSON web key set")
    found: dict[str, Any] = document
    return found

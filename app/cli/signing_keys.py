"""`signing-keys`: the operator's keys that sign manifests. They work on the file of ESPALIER_SIGNING_KEYS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output
from app.cli.exits import Usage
from app.cli.extras import needs
from app.cli.options import AsJson, load_settings

if TYPE_CHECKING:
    from app.signing.keys import KeyRing


@needs("api")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys, newest last; with --json as they are published, for `verify --keys`."""
    ring = _ring()
    if as_json:
        output.print_json(ring.published())
        return
    signs = ring.signs()
    table = output.table("", "key", "made", "state")
    for key in ring.all():
        if key.revoked_at:
            state = output.marked("[red]revoked[/] {}", key.revoked_at)
        elif key.retired_at:
            state = output.marked("retired {}: verifies what it has signed", key.retired_at)
        elif signs and key.kid == signs.kid:
            state = output.styled("signs", "green")
        else:
            state = output.styled("verifies", "")
        table.add_row(key.kid, key.created_at, state)
    output.stdout.print(table)


@needs("api")
def rotate(as_json: AsJson = False) -> None:
    """Make a key that signs from now on; the one before is retired, and verifies what it has signed."""
    from app.watched_file import Unreadable

    try:
        made = _ring().rotate()
    except (Unreadable, OSError) as error:
        raise Usage(str(error)) from None
    output.print_json(made.published()) if as_json else output.stdout.print(f"{made.kid} signs from now on")


@needs("api")
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A key's id, from `signing-keys list`.")],
    as_json: AsJson = False,
) -> None:
    """Have a key verify nothing any more, also of what it signed; another is made where it is the one that signs."""
    from app.watched_file import Unreadable

    ring = _ring()
    try:
        revoked = ring.revoke(key)
    except (Unreadable, OSError) as error:
        raise Usage(str(error)) from None
    if as_json:
        output.print_json({"kid": revoked.kid, "revoked_at": revoked.revoked_at})
    else:
        signs = ring.signs()
        output.stdout.print(f"{revoked.kid} revoked; {signs.kid if signs else 'no key'} signs")


def _ring() -> KeyRing:
    from app.signing.keys import KeyRing
    from app.watched_file import Unreadable

    try:
        return KeyRing(load_settings().signing_keys, make=False)
    except Unreadable as error:
        raise Usage(str(error)) from None

"""Places to publish to, as options and arguments give them, and publications as text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.text import Text

from app.cli import output
from app.cli.exits import Usage
from espalier.documents import Publication

STYLES = {"published": "green", "failed": "bold red", "withheld": "yellow"}


def place_of(text: str) -> dict[str, Any]:
    """A place, from JSON or from a file of it. Raises Usage."""
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else json.loads(_read(text))
    except OSError as error:
        raise Usage(f"{text}: {error.strerror}") from None
    except ValueError as error:
        raise Usage(f"the place is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Usage(f'{text}: a place is an object, such as {{"to": "s3", …}}')
    return found


def text_of(publication: Publication) -> Text:
    """One publication in a line or two."""
    where = " ".join(f"{key}={value}" for key, value in publication.params.items() if value not in (None, False))
    state = output.styled(publication.state, STYLES.get(publication.state, "cyan"))
    line = f"{publication.to} {publication.credentials} {where}  {publication.id}"
    if publication.result:
        line += f"\n  {publication.result.location} at {publication.result.revision}"
    elif publication.state == "running" and publication.progress:
        line += f"\n  {publication.progress.done:,} of {publication.progress.total:,} bytes"
    if publication.error:
        line += f"\n  {publication.error.message} ({publication.error.code})\n  {publication.error.hint}"
    return output.marked("{}  {}", state, line)


def _read(path: str) -> str:
    return sys.stdin.read() if path == "-" else Path(path).read_text()

"""Output of the command line: JSON or tables on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.exits import CliError

_OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Letters that a terminal obeys instead of showing them, that turn the order of others, or that no UTF-8 has."""


class Terminal(Console):
    """Shows names and texts of others, such as labels and files, without obeying what is in them."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(seen(text), **how)


# Into a pipe or a file, tables take the width they need instead of folding at 80.
stdout = Terminal(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
stderr = Terminal(stderr=True, highlight=False, emoji=False, soft_wrap=True)

STATUS_STYLE = {
    "queued": "yellow",
    "running": "cyan",
    "pausing": "yellow",
    "paused": "yellow",
    "cancelling": "magenta",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
}


VERDICT_STYLE = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


def seen(text: str) -> str:
    """The text with what a terminal would obey as escapes, which JSON reads too. Ends of lines and tabs stay."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_json(value: Any) -> None:
    sys.stdout.write(seen(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def print_error(error: CliError, *, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(seen(json.dumps(error.as_json(), ensure_ascii=False)) + "\n")
    else:
        stderr.print("[bold red]error[/]", escape(str(error)))


def status_text(status: str) -> str:
    return f"[{STATUS_STYLE.get(status, 'white')}]{escape(status)}[/]"


def verdict_text(verdict: str) -> str:
    return f"[{VERDICT_STYLE.get(verdict, 'white')}]{escape(verdict)}[/]"


def found(count: int | None) -> str:
    """A count of a plan; None where the job finds it."""
    return "to be found" if count is None else number(count)


def number(value: float) -> str:
    """A number as text: integers with separators of thousands, others with five significant digits."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.5g}" if abs(value) < 1e5 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def local_time(at: str | datetime) -> str:
    """An instant, also as ISO 8601, as date and time of this machine's zone."""
    return (datetime.fromisoformat(at) if isinstance(at, str) else at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table; the columns named in `right` hold numbers."""
    made = Table(title=escape(title), title_justify="left", title_style="bold", header_style="bold", box=None)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made

"""Output of the command line: JSON or tables on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.exits import CliError

# Into a pipe or a file, tables take the width they need instead of folding at 80.
stdout = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)

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


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_error(error: CliError, *, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(json.dumps(error.as_json(), ensure_ascii=False) + "\n")
    else:
        stderr.print("[bold red]error[/]", escape(str(error)))


def status_text(status: str) -> str:
    return f"[{STATUS_STYLE.get(status, 'white')}]{escape(status)}[/]"


def verdict_text(verdict: str) -> str:
    return f"[{VERDICT_STYLE[verdict]}]{verdict}[/]"


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

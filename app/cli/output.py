"""Output of the command line: JSON or tables on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.exits import CliError

_OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Letters that a terminal obeys instead of showing them, that turn the order of others, or that no UTF-8 has."""


class Terminal(Console):
    """Shows names and texts of others, such as labels and files, as they are: no string is markup, wherever it stands,
    and a terminal obeys nothing of it. What is bold or coloured is made by `marked`."""

    def __init__(self, **how: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, soft_wrap=True, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(seen(text), **how)


# Into a pipe or a file, tables take the width they need instead of folding at 80.
stdout = Terminal(width=None if sys.stdout.isatty() else 240)
stderr = Terminal(stderr=True)

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


def marked(template: str, *values: object) -> Text:
    """The template with rich's markup, and each `{}` in it a value, which is none. Templates are literals, which a test
    checks."""
    whole, made, at = Text.from_markup(template, emoji=False), Text(), 0
    for place, value in zip(re.finditer(r"\{\}", whole.plain), values, strict=True):
        shown = value.copy() if isinstance(value, Text) else Text(seen(str(value)))
        for span in whole.spans:
            if span.start <= place.start() < span.end:
                shown.stylize_before(span.style)
        made.append_text(whole[at : place.start()]).append_text(shown)
        at = place.end()
    return made.append_text(whole[at:])


def styled(text: str, style: str) -> Text:
    return Text(seen(text), style)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    sys.stdout.write(seen(json.dumps(value, indent=indent, ensure_ascii=False)) + "\n")
    sys.stdout.flush()


def print_error(error: CliError, *, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(seen(json.dumps(error.as_json(), ensure_ascii=False)) + "\n")
    else:
        stderr.print(marked("[bold red]error[/] {}", error))


def status_text(status: str) -> Text:
    return styled(status, STATUS_STYLE.get(status, "white"))


def verdict_text(verdict: str | None) -> Text:
    return styled(verdict or "", VERDICT_STYLE.get(verdict or "", "white"))


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
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made

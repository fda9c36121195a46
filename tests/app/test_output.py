"""Names and texts that others chose, as the command line shows them."""

from __future__ import annotations

import io
import json

import pytest

from app.cli import output
from app.cli.account import _print_models
from app.cli.compress import _show
from app.cli.display import display
from app.cli.exits import cli_error
from app.cli.output import Terminal
from espalier import APIError
from espalier.documents import ModelSummary, Page
from workers.engine.reporting.short import no_formula

OBEYED = ["\x1b[2J", "\x1b]0;title\x07", "\x9b2J", "\r", "\x08", "\0", "\u202e", "\ufeff", "\ud800"]


@pytest.mark.parametrize("text", OBEYED, ids=ascii)
def test_a_terminal_obeys_nothing_of_what_it_shows(text: str) -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, force_terminal=True, color_system=None)
    terminal.print(f"a{text}b")
    table = output.table(f"t{text}", f"h{text}")
    table.add_row(f"c{text}d")
    terminal.print(table)
    assert not set(text) - set("2J]0;title[") & set(file.getvalue())
    assert f"\\u{ord(text[0]):04x}" in file.getvalue()


def test_names_with_colons_stay_as_they_are() -> None:
    file = io.StringIO()
    Terminal(file=file).print("team:key:1")
    assert file.getvalue() == "team:key:1\n"
    assert not output.stdout._emoji


@pytest.mark.parametrize("text", OBEYED, ids=ascii)
def test_json_is_the_same_and_shows_nothing_that_is_obeyed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"name": f"ä{text}"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": f"ä{text}"}
    assert "ä" in printed
    assert not set(text) - set("2J]0;title[") & set(printed)


def test_a_verdict_of_a_newer_service_is_shown() -> None:
    assert output.verdict_text("[bold]odd").plain == "[bold]odd"


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "\r=1", "=HYPERLINK(1)", "-1+2"])
def test_no_field_of_csv_is_a_formula(text: str) -> None:
    assert no_formula(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-0.5", "+3", "-1e-05", "wanda", "", 3, -0.5, None])
def test_numbers_and_names_stay_fields(value: object) -> None:
    assert no_formula(value) == value


def test_what_looks_like_markup_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A model in a folder called `[/]` ends no command."""
    model = ModelSummary(id="[/]", source="local", compressible=True, methods=["a"])
    _print_models(Page([model], None, None, {}))
    shown = capsys.readouterr().out
    assert "[/]" in shown


@pytest.mark.parametrize("unit", ["block", "step"])
def test_a_local_compression_says_where_it_goes_on(unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An edit goes on at a block, a training at a step."""
    with display() as shown:
        _show({"event": "resume", "stage": "tune", unit: 3}, shown)
    assert f"resumed at {unit} 3" in capsys.readouterr().err


@pytest.mark.parametrize("odd", [None, "no list", [None], 3])
def test_a_refusal_of_something_between_is_shown(odd: object) -> None:
    problem = {"status": 502, "title": "Bad Gateway", "errors": odd, "allowed": odd, "detail": "down"}
    error = cli_error(APIError(problem))
    assert (error.exit_code, str(error).splitlines()[:2]) == (7, ["Bad Gateway (http_502)", "down"])

"""Every command of the command line beside names that a terminal would obey, or that rich would read as markup: from a
service that puts them wherever a text stands, and in an operator's own database, store and folders."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import update
from typer.main import get_command
from typer.testing import CliRunner

from app import migrate
from app.cli import cli
from app.cli.options import Connection
from app.cli.output import marked, seen, styled
from app.db import Database
from app.keys import service as keys
from app.keys.models import ApiKey, Tenant
from app.settings import Settings, get_settings
from app.signing.keys import KeyRing
from espalier import Client
from tests.helpers.api import with_manifest
from tests.helpers.cluster import ROOT
from tests.helpers.conformity import document

HOSTILE = "x[/]y[red]z[/bold]\\[i]\x1b[2J\x9b2J\r\0\u202e\ufeff\\"
WITHOUT_NUL = HOSTILE.replace("\0", "")
"""For paths and databases."""
OBEYED = set("\x1b\x9b\r\0\u202e\ufeff")
AT = "2026-11-27T12:00:00Z"
FOR_FILES = {("logs",)}
"""Where stdout is no terminal, what they print is not changed: a file gets it as it was written."""
PLACE, JOB = '{"to": "s3", "credentials": "c"}', "job_x"
CLIENTS = [
    *(["submit", "SPEC"], ["submit", "SPEC", "--wait"], ["submit", "SPEC", "--dry-run"], ["watch", JOB], ["list"]),
    *([verb, JOB] for verb in ("status", "cancel", "pause", "resume", "retry", "pin", "unpin", "report", "gate")),
    *(["delete", HOSTILE], ["logs", JOB], ["logs", JOB, "--follow"], ["compare", JOB, JOB]),
    *(["download", JOB, "--out", "OUT"], ["publish", JOB, PLACE], ["models"], ["models", "m"], ["workers"], ["whoami"]),
    *(
        ["verify", "RESULT", "--keys", "KEYS"],
        ["methods", "show", "--remote"],
        ["methods", "show", HOSTILE, "--remote"],
    ),
    *(["sweep", "submit", "SPEC"], ["sweep", "submit", "SPEC", "--dry-run"], ["sweep", "list"], ["sweep", "show", "s"]),
    *(["sweep", "pareto", "s"], ["sweep", "cancel", "s"], ["sweep", "delete", HOSTILE]),
    *(["sweep", "table", "s", "--format", each] for each in ("md", "csv", "latex")),
    *(["webhooks", "create", "u"], ["webhooks", "list"], ["webhooks", "delete", HOSTILE], ["webhooks", "rotate", "w"]),
    *(["webhooks", verb, HOSTILE] for verb in ("enable", "disable")),
    *(["webhooks", "test", "w"], ["webhooks", "deliveries", "w"], ["webhooks", "redeliver", "w", "1"]),
]
OPERATORS = [
    *(["keys", "list"], ["keys", "create", "--tenant", HOSTILE, "--name", "n"], ["keys", "revoke", HOSTILE]),
    *(["tenants", "list"], ["tenants", "set", HOSTILE, "--weight", "2"], ["config"], ["gc"]),
    *(["adopt-store"], ["db", "current"], ["db", "upgrade"], ["db", "downgrade"], ["signing-keys", "list"]),
    *(["signing-keys", "rotate"], ["signing-keys", "revoke", HOSTILE], ["backup", "BACKUP"], ["restore", "BACKUP"]),
    *(["probe", "worker"], ["methods", "new", "score", HOSTILE]),
]
NAMELESS = {
    *(("db", each) for each in ("current", "upgrade", "downgrade")),
    *((("probe",), ("signing-keys", "rotate"), ("methods", "new"))),
}
THAT_STAY = {("serve",), ("compress",), ("api",), ("worker",), ("reconciler",)}
"""Commands that serve or compute; what they print of others goes through the same functions."""


def sample(schema: dict[str, Any], name: str = "", depth: int = 0) -> Any:
    """A value of the schema in which every free text is hostile. Jobs in it have succeeded."""
    if reference := schema.get("$ref"):
        return sample(document()["components"]["schemas"][reference.rpartition("/")[2]], name, depth + 1)
    if "const" in schema:
        return schema["const"]
    if choices := schema.get("enum"):
        return "succeeded" if "succeeded" in choices else choices[0]
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            of = [each for each in schema[several] if each.get("type") != "null"]
            return sample(of[0], name, depth + 1) if depth < 30 else None
    match schema.get("type"):
        case "object":
            return _object(schema, name, depth)
        case "array":
            items = schema.get("prefixItems") or [schema.get("items", {})] * max(schema.get("minItems", 1), 1)
            return [sample(each, "", depth + 1) for each in items]
        case "integer":
            return max(schema.get("minimum", 1), 1)
        case "number":
            return 1.5
        case "boolean":
            return True
    return AT if schema.get("format") == "date-time" else HOSTILE


def _object(schema: dict[str, Any], name: str, depth: int) -> Any:
    if name == "spec" and "properties" not in schema:
        return {"model": {"id": HOSTILE}, "score": {"method": HOSTILE}, "gates": [{"metric": HOSTILE}]}
    properties = schema.get("properties")
    if name == "parameters" and not properties:  # of a method: a JSON schema
        field = {"type": "string", "description": HOSTILE, "default": HOSTILE}
        return {"type": "object", "properties": {HOSTILE: field}}
    found = {key: sample(each, key, depth + 1) for key, each in (properties or {}).items()}
    more = schema.get("additionalProperties")
    if not properties and more is not False:
        found[HOSTILE] = sample(more if isinstance(more, dict) else {}, name, depth + 1)
    return found


EVENTS = [
    ("running", {"worker": HOSTILE}),
    ("queued", {"error": {"message": HOSTILE, "code": HOSTILE}}),
    ("queued", {"reason": HOSTILE}),
    ("resume", {"block": HOSTILE}),
    ("resume", {"step": HOSTILE}),
    ("log", {"level": HOSTILE, "message": HOSTILE}),
    ("stage", {"stage": HOSTILE}),
    ("progress", {"stage": HOSTILE, "done": 1, "total": 2, "unit": HOSTILE, "rate": 1.0, "eta_s": 2.0}),
]


def answer(request: httpx2.Request) -> httpx2.Response:
    path = request.url.raw_path.partition(b"?")[0].decode()
    if path.endswith("/events"):
        events = [
            {"seq": seq, "type": kind, "attempt": 1, "data": data, "at": AT} for seq, (kind, data) in enumerate(EVENTS)
        ]
        body = "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "event: end\ndata: {}\n\n"
        return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, text=body)
    if "/logs" in path:
        return httpx2.Response(200, text=HOSTILE, headers={"Content-Type": "text/plain"})
    for template, operations in document()["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path) and request.method.lower() in operations:
            responses = operations[request.method.lower()]["responses"]
            good = [int(code) for code in responses if code.startswith("2") and code != "206"]
            status = min(good) if request.url.params.get("dry_run") else max(good)
            schema = responses[str(status)].get("content", {}).get("application/json", {}).get("schema")
            body = None if schema is None else sample(schema)
            if isinstance(body, dict) and request.url.params.get("cursor"):
                body["next_cursor"] = None
            return httpx2.Response(status, json=body) if body is not None else httpx2.Response(status)
    raise AssertionError(f"{request.method} {path} is not in the document")


@cache
def leaves() -> set[tuple[str, ...]]:
    root: Any = get_command(cli)
    return {
        (name, *more)
        for name, command in root.commands.items()
        for more in ([(each,) for each in command.commands] if hasattr(command, "commands") else [()])
    }


def named(command: list[str]) -> tuple[str, ...]:
    return next(leaf for leaf in (tuple(command[:2]), tuple(command[:1])) if leaf in leaves())


def shown(command: list[str]) -> tuple[int, str]:
    done = CliRunner().invoke(cli, command)
    assert done.exception is None or isinstance(done.exception, SystemExit), (command, done.exception)
    return done.exit_code, done.output


def test_every_command_is_among_those_below() -> None:
    assert {named(command) for command in CLIENTS + OPERATORS} | THAT_STAY == leaves()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(
        Connection,
        "client",
        lambda self: Client("http://s.example", "espk_x", max_retries=0, transport=httpx2.MockTransport(answer)),
    )
    (tmp_path / "spec.json").write_text("{}")
    (tmp_path / "keys.json").write_text('{"keys": []}')
    result = tmp_path / "result"
    result.mkdir()
    (result / "manifest.json").write_bytes(with_manifest({})["manifest.json"])
    (result / HOSTILE.replace("/", "").replace("\0", "")).touch()
    return {"SPEC": "spec.json", "KEYS": "keys.json", "RESULT": "result", "OUT": "out"} | {"": str(tmp_path)}


@pytest.mark.parametrize("command", CLIENTS, ids=lambda command: seen(" ".join(command)))
def test_what_a_service_says_is_shown_as_it_is(command: list[str], files: dict[str, str]) -> None:
    folder = files[""]
    code, said = shown([f"{folder}/{files[each]}" if each in files else each for each in command])
    assert code in (0, 2, 3, 10), said
    if named(command) in FOR_FILES:
        return
    assert not OBEYED & set(said), ascii(said)
    assert "[red]z" in said, said


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An embedded service's, whose name is one, with such names of a tenant and a key."""
    home = tmp_path / WITHOUT_NUL.replace("/", "")
    settings = Settings(home=home)
    home.mkdir()
    migrate.upgrade(settings.database_url)
    database = Database(settings.database_url)
    key = {"secret": b"s", "scopes": ["jobs:read"], "expires_days": None}
    database.transact(lambda session: keys.create_key(session, tenant="t", name="n", **key))
    with database.write() as session:
        session.execute(update(Tenant).values(name=WITHOUT_NUL))
        session.execute(update(ApiKey).values(name=WITHOUT_NUL))
    database.dispose()
    ring = KeyRing(settings.signing_keys, make=True)
    document = json.loads(ring.path.read_text())
    document["keys"][0]["espalier_made_at"] = document["keys"][0]["created_at"] = HOSTILE
    ring.path.write_text(json.dumps(document))
    monkeypatch.setenv("ESPALIER_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()
    yield home
    get_settings.cache_clear()


def test_what_an_operator_has_is_shown_as_it_is(home: Path) -> None:
    for command in OPERATORS:
        said = shown([str(home.parent / f"backup-{home.name}") if each == "BACKUP" else each for each in command])[1]
        assert said.strip(), command
        assert not OBEYED & set(said), (command, ascii(said))
        if named(command) not in NAMELESS:
            assert "[red]z" in said, (command, said)


def test_a_store_with_a_file_of_such_a_name_is_no_traceback(home: Path) -> None:
    (home / "artifacts/job_x").mkdir(parents=True)
    (home / "artifacts/job_x" / home.name).touch()
    code, said = shown(["gc"])
    assert (code, "[red]z" in said, OBEYED & set(said)) == (1, True, set())


@pytest.mark.parametrize("value", [HOSTILE, "{}", "\\", "[/]", ""], ids=ascii)
def test_a_value_of_a_template_is_no_markup(value: str) -> None:
    made = marked("[bold]a {}[/] {} {}", value, value, styled(value, "red"))
    shown = seen(value)
    assert made.plain == f"a {shown} {shown} {shown}"
    assert {span.end for span in made.spans if span.style == "bold"} == {2, 2 + len(shown)}
    assert marked("[red]only[/]").plain == "only"


def test_templates_are_literals_and_nothing_else_is_markup() -> None:
    for path in sorted((ROOT / "app/cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("output.marked", "marked"):
                assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "markup":
                assert ast.unparse(node.value) == "False", f"{path.name}:{node.value.lineno}"
            if isinstance(node, ast.ImportFrom | ast.Import) and path.name != "output.py":
                assert "rich.markup" not in ast.unparse(node), f"{path.name}:{node.lineno}"
                assert "rich.console" not in ast.unparse(node), f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call) and path.name != "output.py":
                assert ast.unparse(node.func) not in ("Text.from_markup", "print"), f"{path.name}:{node.lineno}"

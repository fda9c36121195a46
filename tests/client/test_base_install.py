"""The base install, from a wheel, in an environment with nothing but what it requires."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from app.cli import cli
from app.cli.exits import ExitCode
from app.cli.extras import BRINGS
from tests.helpers import fresh
from workers.engine import DISTRIBUTION

pytestmark = pytest.mark.xdist_group("base install")  # one environment for all
MOST_BYTES = 40_000_000
"""Of site-packages besides pip. 35.2 MB on 2026-11-27, in blocks of 4 KiB 41.7: 9.9 of pygments and 0.9 of markdown-it,
which rich requires, and typer rich; 10.2 of pydantic; 10.8 of our own, 6.5 of them `workers`, whose files are many and
small. 18.7 is compiled code that pip makes."""
EXTRAS = {
    **dict.fromkeys(("serve", "worker", "compress"), "worker"),
    **dict.fromkeys(("api", "reconciler", "config", "gc", "adopt-store", "backup", "restore", "probe"), "api"),
    **dict.fromkeys(("keys", "tenants", "db", "signing-keys"), "api"),
    "verify": "verify",
}


def run(installed: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [installed / program, *arguments],
        env=fresh.variables(installed), cwd=installed, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


EACH = """
import json, sys
from typer.testing import CliRunner
from app.cli import cli

for command in json.load(sys.stdin):
    done = CliRunner().invoke(cli, command)
    print(json.dumps([command, done.exit_code, done.output]))
"""


def each(installed: Path, commands: list[list[str]]) -> list[tuple[list[str], int, str]]:
    """(command, exit code, output) of each command, run one after another in one process of the environment."""
    done = subprocess.run(
        [installed / "python", "-c", EACH],
        env=fresh.variables(installed), cwd=installed, input=json.dumps(commands), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_the_client_imports_nothing_of_the_service(installed: Path) -> None:
    done = run(installed, "python", "-c", "import espalier, sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not {"app", "workers", "typer", "rich", "torch"} & set(done.stdout.split())


def test_it_is_small(installed: Path) -> None:
    (site,) = installed.parent.glob("lib/python*/site-packages")
    parts = [path for path in site.iterdir() if not path.name.startswith("pip")]
    files = [file for part in parts for file in (part.resolve().rglob("*") if part.is_dir() else [part])]
    total = sum(file.stat().st_size for file in files if file.is_file())
    assert 20_000_000 < total < MOST_BYTES, f"{total:,} bytes"


def test_the_commands_of_the_client_work(installed: Path) -> None:
    shown = run(installed, "espalier", "--help")
    assert shown.returncode == 0, shown.stderr
    assert all(name in shown.stdout for name in get_command(cli).commands)  # type: ignore[attr-defined]
    nowhere = ["--url", "http://127.0.0.1:1"]
    asking = (["list"], ["status", "job_x"], ["sweep", "list"], ["webhooks", "list"], ["whoami"], ["models"])
    commands = [["methods", "wanda"], ["methods", "wnada"], *([*nowhere, *command] for command in asking)]
    (_, code, wanda), (_, mistyped, _), *unreachable = each(installed, commands)
    assert (code, "Wanda" in wanda, mistyped) == (0, True, ExitCode.USAGE)
    for command, code, said in unreachable:
        assert code == ExitCode.UNREACHABLE, (command, said)


COMMANDS = [
    *(["serve"], ["worker"], ["compress", "spec.json", "--out", "x"], ["api"], ["reconciler"], ["config"], ["gc"]),
    *(["adopt-store"], ["keys", "list"], ["keys", "create", "--tenant", "a", "--name", "b"], ["keys", "revoke", "x"]),
    *(["backup", "x"], ["restore", "x"], ["db", "downgrade"], ["probe", "worker"]),
    *(["tenants", "list"], ["tenants", "set", "x"], ["db", "upgrade"], ["db", "current"], ["verify", "."]),
    *(["signing-keys", "list"], ["signing-keys", "rotate"], ["signing-keys", "revoke", "x"]),
]


def test_a_command_of_the_service_says_which_extra_it_needs(installed: Path) -> None:
    for command, code, said in each(installed, COMMANDS):
        assert code == ExitCode.USAGE, (command, said)
        assert f"[{EXTRAS[command[0]]}]" in said, (command, said)
        assert "Traceback" not in said
    done = run(installed, "espalier", "serve")
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (ExitCode.USAGE, "", False)


def with_extra(installed: Path, folder: Path, extra: str, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment, with the libraries of an extra besides."""
    libraries = folder / "libraries"
    libraries.mkdir()
    required = fresh.requirements(DISTRIBUTION, frozenset({extra}))
    fresh.link(libraries, [each for each in required if each.name != DISTRIBUTION])
    return subprocess.run(
        [str(part) for part in command],
        env={**fresh.variables(installed), "PYTHONPATH": str(libraries)},
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_with_the_extra_of_verify_a_result_is_verified(installed: Path, tmp_path: Path) -> None:
    """A folder that nobody signed; it is the libraries that are asked for here."""
    (tmp_path / "keys.json").write_text('{"keys": []}')
    (tmp_path / "result").mkdir()
    done = with_extra(installed, tmp_path, "verify", installed / "espalier", "verify", "result", "--keys", "keys.json")
    assert done.returncode == ExitCode.NOT_VERIFIED, done.stdout + done.stderr


IMPORT_ALL = """
import importlib, pkgutil
import app, workers.reconciler

for module in pkgutil.walk_packages(app.__path__, "app."):
    importlib.import_module(module.name)
"""


def test_with_the_extra_of_the_api_all_of_it_is_there(installed: Path, tmp_path: Path) -> None:
    done = with_extra(installed, tmp_path, "api", installed / "python", "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr


def test_every_command_is_the_clients_or_says_its_extra() -> None:
    ours = {name for name, command in get_command(cli).commands.items() if command.rich_help_panel != "Jobs"}  # type: ignore[attr-defined]
    assert ours | {"verify"} == EXTRAS.keys() | {"methods"}
    assert {command[0] for command in COMMANDS} == EXTRAS.keys()
    assert set(EXTRAS.values()) == BRINGS.keys()

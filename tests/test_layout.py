"""Where tests lie: the engine's in its rooms, and what several share in `tests/helpers`."""

from __future__ import annotations

import ast

from tests.helpers.cluster import ROOT

TESTS = ROOT / "tests"


def test_no_module_imports_a_test_module_or_a_conftest() -> None:
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}, line {node.lineno}: a relative import"
                imported = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            else:
                continue
            for name in imported:
                parts = name.split(".")
                shared = parts[0] != "tests" or not any(part.startswith(("test_", "conftest")) for part in parts)
                assert shared, f"{path}, line {node.lineno}: {name}; what tests share lies in tests/helpers"


def test_the_engines_tests_lie_in_its_rooms() -> None:
    rooms = {path.name for path in (ROOT / "workers/engine").iterdir() if path.is_dir()}
    folders = {path.name for path in (TESTS / "engine").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= rooms
    modules = {path.stem for path in (ROOT / "workers/engine").glob("*.py")}
    assert {path.stem.removeprefix("test_") for path in (TESTS / "engine").glob("test_*.py")} <= modules


def test_nothing_sleeps_for_long() -> None:
    """A test waits for what it waits for. What runs for minutes on purpose lies in `tests/chaos`."""
    for path in TESTS.rglob("*.py"):
        if path.is_relative_to(TESTS / "chaos"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep":
                (length,) = node.args
                long = isinstance(length, ast.Constant) and isinstance(length.value, int | float) and length.value > 1
                assert not long, f"{path}, line {node.lineno}: wait for a condition, see tests/helpers/cluster.py"

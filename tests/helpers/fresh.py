"""A fresh environment with espalier's wheel and what it requires, made without a network.

The wheel is built from this tree. The libraries are those of the environment that runs the tests, each linked by the
list of its files: exactly those that the wheel's metadata asks for, so whatever else is imported is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.helpers.cluster import ROOT
from workers.engine import DISTRIBUTION

PACKAGES = ("app", "espalier", "migrations", "workers")


def wheel(folder: Path) -> Path:
    """espalier's wheel, built in `folder` from a copy of this tree: what an earlier build left is not taken up."""
    source = folder / "source"
    source.mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, source], check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def requirements(name: str, extras: frozenset[str] = frozenset()) -> Iterator[Distribution]:
    """The distribution and all that it requires here, recursively."""
    seen = set[tuple[str, frozenset[str]]]()
    waiting = [(name, extras)]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found = distribution(name)
        yield found
        for line in found.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            ):
                waiting.append((requirement.name, frozenset(requirement.extras)))


def link(site: Path, distributions: Iterable[Distribution]) -> None:
    """Put the files of the distributions into `site`."""
    for each in distributions:
        for top in {file.parts[0] for file in each.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(each.locate_file(top))))


def base(folder: Path) -> Path:
    """An environment to install the base client's wheel into, with pip and what that requires; its `bin`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    link(site, [distribution("pip"), *(each for each in requirements(DISTRIBUTION) if each.name != DISTRIBUTION)])
    return folder / "bin"


def variables(binaries: Path) -> dict[str, str]:
    """Of a process in that environment: it finds no other, and no network."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ESPALIER_", "PYTHON", "PIP_"))}
    path = f"{binaries}:{os.environ['PATH'].removeprefix(f'{Path(sys.executable).parent}:')}"
    return {**kept, "PATH": path, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "VIRTUAL_ENV": ""}

"""Methods of other packages: entry points of the group `espalier.methods`, named `<stage>.<method>`, each a module.

An operator allows packages by name. Of others the names of their methods are known, and no code is run. Import-light.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "espalier.methods"
VARIABLE = "ESPALIER_METHOD_PACKAGES"
"""Environment variable: the packages whose methods are used, with commas."""


@dataclass(frozen=True)
class Offered:
    """A method that an installed package offers."""

    stage: str
    name: str
    module: str
    package: str
    """As on PyPI."""
    version: str
    allowed: bool

    @property
    def origin(self) -> str:
        return f"{self.package} {self.version}"


@cache
def offered() -> tuple[Offered, ...]:
    """The methods that installed packages offer, by stage and name. The packages are the same while a process lives."""
    allowed = allowed_packages()
    found = [_offered(point, allowed) for point in entry_points(group=GROUP) if point.dist is not None]
    return tuple(sorted(found, key=lambda one: (one.stage, one.name, one.package)))


def allowed_packages() -> frozenset[str]:
    """Normalised names of the packages whose methods the operator allows."""
    return frozenset(_normalised(name) for name in os.environ.get(VARIABLE, "").split(",") if name.strip())


def unknown_packages() -> list[str]:
    """Allowed packages that are not installed, or offer no method."""
    return sorted(allowed_packages() - {_normalised(one.package) for one in offered()})


def refused(stage: str, name: str) -> Offered | None:
    """The method of that name in a package that is installed and not allowed, if there is one."""
    return next((one for one in offered() if (one.stage, one.name, one.allowed) == (stage, name, False)), None)


def _offered(point: EntryPoint, allowed: frozenset[str]) -> Offered:
    stage, _, name = point.name.partition(".")
    package = point.dist.name if point.dist else ""
    version = point.dist.version if point.dist else ""
    return Offered(stage, name, point.module, package, version, _normalised(package) in allowed)


def _normalised(name: str) -> str:
    """As package names are compared (PyPA, Names and normalization)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()

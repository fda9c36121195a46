"""The publishers there are: ours, and those of installed packages."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from app.publications.contract import Publisher
from app.publications.to import hub, mlflow, s3

GROUP = "espalier.publishers"
OURS = (hub.PUBLISHER, mlflow.PUBLISHER, s3.PUBLISHER)


@cache
def publishers() -> dict[str, Publisher[Any, Any]]:
    """By name. Raises where a package's publisher cannot be imported, is none, or takes a name that is taken."""
    found: dict[str, Publisher[Any, Any]] = {each.name: each for each in OURS}
    for point in entry_points(group=GROUP):
        made = point.load()
        if not isinstance(made, Publisher) or made.name in found:
            raise ValueError(f"the entry point {point.name} of {GROUP} is no Publisher, or its name is taken")
        found[made.name] = made
    return found

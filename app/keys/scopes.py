"""Scopes: permissions of a key."""

from __future__ import annotations

from typing import Literal, get_args

Scope = Literal["jobs:read", "jobs:write", "jobs:cancel", "artifacts:read"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""jobs:read looks, jobs:write submits, labels, retries and deletes, jobs:cancel stops, artifacts:read downloads."""

"""Scopes: permissions of a key."""

from __future__ import annotations

from typing import Literal, get_args

Scope = Literal[
    "jobs:read", "jobs:write", "jobs:priority", "jobs:cancel", "artifacts:read", "publish", "webhooks", "admin"
]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""jobs:read looks, jobs:write submits, labels, resumes, retries and deletes, jobs:priority submits ahead of other jobs,
jobs:cancel stops and pauses, artifacts:read downloads, publish brings results elsewhere with the operator's
credentials, webhooks has others told, admin sees all tenants, sets their shares and quotas, and makes and revokes keys
of any tenant with any scope: it may do everything."""
USUAL: tuple[Scope, ...] = tuple(scope for scope in SCOPES if scope != "admin")

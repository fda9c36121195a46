"""Identifiers: a prefix for the kind, 48 bits of time and 80 random bits, so that ids sort by age."""

from __future__ import annotations

import re
import secrets
import time


def new_id(prefix: str) -> str:
    return f"{prefix}_{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `new_id(prefix)` could have made it."""
    return re.fullmatch(rf"{prefix}_[0-9a-f]{{32}}", text) is not None

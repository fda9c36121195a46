"""Identifiers: a prefix that says what it names, then 48 bits of time and 80 of chance, so that ids sort by age."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    return f"{prefix}_{int(time.time() * 1000):012x}{secrets.token_hex(10)}"

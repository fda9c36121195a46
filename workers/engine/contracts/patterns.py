"""Sparsity patterns as written in a spec. N:M is always N KEPT of M, as in papers and hardware."""

from __future__ import annotations

import re


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """`"2:4"` -> (2 kept, of 4); `"unstructured"` -> None. Raises ValueError on anything else."""
    if pattern == "unstructured":
        return None
    match = re.fullmatch(r"([1-9]\d{0,2}):([1-9]\d{0,2})", pattern)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"{pattern!r} is neither `unstructured` nor `N:M` with 0 < N (kept) < M")
    return int(match[1]), int(match[2])

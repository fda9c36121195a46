"""Values of specs as short text."""

from __future__ import annotations

import json
import re
from typing import Any


def short(value: Any) -> str:
    """A varied value as text: the name of a method, a number without padding."""
    if isinstance(value, dict) and "method" in value:
        rest = {key: inner for key, inner in value.items() if key != "method"}
        return f"{value['method']} {short(rest)}" if rest else str(value["method"])
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def no_formula(value: Any) -> Any:
    """A field of CSV that no spreadsheet computes: text that begins as a formula does gets a quote before it. Numbers
    stay."""
    if isinstance(value, str) and re.match(r"[=+\-@\t\r](?!\d+(\.\d+)?(e[+-]?\d+)?$)", value):
        return f"'{value}"
    return value

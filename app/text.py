"""Text as every database, log and answer can hold it.

A model may write anything, and a config or an error may hold it: PostgreSQL stores no NUL, UTF-8 no lone surrogate,
JSON no NaN. What goes out of the process passes through here, once, where it goes out.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def readable(value: Any) -> Any:
    """The value with every string in it storable, and of the same length: NUL becomes ␀, a lone surrogate �.

    Looks into dicts (keys too), lists and tuples. NaN and the infinities become None, as in JSON.
    """
    if isinstance(value, str):
        return _storable(value) if _UNSTORABLE.search(value) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {readable(key): readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [readable(item) for item in value]
    if type(value) is tuple:
        return tuple(readable(item) for item in value)
    return value


def legible(data: bytes) -> str:
    """Bytes that should be a short ASCII name, as text: stripped and cut, other bytes escaped, on one line."""
    return data[:200].strip().decode("latin-1").encode("unicode_escape").decode()


def json_text(value: Any) -> str:
    """The value as JSON that both databases store and every parser reads."""
    return json.dumps(readable(value), allow_nan=False)


def _storable(text: str) -> str:
    # UTF-16 joins the halves of a pair that stand apart and replaces those that stand alone.
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\0", "␀")

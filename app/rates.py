"""How many requests a tenant may send: a token bucket for each, in this process."""

from __future__ import annotations

import math
import time

from app.errors import TooManyRequests


class Rates:
    """Used on the event loop only. A bucket holds the tokens of a minute, so a burst of so many passes."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def count(self, tenant_id: str, per_minute: int) -> None:
        """Take a token. Raises TooManyRequests, with the time until there is one."""
        now = time.monotonic()
        tokens, at = self._buckets.get(tenant_id, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - at) * per_minute / 60)
        if tokens < 1:
            wait_s = math.ceil((1 - tokens) * 60 / per_minute)
            raise TooManyRequests(
                f"Your tenant may send {per_minute:,} requests a minute: wait {wait_s} s. `Prefer: wait=N` and events "
                "tell of changes with fewer of them.",
                headers={"Retry-After": str(wait_s)},
                quota="requests",
                limit=per_minute,
                retryable=True,
            )
        self._buckets[tenant_id] = (tokens - 1, now)

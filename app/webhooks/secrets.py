"""Secrets and signatures of webhooks, by the Standard Webhooks scheme (standardwebhooks.com).

A secret is derived from the service's own and the webhook's id and number of rotations, so the database holds none.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime


def secret_of(service: bytes, webhook_id: str, number: int) -> str:
    """`whsec_` and 32 bytes in base 64."""
    key = hmac.digest(service, f"webhook:{webhook_id}:{number}".encode(), hashlib.sha256)
    return f"whsec_{base64.b64encode(key).decode()}"


def headers(message_id: str, body: str, secrets: Sequence[str], at: float) -> dict[str, str]:
    """The headers of one try at a message; `at` in seconds since the epoch."""
    from standardwebhooks import Webhook

    moment = datetime.fromtimestamp(int(at), UTC)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at)),
        "webhook-signature": " ".join(Webhook(secret).sign(message_id, moment, body) for secret in secrets),
    }

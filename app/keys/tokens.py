"""The text of an API key: `espk_`, 43 random base-62 digits (256 bits), 6 of a CRC-32 that tells typos apart.

The underscore keeps the whole key selectable by a double click; the checksum lets scanners, and this service,
refuse garbage without asking a database.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import zlib

PREFIX = "espk_"
DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_LENGTH, CHECKSUM_LENGTH = 43, 6


def new_token() -> str:
    random = "".join(secrets.choice(DIGITS) for _ in range(RANDOM_LENGTH))
    return PREFIX + random + _checksum(random)


def well_formed(token: str) -> bool:
    """Whether this could be a key: right prefix, length, alphabet and checksum."""
    if not token.startswith(PREFIX) or len(token) != len(PREFIX) + RANDOM_LENGTH + CHECKSUM_LENGTH:
        return False
    random, checksum = token[len(PREFIX) : -CHECKSUM_LENGTH], token[-CHECKSUM_LENGTH:]
    return random.isascii() and random.isalnum() and checksum == _checksum(random)


def hash_token(token: str, secret: bytes) -> str:
    """HMAC-SHA256, hex. A fast hash is right here: the token has 256 bits of chance, no dictionary reaches it."""
    return hmac.digest(secret, token.encode(), hashlib.sha256).hex()


def _checksum(random: str) -> str:
    number = zlib.crc32(random.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(DIGITS))
        digits = DIGITS[digit] + digits
    return digits

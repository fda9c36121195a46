"""Prices of device time: what the operator sets, and amounts as text. Amounts are whole billionths of the currency."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

PARTS = 10**9
MOST = Decimal(10**6)


class Money(NamedTuple):
    amount: str
    """Decimal, in full."""
    currency: str


def parsed(text: str) -> dict[str, int]:
    """Kind or model of a device -> the price of a second of it, from `cpu=0.00002, NVIDIA H100 80GB HBM3=0.0011`.

    Raises ValueError.
    """
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, amount = (piece.strip() for piece in part.rpartition("="))
        try:
            price = Decimal(amount)
        except InvalidOperation:
            price = Decimal(-1)
        named = bool(separator and name) and "=" not in name
        if not (named and price.is_finite() and 0 <= price <= MOST and (price * PARTS) % 1 == 0):
            raise ValueError(f"prices: {part!r} is not KIND=AMOUNT, an amount of at most 9 decimals from 0 to {MOST}")
        found[name] = int(price * PARTS)
    return found


def of_devices(prices: Mapping[str, int], kind: str, models: list[str | None]) -> int | None:
    """The price of a second of these devices: each by its model, else by its kind; None where one has none."""
    each = [prices.get(model or "", prices.get(kind)) for model in models]
    return None if None in each else sum(price for price in each if price is not None)


def money(billionths: int, currency: str) -> Money:
    amount = f"{Decimal(billionths).scaleb(-9):f}"
    return Money(amount.rstrip("0").rstrip(".") if "." in amount else amount, currency)

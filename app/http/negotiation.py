"""Which representation an Accept header asks for: RFC 9110 section 12.5.1."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import NotAcceptable


def negotiate(accept: str | None, offers: Sequence[str]) -> str:
    """The offer that the client prefers; the first of equals. Raises NotAcceptable where it accepts none."""
    if not accept:
        return offers[0]
    ranges = [_parse(part) for part in accept.split(",")]
    liked = {offer: _quality(offer, ranges) for offer in offers}
    best = max(offers, key=lambda offer: liked[offer])
    if liked[best] == 0:
        raise NotAcceptable(f"This can be had as {' or '.join(offers)}: adapt `Accept`.", allowed=list(offers))
    return best


def _parse(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return media_range, float(quality)
    except ValueError:
        return media_range, 0.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """That of the most specific range that covers the offer."""
    for covering in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        for media_range, quality in ranges:
            if media_range == covering:
                return quality
    return 0.0

"""Finds how an axis follows from the entries of a config, of its sizes in several settings.

An expression is a sum of products, as text: `num_attention_heads*head_dim+2*num_key_value_heads*head_dim`. A factor is
a number, an entry, or a quotient `hidden_size/num_attention_heads`, rounded down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import combinations

Sizes = tuple[int, ...]
"""One number in each setting."""
_FACTORS = (2, 3, 4)
_ADDED = (1, 2, 3)
_MOST_TERMS = 700
"""Beyond so many, sums of three are not tried."""

_UNLIKELY = re.compile(r"^[34]\*|(\w+)\*\1\b|conv|/")
"""Terms of no sum of three."""


class Expressions:
    """Expressions of a family's entries, by their values in all settings; the first that fits is taken."""

    def __init__(self, entries: Mapping[str, Sizes], quotients: Mapping[str, Sizes], each: Mapping[str, int]) -> None:
        """`entries`: name -> value in each setting. `quotients`: the same of quotients of two. `each`: entries that are
        the same in all settings, as factors."""
        self._terms: dict[Sizes, str] = {}
        self._of: dict[Sizes, str | int | None] = {}
        simple = {**entries, **quotients}
        self._simple = simple
        for name, sizes in simple.items():
            self._terms.setdefault(sizes, name)
        for (one, some), (other, more) in combinations(simple.items(), 2):
            self._terms.setdefault(_times(some, more), f"{one}*{other}")
        for name, sizes in simple.items():
            self._terms.setdefault(_times(sizes, sizes), f"{name}*{name}")
        for factor in _FACTORS:
            for sizes, name in list(self._terms.items()):
                if name.count("*") < 2 and not name[0].isdigit():
                    self._terms.setdefault(tuple(factor * size for size in sizes), f"{factor}*{name}")

        for name, count in each.items():
            for other, sizes in entries.items():
                if len({*sizes}) == 1:
                    continue
                self._terms.setdefault(tuple(count * size for size in sizes), f"{name}*{other}")

    def of(self, sizes: Sizes) -> str | int | None:
        """The expression of an axis; None where none is found, or where it is the same in all settings: what it follows
        from may be what no setting varies."""
        if sizes not in self._of:
            self._of[sizes] = self._found(sizes)
        return self._of[sizes]

    def value(self, factors: Iterable[str], setting: int) -> int:
        """A product in one of the settings."""
        return math.prod(int(name) if name.isdecimal() else self._simple[name][setting] for name in factors)

    def _found(self, sizes: Sizes) -> str | int | None:
        if {*sizes} == {1}:
            return 1
        if sizes in self._terms:
            return self._terms[sizes]
        if len({*sizes}) == 1:
            return None
        terms = {
            part: name for part, name in self._terms.items() if all(a < b for a, b in zip(part, sizes, strict=True))
        }
        for part, name in terms.items():
            rest = _minus(sizes, part)
            if rest in terms:
                return f"{name}+{terms[rest]}"
            if len({*rest}) == 1 and rest[0] in _ADDED and "*" not in name:
                return f"{name}+{rest[0]}"
        terms = {part: name for part, name in terms.items() if _UNLIKELY.search(name) is None}
        if len(terms) > _MOST_TERMS:
            return None
        for (one, name), (two, other) in combinations(terms.items(), 2):
            rest = _minus(_minus(sizes, one), two)
            if rest in terms:
                return f"{name}+{other}+{terms[rest]}"
        return None


def _times(one: Sizes, other: Sizes) -> Sizes:
    return tuple(a * b for a, b in zip(one, other, strict=True))


def _minus(one: Sizes, other: Sizes) -> Sizes:
    return tuple(a - b for a, b in zip(one, other, strict=True))

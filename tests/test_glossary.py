"""The glossary of docs/design.md: its other names are used nowhere. And how docstrings and comments are written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.cluster import ROOT

DESIGN = ROOT / "docs/design.md"
PROSE = ("README.md", "CHANGELOG.md", "docs/*.md")
ELSEWHERE = {"surgeon": "brain surgeon", "lm head": "lm_head"}
"""Names that others gave, which hold a word of ours."""
METAPHORS = re.compile(
    r"\b(lessons?|surpris(e|es|ed|ing)|a hole|suspects?|burns?|burnt|at rest|bury|buried|owe[sd]?|strangers?"
    r"|zombies?|clos(e|ed|es) up|blam(e|es|ed|ing)|foretells?)\b"
)
"""A plain verb or noun says the same: ended, not reaped, due, another deployment, predicts."""


def rows() -> list[list[str]]:
    table = DESIGN.read_text().split("## Glossary", 1)[1].split("\n## ", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"][2:]


def lines() -> Iterator[tuple[Path, int, str]]:
    """Of code, in which a name such as `unitSurgeon` or `unit_surgeon` is two words, and of documentation."""
    sources = [path for room in ("app", "workers", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    for path in [*sources, *(path for pattern in PROSE for path in ROOT.glob(pattern))]:
        text = path.read_text()
        if path == DESIGN:
            before, rest = text.split("## Glossary", 1)
            text = before + rest.split("\n## ", 1)[1]
        for number, line in enumerate(text.splitlines(), 1):
            yield path, number, re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", line).lower()


def test_no_other_word_for_a_term() -> None:
    words = [word for *_, other in rows() for word in other.split(", ") if word]
    assert len(words) > 5
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word!r}"
        for path, number, line in lines()
        for word in words
        if re.search(rf"\b{word}s?\b", line.replace(ELSEWHERE.get(word, word + "!").replace("_", " "), ""))
    ]
    assert found == []


def test_plain_words() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r}"
        for path, number, line in lines()
        for match in METAPHORS.finditer(line)
    ]
    assert found == []


def test_docstrings_say_what_a_thing_is_or_does() -> None:
    """As a noun or a verb, not as a clause that begins with "What"."""
    sources = [path for room in ("app", "workers", "benchmarks", "tests") for path in (ROOT / room).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.match(r'\s*"""What\b', line)
    ]
    assert found == []


def test_every_term_is_used() -> None:
    text = "\n".join(line for _, _, line in lines())
    for terms, *_ in rows():
        for term in terms.split(", "):
            assert term.split()[-1] in text, term

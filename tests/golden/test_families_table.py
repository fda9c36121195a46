"""The table of families, generated again."""

from __future__ import annotations

import pytest

from workers.engine.architectures.generate import FILE, generate, written


@pytest.mark.golden
def test_the_whole_table_is_up_to_date() -> None:
    assert written(generate()) == FILE.read_text(encoding="utf-8")

"""A sweep as a table of a paper: rows, means over seeds, what is best, and the three formats."""

from __future__ import annotations

import csv
import io
import re
import statistics
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from app.cli.paper import Column, Paper, paper
from app.cli.paper_formats import comma_separated, latex, markdown

PERPLEXITY, SPEED = "perplexity/held_out.txt", "generation_speed/tokens_per_s"
COLUMNS = [Column(PERPLEXITY, "perplexity", False), Column(SPEED, "tokens/s", True)]
PARAMETERS = ["/score", "/prune/sparsity", "/calibrate/seed"]


@dataclass
class Child:
    values: dict[str, Any]
    metrics: dict[str, Any] | None = None
    verdict: str | None = None
    number: int = field(default=0)


def child(method: str, sparsity: float, seed: int, *measured: float, verdict: str | None = None) -> Child:
    values = {"/score": {"method": method}, "/prune/sparsity": sparsity, "/calibrate/seed": seed}
    sides = [SimpleNamespace(dense=30.0, pruned=value, ratio=value / 30) for value in measured]
    return Child(values, dict(zip((PERPLEXITY, SPEED), sides, strict=True)) if measured else None, verdict)


CHILDREN = [
    child("magnitude", 0.5, 0, 40.0, 100.0, verdict="fail"),
    child("magnitude", 0.5, 1, 42.0, 100.0, verdict="fail"),
    child("wanda", 0.5, 0, 35.123, 90.0, verdict="pass"),
    child("wanda", 0.5, 1, 35.523, 99.0, verdict="fail"),
    child("wanda", 0.6, 0, 60.0, 100.0, verdict="fail"),
    child("wanda", 0.6, 1),  # failed
]


def table(children: list[Child] = CHILDREN, **kwargs: Any) -> Paper:
    return paper(PARAMETERS, children, COLUMNS, kwargs.get("side", "pruned"))


class TestRows:
    def test_are_configurations_and_seeds_none_of_them(self) -> None:
        found = table()
        assert found.parameters == ["/score", "/prune/sparsity"]
        assert [(row.seeds, row.children, row.verdict) for row in found.rows] == [
            (2, 2, "fail"),
            (2, 2, "1 pass, 1 fail"),
            (1, 2, "fail"),
        ]

    def test_have_mean_and_deviation_of_the_sample(self) -> None:
        cell = table().rows[1].cells[0]
        assert cell is not None
        assert cell.mean == pytest.approx(35.323)
        assert cell.sd == pytest.approx(statistics.stdev([35.123, 35.523]))
        alone = table().rows[2].cells[0]
        assert alone is not None
        assert alone.sd is None, "one value has none"

    def test_of_ratios(self) -> None:
        found = table(side="ratio")
        assert found.dense == [None, None]
        cell = found.rows[0].cells[0]
        assert cell is not None
        assert cell.mean == pytest.approx(41 / 30)

    def test_leave_out_what_all_have_alike(self) -> None:
        assert table(CHILDREN[2:]).parameters == ["/prune/sparsity"]
        assert table(CHILDREN[:1]).parameters == ["/score", "/prune/sparsity"], "of one row nothing differs"

    def test_of_seeds_alone_are_one(self) -> None:
        children = [Child({"/seed": n}, CHILDREN[n].metrics) for n in range(3)]
        found = paper(["/seed"], children, COLUMNS, "pruned")
        assert (found.parameters, len(found.rows), found.dense) == ([], 1, [None, None])
        assert "± 3.54" in markdown(found)

    def test_best_is_the_least_or_the_most_as_shown(self) -> None:
        found = table()
        assert found.best(0) == 35.32
        assert found.best(1) == 100.0
        same = [child("wanda", 0.5, 0, 35.1231, 1.0), child("wanda", 0.6, 0, 35.1229, 1.0)]
        assert table(same).best(0) == 35.12


class TestFormats:
    def test_markdown(self) -> None:
        lines = markdown(table()).splitlines()
        assert lines[0] == (
            "| score | sparsity | perplexity/held_out.txt ↓ | generation_speed/tokens_per_s (tokens/s) ↑ | seeds "
            "| verdict |"
        )
        assert lines[2] == "| dense |  | 30.00 | 30.0 |  |  |"
        assert lines[3] == "| magnitude | 0.5 | 41.00 ± 1.41 | **100.0 ± 0.0** | 2 | fail |"
        assert lines[4] == "| wanda | 0.5 | **35.32 ± 0.28** | 94.5 ± 6.4 | 2 | 1 pass, 1 fail |"
        assert lines[5] == "| wanda | 0.6 | 60.00 | **100.0** | 1 of 2 | fail |"
        assert len({line.count("|") for line in lines}) == 1

    def test_csv_has_all_digits(self) -> None:
        head, *rows = csv.reader(io.StringIO(comma_separated(table())))
        assert head == [
            *("/score", "/prune/sparsity", f"{PERPLEXITY} mean", f"{PERPLEXITY} sd", f"{SPEED} mean", f"{SPEED} sd"),
            *("seeds", "verdict"),
        ]
        assert float(rows[1][2]) == pytest.approx(35.323)
        assert rows[2][3] == ""
        assert [len(row) for row in rows] == [len(head)] * 3

    def test_latex(self) -> None:
        text = latex(table(), r"50 % & more: a_b \ {c}", "tab:x")
        assert r"\caption{50 \% \& more: a\_b \textbackslash{} \{c\}}" in text
        assert r"wanda & 0.5 & $\mathbf{35.32 \pm 0.28}$ & $94.5 \pm 6.4$ & 2 & 1 pass, 1 fail \\" in text
        assert r"perplexity/held\_out.txt $\downarrow$" in text
        assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 2, 1]
        body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        [kinds] = re.findall(r"\\begin{tabular}{([lr]+)}", text)
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(kinds) - 1}
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
        assert text.isascii()

    def test_large_numbers_keep_their_thousands_apart(self) -> None:
        children = [child("wanda", at, 0, 1.0, 14_123_456.0 * at) for at in (1.0, 2.0)]
        assert "14,123,456" in markdown(table(children))
        assert r"$14{,}123{,}456$" in latex(table(children), "", "x")

    def test_a_bar_in_a_name_breaks_no_row(self) -> None:
        children = [child("a|b", 0.5, 0, 1.0, 2.0), child("c", 0.5, 0, 1.0, 2.0)]
        assert len({line.count("|") for line in markdown(table(children)).splitlines()}) == 1


def test_values_break_no_table_and_do_nothing_where_it_is_shown() -> None:
    values = {"/score": "a\nb\\\\ & \\input{x} <b>", "/label": "=1+1", "/link": "[x](javascript:1) `|"}
    children = [Child(values, CHILDREN[0].metrics), Child({**values, "/score": "c"}, CHILDREN[2].metrics)]
    found = paper(list(values), children, COLUMNS, "pruned")
    found = Paper(list(values), found.columns, found.dense, found.rows)
    md = markdown(found)
    assert md.count("\n") == 2 + 1 + 2
    assert not re.search(r"<|`|\]\(", md)
    assert {line.count("|") for line in md.splitlines()} == {1 + len(values) + len(COLUMNS)}
    tex = latex(found, "caption", "tab:x")
    assert r"\input" not in tex
    assert r"a b\textbackslash{}\textbackslash{} \& \textbackslash{}input\{x\} \textless{}b\textgreater{}" in tex
    rows = list(csv.DictReader(io.StringIO(comma_separated(found))))
    assert [row["/label"] for row in rows] == ["'=1+1", "'=1+1"]

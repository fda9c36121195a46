"""The table of a paper as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from app.cli.output import seen
from app.cli.paper import Cell, Paper, Row, titles, value_text
from workers.engine.reporting.short import no_formula

_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "–": "--",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def markdown(paper: Paper) -> str:
    """A table of GitHub's Markdown, the best values bold."""
    arrows = {True: " ↑", False: " ↓", None: ""}
    heads = [*titles(paper.parameters), *(each.title + arrows[each.higher_is_better] for each in paper.columns)]
    sides = ["---"] * len(paper.parameters) + ["---:"] * len(paper.columns)
    lines = [[*heads, *_last_titles(paper)], [*sides, *("---" for _ in _last_titles(paper))]]
    if any(paper.dense):
        lines.append([*_dense_label(paper), *_cells(paper, paper.dense, "{} ± {}", None), *_blanks(paper)])
    for row in paper.rows:
        lines.append([*_values(paper, row), *_cells(paper, row.cells, "{} ± {}", "**{}**"), *_last(paper, row)])
    return "".join(f"| {' | '.join(_md(cell) for cell in line)} |\n" for line in lines)


def comma_separated(paper: Paper) -> str:
    """RFC 4180, with a head; each measurement has its mean and its standard deviation, to all digits."""
    text = io.StringIO()
    rows = csv.writer(text)
    measured = [f"{column.name} {what}" for column in paper.columns for what in ("mean", "sd")]
    rows.writerow(map(_field, [*paper.parameters, *measured, "seeds", "verdict"]))
    for row in paper.rows:
        found = [side for cell in row.cells for side in ((cell.mean, cell.sd) if cell else (None, None))]
        rows.writerow(map(_field, [*_values(paper, row), *found, row.seeds, row.verdict]))
    return text.getvalue()


def latex(paper: Paper, caption: str, label: str) -> str:
    r"""A table for `\usepackage{booktabs}`, the best values bold."""
    arrows = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}
    heads = [_tex(title) for title in titles(paper.parameters)]
    heads += [_tex(each.title) + arrows[each.higher_is_better] for each in paper.columns]
    last = [_tex(title) for title in _last_titles(paper)]
    lines = [[*heads, *last]]
    if any(paper.dense):
        cells = _cells(paper, paper.dense, r"{} \pm {}", None)
        lines.append([*map(_tex, _dense_label(paper)), *map(_math, cells), *_blanks(paper)])
    rows = []
    for row in paper.rows:
        cells = _cells(paper, row.cells, r"{} \pm {}", r"\mathbf{{{}}}")
        rows.append([*map(_tex, _values(paper, row)), *map(_math, cells), *map(_tex, _last(paper, row))])
    top = [f"    {' & '.join(line)} \\\\" for line in lines]
    middle = "\n    \\midrule\n".join([*top, "\n".join(f"    {' & '.join(line)} \\\\" for line in rows)])
    kinds = "l" * len(paper.parameters) + "r" * len(paper.columns) + "l" * len(last)
    label = one_line(label)
    return (
        "% \\usepackage{booktabs}\n\\begin{table}\n  \\centering\n"
        f"  \\caption{{{_tex(caption)}}}\n  \\label{{{label}}}\n  \\begin{{tabular}}{{{kinds}}}\n    \\toprule\n"
        f"{middle}\n    \\bottomrule\n  \\end{{tabular}}\n\\end{{table}}\n"
    )


def _cells(paper: Paper, cells: Sequence[Cell | None], spread: str, bold: str | None) -> list[str]:
    """As text, to the decimals of the columns; `bold` marks the best."""
    made = []
    for number, (cell, decimals) in enumerate(zip(cells, paper.decimals, strict=True)):
        if cell is None:
            made.append("–")
            continue
        mean = f"{cell.mean:,.{decimals}f}"
        text = mean if cell.sd is None else spread.format(mean, f"{cell.sd:,.{decimals}f}")
        made.append(bold.format(text) if bold and round(cell.mean, decimals) == paper.best(number) else text)
    return made


def _values(paper: Paper, row: Row) -> list[str]:
    return [one_line(value_text(row, pointer)) for pointer in paper.parameters]


def _dense_label(paper: Paper) -> list[str]:
    return ["dense", *("" for _ in paper.parameters[1:])]


def _last_titles(paper: Paper) -> list[str]:
    judged = any(row.verdict for row in paper.rows)
    return [*(["seeds"] if paper.several_seeds else []), *(["verdict"] if judged else [])]


def _last(paper: Paper, row: Row) -> list[str]:
    seeds = str(row.seeds) if row.seeds == row.children else f"{row.seeds} of {row.children}"
    return [seeds if title == "seeds" else row.verdict for title in _last_titles(paper)]


def _blanks(paper: Paper) -> list[str]:
    return ["" for _ in _last_titles(paper)]


def _math(text: str) -> str:
    return "--" if text == "–" else f"${text.replace(',', '{,}')}$"


def one_line(text: str) -> str:
    """The text without ends of lines, at which a table would break."""
    return seen(" ".join(text.split()))


def _field(value: Any) -> Any:
    """Of CSV."""
    return no_formula(one_line(value) if isinstance(value, str) else value)


def _md(cell: str) -> str:
    """A cell in which nothing is a tag, a link, code or the beginning of another cell."""
    return re.sub(r"[|<>`]|(?<=\])\(", lambda found: f"&#{ord(found[0])};", one_line(cell))


def _tex(text: str) -> str:
    return re.sub(r"[&%$#_{}~^\\–±<>|]", lambda found: _TEX[found[0]], one_line(text))

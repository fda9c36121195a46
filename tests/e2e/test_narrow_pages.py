"""The pages on a telephone: at 390 px nothing of a table lies beyond the screen, and an id is at most two lines."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.sweeps.page import render as render_sweep
from app.sweeps.pareto import pareto
from app.sweeps.repository import ChildRow, Measured
from tests.helpers.reports import report_of
from workers.engine.report import GateResult, Sample
from workers.engine.reporting.page import render as render_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
const wide = [...document.querySelectorAll("td, tbody th, h1, h2, p, dd")].filter(
  (e) => e.getBoundingClientRect().right > innerWidth + 0.5 || e.scrollWidth > e.clientWidth + 1);
const lines = [...document.querySelectorAll(".id")].map((e) => e.getBoundingClientRect().height / 20);
parent.postMessage(`${innerWidth} ${document.documentElement.scrollWidth} ${Math.max(0, ...lines)} ` +
  wide.map((e) => `<${e.tagName}> ${e.textContent.trim().slice(0, 20)}`).join(), "*");
</script>"""
TELEPHONE = """<!doctype html><title>waiting</title>
<script>addEventListener("message", (said) => { document.title = said.data; });</script>
<iframe src="page.html" style="border: 0; width: 390px; height: 800px"></iframe>"""
"""Chromium's own windows are at least 500 px wide."""


def sweep_page() -> str:
    parameters = ["/score/method", "/prune/sparsity"]
    children, reports = [], {}
    for number in range(6):
        values: dict[str, Any] = {"/score/method": ("magnitude", "wanda")[number % 2], "/prune/sparsity": 0.1 * number}
        children.append(ChildRow(number, values, None, f"job_{number:032x}", "succeeded", "pass", None, None, 1))
        measured = {"pruned": 33.0 + number, "pruned_stderr": 0.5, "dense": 33.0, "unit": "", "higher_is_better": False}
        spec = {"score": {"method": values["/score/method"]}, "prune": {"method": "mask"}}
        reports[number] = Measured([{"name": "perplexity/heldout.txt", **measured}], 0.1 * number, spec)
    summary = {"id": "swp_1", "name": "n", "counts": {"succeeded": 6}, "parameters": parameters, "status": "completed"}
    return render_sweep(summary, pareto("swp_1", children, reports, None, None))


def report_page() -> str:
    gate = GateResult(
        metric="perplexity/heldout.txt", of="ratio", min=None, max=1.1, confidence=0.95, value=1.1,
        interval=(1.05, 1.15), verdict="inconclusive",
        reason="the interval holds a bound: measure on more text, or widen the bound",
    )  # fmt: skip
    sample = Sample(prompt="It was a dark night", dense="and the wind blew " * 8, pruned="word" * 60)
    return render_report(
        report_of().model_copy(update={"gates": [gate], "verdict": "inconclusive", "samples": [sample]})
    )


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("page", [sweep_page, report_page])
def test_at_390_pixels_everything_is_on_the_screen(tmp_path: Path, page: Any) -> None:
    html = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page())  # it forbids the probe
    (tmp_path / "telephone.html").write_text(TELEPHONE)
    (tmp_path / "page.html").write_text(
        html.replace("<details>", "<details open>").replace("</body>", f"{PROBE}</body>")
    )
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=5000",
        (tmp_path / "telephone.html").as_uri(),
    ]
    drawn = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"<title>(\d+) (\d+) ([\d.]+) (.*)</title>", drawn)
    assert found
    assert found[4] == ""  # nothing lies beyond the screen or its own box
    assert int(found[2]) <= int(found[1]) == 390
    assert float(found[3]) < 2.5

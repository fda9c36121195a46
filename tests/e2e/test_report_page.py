"""The report page in a real browser: the plots are drawn, in light and in dark."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from tests.helpers.reports import report_of
from workers.engine.reporting.page import render

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COLOURS = {"light": ("#f6f5f1", "#2b7a57"), "dark": ("#131715", "#57b98a")}
"""Of the page and of what was pruned, as the template names them."""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("scheme", COLOURS)
def test_the_plots_are_drawn(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "report.html").write_text(render(report_of()), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2600"]
    command += [f"--screenshot={tmp_path / 'page.png'}"]
    command += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    subprocess.run([*command, (tmp_path / "report.html").as_uri()], check=True, capture_output=True, timeout=60)

    pixels_HWC = (imread(tmp_path / "page.png")[:, :, :3] * 255).round().astype(int)
    page, pruned = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in COLOURS[scheme])
    assert (np.abs(pixels_HWC - page).max(axis=2) <= 2).mean() > 0.1  # the page's margins
    # Bars of what was removed and of the measurement: some thousands of pixels, in places far apart.
    rows = np.flatnonzero((np.abs(pixels_HWC - pruned).max(axis=2) <= 2).sum(axis=1) > 20)
    assert len(rows) > 100
    assert rows.max() - rows.min() > 500

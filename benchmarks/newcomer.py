"""A newcomer's first job: from a clone to a compressed model, by README's words and a browser.

    python -m benchmarks.newcomer

Clones this repository, runs `make serve`, which installs what it needs from the package index, signs in with the key
that lies where README says, fills the form, submits, and waits until the page shows the result. Prints how long each
step took. Chromium is driven from this environment: the clone's has no Playwright.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import httpx2
from playwright.sync_api import Page, expect, sync_playwright

from tests.helpers.browser import CHROMIUM, OFFLINE, sign_in
from tests.helpers.cluster import ROOT, eventually, free_port


def main() -> None:
    began = last = time.monotonic()

    def done(step: str) -> None:
        nonlocal last
        now = time.monotonic()
        print(f"| {step} | {now - last:.0f} | {now - began:.0f} |", flush=True)
        last = now

    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"load average {os.getloadavg()[0]:.1f}\n\n| step | seconds | in all |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="espalier-newcomer-") as folder, sync_playwright() as playwright:
        clone, url = Path(folder) / "espalier", f"http://127.0.0.1:{(port := free_port())}"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        done("git clone")
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("ESPALIER_", "VIRTUAL"))
        }
        with (Path(folder) / "log").open("wb") as log:
            served = subprocess.Popen(
                ["make", "serve"],
                cwd=clone,
                env=environment | {"ESPALIER_PORT": str(port)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            eventually(lambda: (clone / ".venv/.installed-demo").exists(), 1800, "what it takes is installed")
            done("install")
            eventually(lambda: answers(url), 120, "the service answers")
            done("start the service")
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
            page = browser.new_context(base_url=url).new_page()
            sign_in(page, (clone / ".espalier/local-key").read_text().strip())
            submit(page)
            done("sign in, fill the form, submit")
            expect(page.get_by_role("heading", name="Result")).to_be_visible(timeout=300_000)
            done("the job, until its result is on the page")
            browser.close()
        finally:
            os.killpg(served.pid, signal.SIGTERM)
            served.wait()


def submit(page: Page) -> None:
    """Wanda on the shipped text, all else as the form has it at first, but for what the dry run says would fail."""
    page.get_by_role("link", name="New job").click()
    page.get_by_label("score", exact=True).select_option("wanda")
    page.get_by_role("checkbox", name="calibrate").check()
    page.get_by_role("group", name="calibrate").get_by_label("dataset").fill("calibration.txt")
    page.get_by_label("Add a measurement").select_option("size")
    plan = page.get_by_role("region", name="Dry run")
    plan.get_by_role("button", name="Set calibrate samples to").click()
    expect(plan.get_by_text("valid", exact=True)).to_be_visible()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("bookworm-7m: ")


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


if __name__ == "__main__":
    main()

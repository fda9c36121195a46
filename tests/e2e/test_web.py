"""The pages at work: a real browser and the real service, on SQLite with a worker, on PostgreSQL and Redis without."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import chromium, needs_chromium, opened, sign_in
from tests.helpers.cluster import SLOW, WANDA, Cluster, Redis, running

__all__ = ["chromium"]
pytestmark = [needs_chromium, pytest.mark.xdist_group("web")]
EVALUATED = {
    **WANDA,
    "calibrate": {"dataset": "calibration.txt", "samples": 2, "sequence_length": 64},
    "evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 64, "samples": 4}],
    "gates": [{"metric": "perplexity/heldout.txt", "max": 3.0}],
}


embedded = pytest.mark.parametrize("cluster", ["embedded"], indirect=True)


@pytest.fixture
def page(chromium: Browser, cluster: Cluster) -> Iterator[Page]:
    with opened(chromium, str(cluster.http.base_url)) as tab:
        sign_in(tab.page, cluster.key)
        yield tab.page


@embedded
def test_a_job_is_followed_from_the_queue_to_its_files(page: Page, cluster: Cluster, tmp_path: Path) -> None:
    expect(page.get_by_text("There are no jobs yet.")).to_be_visible()
    job_id = cluster.submit(EVALUATED, labels={"team": "web"})
    page.get_by_role("link", name="bookworm-7m").click()  # the list shows it by itself
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_contain_text("bookworm-7m: wanda, uniform, mask")
    # Nothing is loaded again from here on: the page follows the job.
    expect(page.get_by_role("heading", name="Result")).to_be_visible(timeout=90_000)
    expect(page.locator("main")).to_contain_text("50.0 % of the prunable weights")
    assert page.locator(".head .badge").all_text_contents() == ["succeeded", "pass"]
    expect(page.get_by_role("row", name=re.compile("perplexity.heldout.* pass"))).to_be_visible()
    page.get_by_text("What happened").click()
    for stage in ("calibrate", "prune", "evaluate"):
        expect(page.get_by_role("cell", name=stage, exact=True).first).to_be_visible()

    with page.expect_download() as downloading:
        page.get_by_role("link", name="model.safetensors").click()
    downloading.value.save_as(tmp_path / "model")
    files = {file["path"]: file for file in cluster.http.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]}
    assert hashlib.sha256((tmp_path / "model").read_bytes()).hexdigest() == files["model.safetensors"]["sha256"]

    with page.expect_popup() as report:
        page.get_by_role("link", name="The report").click()
    expect(report.value.get_by_role("heading", level=1)).to_contain_text("bookworm-7m")

    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
    assert cluster.job(job_id)["status"] == "succeeded"
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("There are no jobs yet.")).to_be_visible()
    assert cluster.http.get(f"/v1/jobs/{job_id}").status_code == 404


@embedded
def test_a_job_is_stopped_and_taken_up_again(page: Page, cluster: Cluster) -> None:
    job_id = cluster.submit(SLOW)
    page.goto(f"/#/jobs/{job_id}")
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator("dl.facts").first).to_contain_text(re.compile(r"Done\d+ of \d+ "))
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".head .badge")).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("progressbar")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".head .badge")).to_have_text("cancelled")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".head .badge")).to_have_text(re.compile("queued|running"))
    assert cluster.job(job_id)["status"] in ("queued", "running")
    cluster.http.post(f"/v1/jobs/{job_id}/cancel")
    expect(page.locator(".head .badge")).to_have_text("cancelled")  # told by the stream


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_first_job_is_put_together_in_the_form(
    chromium: Browser, database_url: str, redis: Redis, tmp_path: Path
) -> None:
    """And led from there by its buttons: PostgreSQL and Redis, and no worker."""
    service = Cluster(tmp_path / "home", database_url=database_url, broker_url=redis.url)
    with running(service, workers=0), opened(chromium, str(service.http.base_url)) as tab:
        page = tab.page
        sign_in(page, service.key)
        put_together(page)
        job_id = page.url.rpartition("/")[2]
        job = service.job(job_id)
        assert (job["spec"]["prune"]["sparsity"], job["labels"]) == (0.25, {"team": "web"})
        assert job["spec"]["evaluate"] == [{"method": "size"}]
        state = page.locator(".head .badge")
        expect(page.get_by_text("no live worker")).to_be_visible()
        for button, then in (("Pause", "paused"), ("Resume", "queued"), ("Cancel", "cancelled"), ("Retry", "queued")):
            page.get_by_role("button", name=button).click()
            if button == "Cancel":
                page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
            expect(state).to_have_text(then)
            assert service.job(job_id)["status"] == then
        service.http.post(f"/v1/jobs/{job_id}/cancel")
        expect(state).to_have_text("cancelled")  # told by the stream
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.get_by_text("There are no jobs yet.")).to_be_visible()
        assert service.http.get(f"/v1/jobs/{job_id}").status_code == 404


def put_together(page: Page) -> None:
    page.get_by_role("link", name="New job").click()
    plan = page.get_by_role("region", name="Dry run")
    expect(plan).to_contain_text("6,951,168")  # what stands there at first is valid
    page.get_by_label("score", exact=True).select_option("wanda")
    calibrate = page.get_by_role("group", name="calibrate")
    expect(plan).to_contain_text("add `calibrate` with a `dataset`")
    page.get_by_role("checkbox", name="calibrate").check()
    calibrate.get_by_label("dataset").fill("calibration.txt")
    page.get_by_label("sparsity").fill("1.5")
    expect(page.get_by_label("sparsity")).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".field", has=page.get_by_label("sparsity")).locator(".wrong")).to_contain_text("less than 1")
    page.get_by_label("sparsity").fill("0.25")
    expect(plan).to_contain_text("1,474,560 (25.0 % of the prunable)")
    page.get_by_label("Add a measurement").select_option("size")
    page.get_by_label("labels").fill("team:web")
    plan.get_by_role("button", name="Set calibrate samples to").click()
    expect(plan.get_by_text("valid", exact=True)).to_be_visible()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("bookworm-7m: wanda, uniform, mask")

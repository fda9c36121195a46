"""The pages in every state, on reports made by hand: what they show, who they let in, how they look and read."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Route, expect
from sqlalchemy import update

from app.db import now_ms
from app.jobs import fleet, retention
from app.jobs.models import ACTIVE, Job
from app.keys import service as keys
from app.keys.models import ApiKey
from app.main import create_app
from app.services import Services
from app.sessions.models import BrowserSession
from app.settings import Settings
from tests.helpers.api import (
    FILES,
    GATED,
    REPORT,
    ROOT,
    SPEC,
    W1,
    WANDA,
    Api,
    judged,
    make_key,
    others,
    served,
    tuned,
    with_manifest,
)
from tests.helpers.browser import Tab, beyond_the_screen, chromium, findings, needs_chromium, opened, sign_in
from tests.helpers.conformity import conforming
from tests.helpers.publishing import deliverer, secret, set_up
from workers.engine.report import LayerReport, TunePoint

__all__ = ["chromium"]
pytestmark = [needs_chromium, pytest.mark.xdist_group("web")]
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def running(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Services]]:
    """URL and inside of one API for all tests. On SQLite alone: tests/e2e/test_web.py has both databases."""
    home = tmp_path_factory.mktemp("web")
    settings = Settings(
        home=home,
        database_url=f"sqlite:///{shutil.copyfile(migrated_sqlite, home / 'espalier.db')}",
        secret_key="for tests only",
        models_dir=ROOT / "examples/models",
        data_dir=ROOT / "examples/data",
        log_level="error",
    )
    app = create_app(settings)
    with served(app) as url:
        services: Services = app.state.services
        with services.database.write() as session:
            fleet.make_known(session, W1, ttl_s=3000)
        yield url, services


@pytest.fixture
def web(running: tuple[str, Services]) -> Iterator[Api]:
    """The API, a key of a new tenant, and hands to play the worker."""
    url, services = running
    text, key_id, tenant_id = make_key(services, f"ours-{uuid.uuid4().hex[:8]}")
    with httpx2.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {text}"},
        timeout=60,
        trust_env=False,
        event_hooks={"response": [conforming]},
    ) as client:
        yield Api(client, services, text, key_id, tenant_id)  # type: ignore[arg-type]
    with services.database.write() as session:  # the next test's worker finds its own jobs only
        session.execute(update(Job).where(Job.status.in_(ACTIVE)).values(status="cancelled", lease_expires_at=None))


@pytest.fixture(scope="module")
def tab(chromium: Browser, running: tuple[str, Services]) -> Iterator[Tab]:
    """One for all tests: a process of the browser takes a second to start."""
    with opened(chromium, running[0]) as tab:
        yield tab


@pytest.fixture
def page(tab: Tab, web: Api) -> Iterator[Page]:
    """The tab, signed in with `web`'s key."""
    tab.page.emulate_media(color_scheme="light")
    tab.page.set_viewport_size({"width": 1280, "height": 800})
    sign_in(tab.page, web.key)
    yield tab.page
    tab.page.goto("about:blank")
    tab.check()


def name_of(web: Api) -> str:
    return str(web.client.get("/v1/me").json()["tenant"]["name"])


def all_states(web: Api) -> dict[str, str]:
    """A job in each state; name -> id."""
    made: dict[str, dict[str, Any]] = {"succeeded": web.submit(GATED, labels={"team": HOSTILE})}
    web.succeed(web.claim(), judged("pass"))
    made["failed"] = web.submit(GATED)
    held = web.claim()
    web.log(held, 1, f"loading\rloaded\n{HOSTILE}\n")
    web.fail(held)
    made["cancelled"] = web.submit(SPEC)
    web.post(made["cancelled"], "cancel")
    made["running"] = web.submit(SPEC)
    held = web.claim()
    losses = [
        ("progress", {"stage": "prune", "done": n, "total": 8, "unit": "step", "loss": 3.5 / n}) for n in (1, 2, 3)
    ]
    web.record(held, ("stage", {"stage": "prune"}), *losses, ("log", {"message": HOSTILE}))
    made["queued"] = web.submit({**SPEC, "compute": {"device": "cuda"}})
    return {name: job["id"] for name, job in made.items()}


def without_reading(route: Route) -> None:
    if route.request.method == "GET":
        route.abort()
    else:
        route.continue_()


class TestTheSession:
    def test_a_wrong_key_is_refused_in_words(self, page: Page) -> None:
        page.context.clear_cookies()
        page.reload()
        page.get_by_label("API key").fill("espk_nothing")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("mistyped or cut off")
        assert page.context.cookies() == []

    def test_no_script_can_read_it_and_signing_out_ends_it(self, page: Page, web: Api) -> None:
        [cookie] = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["secure"]) == (True, "Strict", False)
        assert page.evaluate("document.cookie") == ""
        assert page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})") == "{}"
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("API key")).to_be_visible()
        assert page.context.cookies() == []
        copied = {"Cookie": f"{cookie['name']}={cookie['value']}"}
        answer = httpx2.get(f"{web.client.base_url}/v1/jobs", headers=copied, trust_env=False, timeout=60)
        assert answer.json()["code"] == "session_ended"
        page.reload()
        expect(page.get_by_label("API key")).to_be_visible()

    def test_its_end_is_seen_at_once_and_the_page_is_found_again(self, page: Page, web: Api) -> None:
        job = web.submit()
        page.goto(f"/#/jobs/{job['id']}")
        expect(page.locator(".head .badge")).to_have_text("queued")
        page.route("**/v1/**", without_reading)  # which would see it too, before the dialog is answered
        with web.database.write() as session:
            session.execute(update(BrowserSession).values(expires_at=now_ms()))
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
        expect(page.get_by_label("API key")).to_be_visible()
        page.unroute("**/v1/**", without_reading)
        assert web.get(job).json()["status"] == "queued"
        page.get_by_label("API key").fill(web.key)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator(".head .badge")).to_have_text("queued")

    def test_a_revoked_key_takes_it_along(self, page: Page, web: Api) -> None:
        expect(page.get_by_text("There are no jobs yet.")).to_be_visible()
        with web.database.write() as session:
            keys.revoke_key(session, web.key_id)
        expect(page.get_by_label("API key")).to_be_visible()  # the list is read every few seconds

    def test_shows_only_what_the_key_may(self, page: Page, web: Api) -> None:
        job = web.succeeded()
        reader, key_id, _ = make_key(web.services, name_of(web), scopes=("jobs:read",))
        with web.database.write() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key_id).values(name="looker"))
        sign_in(page, reader)
        expect(page.get_by_text("· looker")).to_be_visible()
        page.goto(f"/#/jobs/{job['id']}")
        expect(page.get_by_text("it lacks the scope artifacts:read")).to_be_visible()
        assert page.get_by_role("button", name=re.compile("Delete|Cancel|Retry|label")).count() == 0

    def test_another_tenants_job_is_no_job(self, page: Page, web: Api) -> None:
        job = web.succeeded()
        theirs, _, _ = make_key(web.services, "others")
        sign_in(page, theirs)
        expect(page.get_by_text("There are no jobs yet.")).to_be_visible()
        page.goto(f"/#/jobs/{job['id']}")
        expect(page.get_by_role("heading", level=1)).to_have_text("There is no such job")


def test_the_list_is_filtered_and_paged(page: Page, web: Api) -> None:
    states = all_states(web)
    for number in range(26):
        web.submit(labels={"number": str(number)})
    rows = page.locator("tbody tr")
    expect(page.get_by_text(f"25 shown of {len(states) + 26}")).to_be_visible()
    expect(rows).to_have_count(25)
    page.get_by_role("link", name="Next page").click()
    expect(rows).to_have_count(6)
    page.get_by_role("link", name="First page").click()
    expect(rows).to_have_count(25)
    page.get_by_label("Status").select_option("failed")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("runner_died")
    page.get_by_label("Status").select_option("any")
    page.get_by_label("Label").fill("number:7")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(1)
    assert "label=number" in page.url
    page.get_by_label("Label").fill("not a label")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("?label")
    page.get_by_role("button", name="Clear").click()
    expect(rows).to_have_count(25)
    page.get_by_label("Verdict").select_option("pass")
    expect(rows).to_have_count(1)
    rows.get_by_role("link").first.click()
    expect(page.locator("main")).to_contain_text(states["succeeded"])


def test_texts_of_others_are_shown_as_text(page: Page, web: Api) -> None:
    """Labels, logs and messages of events may hold anything."""
    states = all_states(web)
    page.goto(f"/#/jobs/{states['succeeded']}")
    expect(page.locator(".tag")).to_contain_text(HOSTILE)
    page.goto(f"/#/jobs/{states['failed']}")
    expect(page.get_by_role("log")).to_have_text(f"loaded\n{HOSTILE}\n")
    page.goto(f"/#/jobs/{states['running']}")
    expect(page.get_by_role("cell", name=HOSTILE)).to_be_visible()
    assert page.locator("main img").count() == 0


def test_a_hidden_page_holds_no_connection_and_misses_nothing(page: Page, web: Api) -> None:
    job = web.submit()
    held = web.claim()
    page.goto(f"/#/jobs/{job['id']}")
    expect(page.get_by_role("cell", name="running")).to_be_visible()
    turn = """(hidden) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(turn, True)
    web.record(held, ("log", {"message": "while nobody looked"}))
    page.wait_for_timeout(1000)
    assert page.get_by_role("cell", name="while nobody looked").count() == 0
    page.evaluate(turn, False)
    expect(page.get_by_role("cell", name="while nobody looked")).to_have_count(1)
    expect(page.get_by_role("cell", name="running")).to_have_count(1)  # nothing is told twice
    web.succeed(held)
    expect(page.get_by_role("heading", name="Result")).to_be_visible()


def test_labels_are_changed_and_a_mistake_is_explained(page: Page, web: Api) -> None:
    job = web.submit(labels={"team": "search"})
    page.goto(f"/#/jobs/{job['id']}")
    page.get_by_role("button", name="Remove the label team").click()
    expect(page.locator(".tag")).to_have_count(0)
    page.get_by_role("button", name="add a label").click()
    page.get_by_label("New label").fill("Wrong Key:1")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("/labels")
    page.get_by_label("New label").fill("stage:done: twice")
    page.keyboard.press("Enter")
    expect(page.locator(".tag")).to_contain_text("stage: done: twice")
    assert web.get(job).json()["labels"] == {"stage": "done: twice"}


def test_files_are_pinned_and_it_is_said_when_they_have_gone(page: Page, web: Api) -> None:
    job = web.succeeded(others(), retention={"keep": "report", "days": 2})
    page.goto(f"/#/jobs/{job['id']}")
    expect(page.get_by_text("until ", exact=False).first).to_be_visible()
    page.get_by_role("button", name="pin", exact=True).click()
    expect(page.get_by_text("no policy removes them")).to_be_visible()
    assert web.get(job).json()["retention"]["pinned"] is True
    page.get_by_role("button", name="unpin").click()
    expect(page.get_by_role("button", name="pin", exact=True)).to_be_visible()
    with web.database.write() as session:
        session.execute(update(Job).where(Job.id == job["id"]).values(files_due_at=1, finished_at=1))
        assert retention.remove_next(session) == job["id"]
    page.reload()
    expect(page.get_by_text("the report stays")).to_be_visible()
    expect(page.get_by_role("link", name="report.html")).to_be_visible()
    expect(page.get_by_role("link", name="model.safetensors")).to_have_count(0)


def test_what_stays_of_a_result_is_asked_for_and_set_for_a_tenant(page: Page, web: Api) -> None:
    page.goto("/#/new")
    page.get_by_label("what stays of the result").select_option("report")
    page.get_by_label("from so many days after its end").fill("x")
    expect(page.get_by_text("should be a valid integer", exact=False).first).to_be_visible()
    page.get_by_label("from so many days after its end").fill("9")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("bookworm-7m")
    made = web.client.get(f"/v1/jobs/{page.url.rpartition('/')[2]}").json()
    assert (made["retention"]["keep"], made["retention"]["days"]) == ("report", 9)
    name = name_of(web)
    page.get_by_role("link", name="Tenants and keys").click()
    page.get_by_role("button", name=f"Change {name}").click()
    setting = page.get_by_role("form", name=f"Shares and quotas of {name}")
    setting.get_by_label("Stays of results").select_option("report")
    setting.get_by_label("Days until only the report stays").fill("3")
    setting.get_by_role("button", name="Set").click()
    expect(setting).to_have_count(0)
    assert web.client.get("/v1/me").json()["retention"] == {"keep": "report", "days": 3}
    page.get_by_role("link", name=f"{name} · test").click()
    expect(page.get_by_text("everything for 3 days")).to_be_visible()


def test_every_page_reads_well_and_fits_on_a_telephone(page: Page, web: Api) -> None:
    sweep = a_sweep(web)
    states = all_states(web)
    compared = ",".join(child["job_id"] for child in sweep["children"])
    paths = ["jobs", "nowhere", "new", "sweeps", f"sweeps/{sweep['id']}", f"compare?jobs={compared}", "workers"]
    paths += [f"jobs/{job_id}" for job_id in states.values()]
    for path in paths:
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 390, "height": 844})
        page.goto(f"/#/{path}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_text("Loading")).to_have_count(0)
        assert beyond_the_screen(page) <= 0, path
        assert findings(page) == [], path
        page.set_viewport_size({"width": 1600, "height": 900})
        assert beyond_the_screen(page) <= 0, path
        page.emulate_media(color_scheme="dark")
        assert findings(page, only=["color-contrast"]) == [], path
    page.context.clear_cookies()
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        assert findings(page) == []


CHOOSE_EACH = """async (stages) => {
  const missing = [];
  for (const { stage, methods } of stages) {
    const choice = document.getElementById(`stage-${stage}`);
    for (const { name, parameters } of methods) {
      choice.value = name;
      choice.dispatchEvent(new Event("change"));
      await new Promise(requestAnimationFrame);
      const labels = [...choice.closest(".stage").querySelectorAll("label, legend")].slice(1);
      const shown = labels.map((each) => each.textContent.trim());
      for (const field of Object.keys(parameters.properties).filter((each) => each !== "method")) {
        const name_ = field.replaceAll("_", " ");
        if (!shown.some((each) => each.startsWith(name_))) missing.push(`${stage} ${name} ${field}`);
      }
    }
  }
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  return missing;
}"""


def test_the_form_has_every_parameter_of_every_method(page: Page, web: Api) -> None:
    page.goto("/#/new")
    *stages, evaluate = web.client.get("/v1/capabilities").json()["stages"]
    expect(page.get_by_label("score", exact=True)).to_be_visible()
    for method in evaluate["methods"]:
        page.get_by_label("Add a measurement").select_option(method["name"])
    page.get_by_role("button", name="Add to gates").click()
    assert page.evaluate(CHOOSE_EACH, stages) == []
    # All rules take seconds on so many fields, and have looked at a form with fewer above.
    assert findings(page, only=["label", "select-name", "aria-valid-attr-value", "duplicate-id-aria"]) == []


def test_the_form_says_that_a_text_is_too_short_and_sets_what_fits(page: Page, web: Api) -> None:
    page.goto("/#/new")
    plan = page.get_by_role("region", name="Dry run")
    page.get_by_label("score", exact=True).select_option("wanda")
    page.get_by_role("checkbox", name="calibrate").check()
    calibrate = page.get_by_role("group", name="calibrate")
    expect(calibrate.get_by_label("samples")).to_be_visible()
    expect(calibrate.get_by_label("sequence length")).to_be_visible()
    calibrate.get_by_label("dataset").fill("calibration.txt")
    expect(plan).to_contain_text("128 windows of 2,048, 262,144 tokens: the job would fail")
    expect(plan.get_by_role("status")).to_have_text("too little text")
    assert findings(page, only=["color-contrast"]) == []
    plan.get_by_role("button", name="Set calibrate samples to").click()
    expect(calibrate.get_by_label("samples")).to_have_value(re.compile(r"6\d"))
    expect(plan.get_by_text("valid", exact=True)).to_be_visible()
    expect(plan).not_to_contain_text("would fail")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("bookworm-7m: wanda")


def test_a_job_is_to_be_published(page: Page, web: Api) -> None:
    keys = {"access_key_id": secret(web), "secret_access_key": secret(web)}
    s3 = {"to": "s3", "url": "s3://a-bucket/x", "tenants": ["*"], **keys}
    hub = {"to": "hub", "token": secret(web), "repositories": ["acme/*"], "tenants": [name_of(web)]}
    set_up(web, ("models", s3), ("ours", hub), ("theirs", {**s3, "tenants": ["another"]}))
    page.goto("/#/new")
    card = page.get_by_role("region", name="Publication")
    places = card.get_by_label("Add a place")
    expect(places.locator("option")).to_have_text(["Add a place…", "models (s3)", "ours (hub)"])
    places.select_option("ours (hub)")
    expect(card.locator(".wrong")).to_have_text("this field is required")
    card.get_by_label("repository").fill("others/bookworm")
    expect(card.locator(".wrong")).to_contain_text("these credentials are for acme/*")
    card.get_by_label("repository").fill("acme/bookworm")
    expect(card.locator(".wrong")).to_have_count(0)
    places.select_option("models (s3)")
    card.get_by_role("group", name="models (s3)").get_by_label("path").fill("v3")
    assert findings(page, only=["label", "select-name", "duplicate-id-aria", "color-contrast"]) == []
    places.select_option("models (s3)")
    card.get_by_role("button", name="Do not publish to models").last.click()
    expect(page.get_by_role("region", name="Dry run").get_by_text("valid", exact=True)).to_be_visible()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("bookworm-7m")
    made = web.client.get(f"/v1/jobs/{page.url.rpartition('/')[2]}").json()
    assert [(each["credentials"], each["gates"], each["state"]) for each in made["publications"]] == [
        ("ours", "pass", "waiting"),
        ("models", "pass", "waiting"),
    ]
    writer, _, _ = make_key(web.services, name_of(web), scopes=("jobs:read", "jobs:write"))
    sign_in(page, writer)
    page.goto("/#/new")
    expect(page.get_by_role("region", name="Further")).to_be_visible()
    expect(card).to_have_count(0)


def test_a_job_is_made_from_another(page: Page, web: Api) -> None:
    spec = {**GATED, "prune": {"method": "mask", "sparsity": 0.3}, "seed": 7}
    job = web.submit(spec, labels={"team": "search"}, priority=5)
    page.goto(f"/#/jobs/{job['id']}")
    page.get_by_role("link", name="New from this").click()
    page.get_by_text("The same as JSON").click()
    text = page.get_by_label("Spec as JSON")
    expect(text).to_have_value(re.compile('"seed": 7'))
    given = json.loads(text.input_value())  # what differs from the defaults, and nothing else
    assert given == {**spec, "allocate": {"method": "uniform"}}
    page.get_by_label("sparsity").fill("0.4")
    expect(text).to_have_value(re.compile('"sparsity": 0.4'))
    text.fill(json.dumps({**given, "prune": {"method": "mask", "sparsity": 0.6}}))
    expect(page.get_by_label("sparsity")).to_have_value("0.6")
    text.fill("{")
    expect(text).to_have_attribute("aria-invalid", "true")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("bookworm-7m")
    made = web.client.get(f"/v1/jobs/{page.url.rpartition('/')[2]}").json()
    assert made["spec"] == {**job["spec"], "prune": {**job["spec"]["prune"], "sparsity": 0.6}}
    assert made["labels"] == {"team": "search"}


def a_sweep(web: Api) -> dict[str, Any]:
    """Of four children: three with results, the third beaten by the second; one failed."""
    grid = {"/score/method": ["magnitude", "wanda"], "/prune/sparsity": [0.4, 0.6]}
    spec = {**GATED, "calibrate": WANDA["calibrate"]}
    answer = web.client.post("/v1/sweeps", json={"name": HOSTILE, "spec": spec, "grid": grid})
    for number, (sparsity, perplexity) in enumerate([(0.4, 11.0), (0.6, 12.0), (0.4, 13.0)]):
        report = judged("fail" if number == 2 else "pass")
        metric = report.metrics[0].model_copy(
            update={"pruned": perplexity, "pruned_stderr": 0.25, "ratio_stderr": 0.02}
        )
        web.succeed(web.claim(), report.model_copy(update={"sparsity": sparsity, "metrics": [metric]}))
    web.fail(web.claim())
    return dict(web.client.get(f"/v1/sweeps/{answer.json()['id']}").json())


def test_a_sweep_is_a_plot_to_point_at(page: Page, web: Api) -> None:
    sweep = a_sweep(web)
    page.get_by_role("navigation").get_by_role("link", name="Sweeps").click()
    expect(page.get_by_role("cell", name="1 failed, 3 succeeded")).to_be_visible()
    page.get_by_role("link", name=HOSTILE).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    marks = page.locator("a.point")
    expect(marks).to_have_count(3)
    readout = page.locator(".readout")
    marks.nth(1).hover()
    expect(readout).to_contain_text("Number 1, on the front, gates pass · perplexity/a.txt 12 ± 0.5 · sparsity 60.0 %")
    page.keyboard.press("Tab")  # pointing does not move the focus
    marks.nth(0).focus()
    page.keyboard.press("ArrowRight")
    expect(marks.nth(2)).to_be_focused()
    expect(readout).to_contain_text("Number 2, gates fail")
    expect(readout).to_contain_text("/score/method wanda")
    assert page.locator(".mark.hollow + .struck").count() == 2  # the failed gate, and its entry in the legend
    expect(page.get_by_role("row").filter(has_text="no: gates fail")).to_have_count(1)
    expect(page.get_by_text("dense 10", exact=True)).to_be_visible()
    page.get_by_label("quality").select_option("sparsity")
    expect(page.locator("figure")).to_contain_text("sparsity, more is better")
    assert "quality=sparsity" in page.url
    page.get_by_label("Choose number 0").check()
    page.get_by_label("Choose number 1").check()
    page.get_by_role("link", name="Compare 2").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Compare 2 jobs")
    assert sweep["children"][1]["job_id"] in page.url


def test_jobs_are_compared(page: Page, web: Api) -> None:
    sweep = a_sweep(web)
    expect(page.locator("tbody tr")).to_have_count(4)
    for choice in page.get_by_role("checkbox", name=re.compile("Choose bookworm")).all():
        choice.check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Compare 4 jobs")
    measured = page.get_by_role("row", name=re.compile("perplexity.a.txt"))
    expect(measured.first).to_contain_text("1.1 ± 0.039 ×")  # 1.96 standard errors
    expect(measured.last).to_have_text(re.compile("gate on perplexity/a.txt *fail *pass *pass"))
    spec = page.locator("section", has=page.get_by_role("heading", name="Spec"))
    differing = spec.locator("tbody th").all_text_contents()
    assert differing == ["score.method", "prune.sparsity"]
    for left in (3, 2):
        page.get_by_role("button", name=re.compile("Leave out")).first.click()
        expect(page.get_by_role("heading", level=1)).to_have_text(f"Compare {left} jobs")
    page.goto(f"/#/compare?jobs={sweep['children'][0]['job_id']}")
    expect(page.get_by_text("Choose two to 8 jobs")).to_be_visible()


def test_layers_and_losses_lie_over_one_another(page: Page, web: Api) -> None:
    jobs = [web.submit(), web.submit()]
    for shift in (0.0, 0.1):
        name = "model.layers.{}.mlp.up_proj"
        layers = [
            LayerReport(
                name=name.format(n), block=n, reads="hidden", shape=(8 - n, 4), parameters=32, zeros=0,
                target_sparsity=0.5, sparsity=0.1 * n + shift,
            )
            for n in range(3)
        ]  # fmt: skip
        curve = [TunePoint(step=n, holdout_loss=3.0 - 0.1 * n - shift, train_loss=None) for n in range(4)]
        tune = tuned(curve)
        web.succeed(web.claim(), REPORT.model_copy(update={"layers": layers, "tune": tune}))
    page.goto(f"/#/compare?jobs={jobs[0]['id']},{jobs[1]['id']}")
    plots = page.get_by_role("img")
    expect(plots).to_have_count(2)
    said = "sparsity of all linear layers, block by block. A: from 0 to 0.2; B: from 0.1 to 0.3"
    expect(plots.nth(0)).to_have_attribute("aria-label", said)
    expect(plots.nth(1)).to_have_attribute(
        "aria-label", "Held-out loss while tuning. A: from 3 to 2.7; B: from 2.9 to 2.6"
    )
    page.get_by_label("What", exact=True).select_option("outputs")
    page.get_by_label("Of", exact=True).select_option("mlp.up_proj")
    expect(plots.nth(0)).to_have_attribute("aria-label", re.compile("outputs of mlp.up_proj.* A: from 8 to 6"))
    page.goto(f"/#/jobs/{jobs[0]['id']}")
    expect(plots).to_have_attribute("aria-label", re.compile("Held-out loss while tuning"))


def test_workers_are_seen_with_what_they_do(page: Page, web: Api) -> None:
    job = web.submit()
    web.claim()
    page.get_by_role("link", name="Workers").click()
    worker = page.get_by_role("region", name="Worker w1")
    expect(worker.get_by_text("alive")).to_be_visible()
    worker.get_by_role("link", name="a job of yours").click()
    expect(page.locator("main")).to_contain_text(job["id"])


def test_an_operator_makes_a_key_and_revokes_it(page: Page, web: Api) -> None:
    page.get_by_role("link", name="Tenants and keys").click()
    making = page.get_by_role("form", name="New key")
    making.get_by_label("Tenant").fill(f"new-{uuid.uuid4().hex[:6]}")
    making.get_by_label("Name").fill("laptop")
    making.get_by_label("Ends after, days").fill("0")
    making.get_by_role("button", name="Make a key").click()
    expect(page.get_by_role("alert")).to_contain_text("/expires_days")
    making.get_by_label("Ends after, days").fill("7")
    making.get_by_role("button", name="Make a key").click()
    text = page.get_by_role("status").locator("pre").text_content() or ""
    theirs = {"Authorization": f"Bearer {text}"}
    me = web.client.get("/v1/me", headers=theirs).json()
    assert (me["key"]["name"], "admin" in me["key"]["scopes"]) == ("laptop", False)
    row = page.get_by_role("row").filter(has_text=me["tenant"]["name"]).filter(has_text="laptop")
    row.get_by_role("button", name="Revoke").click()
    row.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_have_count(0)  # revoked ones are not shown
    assert web.client.get("/v1/me", headers=theirs).json()["code"] == "revoked_key"
    page.get_by_label("also revoked and expired ones").check()
    expect(row).to_contain_text("revoked")


def test_an_operator_sets_quotas_and_their_tenant_sees_them(page: Page, web: Api) -> None:
    name = name_of(web)
    page.get_by_role("link", name="Tenants and keys").click()
    page.get_by_role("button", name=f"Change {name}").click()
    setting = page.get_by_role("form", name=f"Shares and quotas of {name}")
    setting.get_by_label("Weight").fill("0")
    setting.get_by_role("button", name="Set").click()
    expect(page.get_by_role("alert")).to_contain_text("/weight")
    setting.get_by_label("Weight").fill("3")
    setting.get_by_label("Jobs queued or paused").fill("2")
    setting.get_by_role("button", name="Set").click()
    expect(setting).to_have_count(0)
    expect(page.get_by_role("row").filter(has_text=name).first).to_contain_text("0 of 2")
    web.submit()
    page.get_by_role("link", name=f"{name} · test").click()
    expect(page.get_by_role("progressbar", name="Jobs queued or paused, used")).to_have_js_property("value", 1)
    web.submit()
    assert web.client.post("/v1/jobs", json={"spec": SPEC}).json()["code"] == "quota_reached"


def test_who_is_no_operator_is_offered_nothing_of_it(page: Page, web: Api) -> None:
    reader, _, _ = make_key(web.services, name_of(web), scopes=("jobs:read",))
    sign_in(page, reader)
    assert page.get_by_role("navigation").get_by_role("link").all_text_contents() == [
        "Jobs",
        "New job",
        "Sweeps",
        "Workers",
    ]
    page.goto("/#/tenants")
    expect(page.get_by_role("alert")).to_contain_text("scope `admin`")


def test_works_from_the_keyboard(page: Page, web: Api) -> None:
    job = web.submit()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.get_by_role("link", name="bookworm-7m").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.get_by_role("button", name="Cancel").focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("dialog").get_by_role("button", name="Let it run")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".head .badge")).to_have_text("cancelled")
    assert web.get(job).json()["status"] == "cancelled"


def test_a_result_is_published_and_a_failure_is_tried_again(page: Page, web: Api, s3_endpoint: str) -> None:
    bucket = f"p{uuid.uuid4().hex[:12]}"
    keys = {"access_key_id": secret(web), "secret_access_key": secret(web)}
    place = {"to": "s3", "url": f"s3://{bucket}/x", "endpoint": s3_endpoint, "tenants": ["*"], **keys}
    set_up(web, ("models", place))
    job = web.succeeded(with_manifest(FILES))
    page.goto(f"/#/jobs/{job['id']}")
    card = page.locator("section").filter(has=page.get_by_role("heading", name="Publications"))
    card.get_by_role("button", name="Publish").click()
    card.get_by_label("path").fill("../elsewhere")
    card.get_by_role("button", name="Publish").click()
    expect(card.get_by_role("alert")).to_contain_text("/path")
    expect(card.get_by_label("path")).to_have_attribute("aria-invalid", "true")
    card.get_by_label("path").fill("bookworm/v3")
    card.get_by_role("button", name="Publish").click()
    expect(card.locator(".badge")).to_have_text("pending")
    work = deliverer(web)
    assert work.step()
    expect(card.locator(".badge")).to_have_text("failed")
    expect(card).to_contain_text("destination_missing")
    httpx2.put(f"{s3_endpoint}/{bucket}", trust_env=False, timeout=60).raise_for_status()
    card.get_by_role("button", name="Try again").click()
    expect(card.locator(".badge")).to_have_text("pending")
    assert work.step()
    expect(card.locator(".badge")).to_have_text("published")
    expect(card).to_contain_text(f"s3://{bucket}/x/bookworm/v3")
    for width, scheme in ((390, "light"), (1600, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert beyond_the_screen(page) <= 0
        assert findings(page) == []
    reader, _, _ = make_key(web.services, name_of(web), scopes=("jobs:read",))
    sign_in(page, reader)
    page.goto(f"/#/jobs/{job['id']}")
    expect(card.locator(".badge")).to_have_text("published")
    expect(card.get_by_role("button", name=re.compile("Publish|again"))).to_have_count(0)

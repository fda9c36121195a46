"""Publishing to a hub: the real client against a hub of our own."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from app.signing.check import check
from app.signing.keys import KeyRing
from tests.helpers.api import FILES, Api, with_manifest
from tests.helpers.publishing import ON_SQLITE, all_due, deliverer, of, publish, set_up
from tests.helpers.writable_hub import TOKEN, WritableHub, serving

pytestmark = [
    ON_SQLITE,
    pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning"),  # of the client's own uploads
]
RESULT = with_manifest({**FILES, "small.safetensors": b"few", "deep/er/config.json": b"{}"})
OTHER = with_manifest({"model.safetensors": b"other weights", "stale.safetensors": b"more of them"})


@pytest.fixture
def hub(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """One that the tenant `ours` may publish to, below `acme`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    KeyRing(api.services.signing.path, make=True)
    with serving() as running:
        path = api.services.settings.credentials.parent / "hub-token"
        place = {"to": "hub", "endpoint": running.endpoint, "token": {"file": str(path)}, "repositories": ["acme/*"]}
        set_up(api, ("models", place))
        path.write_text(TOKEN)
        yield running


def asked(repository: str = "acme/half", **fields: Any) -> dict[str, Any]:
    return {"to": "hub", "credentials": "models", "repository": repository, **fields}


def test_one_commit_with_all_of_the_result(api: Api, hub: WritableHub, tmp_path: Path) -> None:
    job = api.succeeded(RESULT, publish=[asked()])
    assert deliverer(api).step()
    (found,) = of(api, job)
    assert (found["state"], found["error"]) == ("published", None)
    assert found["result"] == {
        "location": f"{hub.endpoint}/acme/half",
        "revision": hub.repositories["acme/half"].branches["main"],
        "changed": True,
    }
    assert hub.repositories["acme/half"].private
    assert hub.repositories["acme/half"].messages == ["initial commit", f"espalier {job['id']}"]
    for path, content in hub.files("acme/half").items():
        (tmp_path / "there" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / path).write_bytes(content)
    verified = check(tmp_path / "there", api.services.signing.published(), job_id=job["id"], ignored=[".gitattributes"])
    assert (verified.findings, verified.files) == ([], len(RESULT) - 1)


def test_the_same_again_makes_no_commit_and_another_result_replaces_it(api: Api, hub: WritableHub) -> None:
    api.succeeded(OTHER, publish=[asked()])
    job = api.succeeded(RESULT, publish=[asked()])
    work = deliverer(api)
    while work.step():
        pass
    assert hub.files("acme/half").keys() == RESULT.keys() | {"manifest.jws", ".gitattributes"}
    before, sent = hub.repositories["acme/half"].branches["main"], len(hub.sent)
    publish(api, job, asked())
    work.step()
    again = of(api, job)[1]
    assert again["result"] == {"location": f"{hub.endpoint}/acme/half", "revision": before, "changed": False}
    assert len(hub.sent) == sent


def test_a_branch_of_its_own(api: Api, hub: WritableHub) -> None:
    job = api.succeeded(RESULT, publish=[asked(revision="candidate", private=False)])
    deliverer(api).step()
    assert of(api, job)[0]["state"] == "published"
    assert hub.files("acme/half").keys() == {".gitattributes"}
    assert "manifest.jws" in hub.files("acme/half", "candidate")
    assert not hub.repositories["acme/half"].private


def test_broken_off_it_sends_only_the_rest(api: Api, hub: WritableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is cut at the second large file; the first is there, and no commit."""
    job = api.succeeded(RESULT, publish=[asked()])
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the client's own tries
    few = hashlib.sha256(b"few").hexdigest()

    def broken() -> None:
        if hub.large:
            hub.broken = True

    hub.large[few] = b"few"
    hub.on_large = broken
    work = deliverer(api)
    assert work.step()
    (found,) = of(api, job)
    assert (found["state"], found["error"]["code"]) == ("pending", "destination_unreachable")
    assert hub.repositories["acme/half"].messages == ["initial commit"]
    hub.broken, hub.on_large = False, lambda: None
    all_due(api)
    assert work.step()
    assert of(api, job)[0]["state"] == "published"
    assert few not in hub.sent


def test_another_commit_in_between_is_not_written_over(api: Api, hub: WritableHub) -> None:
    job = api.succeeded(RESULT, publish=[asked()])

    def theirs() -> None:
        hub.on_large = lambda: None
        hub.commit("acme/half", "main", {**hub.files("acme/half"), "notes.md": b"by hand"}, "by hand")

    hub.on_large = theirs
    work = deliverer(api)
    work.step()
    assert of(api, job)[0]["error"]["code"] == "destination_changed"
    all_due(api)
    work.step()
    assert of(api, job)[0]["state"] == "published"
    assert hub.files("acme/half")["notes.md"] == b"by hand"


def test_one_that_was_stopped_past_its_lease_commits_nothing(api: Api, hub: WritableHub) -> None:
    job = api.succeeded(RESULT, publish=[asked()])

    def stopped() -> None:
        hub.on_large = lambda: None
        before = hub.repositories["acme/half"].branches["main"]
        all_due(api)
        assert deliverer(api).step()
        hub.repositories["acme/half"].branches["main"] = before  # as if the hub did not look at the parent

    hub.on_large = stopped
    assert deliverer(api).step()
    (found,) = of(api, job)
    assert (found["state"], found["tries"], found["error"]) == ("published", 2, None)
    assert hub.repositories["acme/half"].messages == ["initial commit", f"espalier {job['id']}"]


def test_refusals_say_what_to_do_and_no_secret(api: Api, hub: WritableHub, capfd: pytest.CaptureFixture[str]) -> None:
    assert publish(api, api.succeeded(RESULT), asked("others/half")).json()["errors"][0]["code"] == "not_allowed"
    token = api.services.settings.credentials.parent / "hub-token"
    text = api.services.settings.credentials.read_text()
    api.services.settings.credentials.write_text(text.replace("acme/*", "*"))
    job = api.succeeded(RESULT, publish=[asked("forbidden/half")])
    deliverer(api).step()
    (forbidden,) = of(api, job)
    assert (forbidden["state"], forbidden["error"]["code"]) == ("failed", "publish_refused")
    assert "You don't have the rights to create a model" in forbidden["error"]["message"]
    token.write_text("hf_wrong-9f8e7d")
    job = api.succeeded(RESULT, publish=[asked()])
    deliverer(api).step()
    (refused,) = of(api, job)
    assert (refused["state"], refused["error"]["code"]) == ("failed", "publish_refused")
    said = json.dumps([forbidden, refused]) + "".join(capfd.readouterr())
    assert TOKEN not in said
    assert "hf_wrong-9f8e7d" not in said
    assert "signature=abc" not in said


@pytest.mark.parametrize("gone", [False, True])
def test_a_result_that_was_damaged_is_not_published(api: Api, hub: WritableHub, gone: bool) -> None:
    job = api.succeeded(RESULT, publish=[asked()])
    (weights,) = Path(api.services.settings.home / "artifacts").rglob("model.safetensors")
    weights.unlink() if gone else weights.write_bytes(b"\1" + weights.read_bytes()[1:])
    deliverer(api).step()
    (found,) = of(api, job)
    assert (found["state"], found["error"]["code"]) == ("failed", "artifact_lost")
    assert hub.repositories["acme/half"].messages == ["initial commit"]
    assert hub.sent == []


def test_names_of_repositories(api: Api, hub: WritableHub) -> None:
    job = api.succeeded(RESULT)
    for name in ("half", "acme/", "/half", "acme/half/x", "acme/../x", "acme/ha lf", "acme/half\n", "a" * 97):
        assert publish(api, job, asked(name)).status_code == 422, name
    for revision in ("", "a/b", "..", "-x", "refs/heads/main"):
        assert publish(api, job, asked(revision=revision)).status_code == 422, revision

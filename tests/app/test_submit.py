"""POST /v1/jobs: the job, the dry run, the check at the door, the Idempotency-Key."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import httpx2
import orjson
import pytest
from sqlalchemy import func, select, update

from app.db import now_ms
from app.jobs.models import Event, IdempotencyKey, Job, Outbox
from app.jobs.schemas import JobRead
from app.settings import Settings
from tests.helpers.api import SPEC, WANDA, Api, pointers
from workers.engine.report import Plan
from workers.engine.spec import CompressionSpec


def jobs_in(api: Api) -> int:
    with api.database.read() as session:
        return session.execute(select(func.count()).select_from(Job)).scalar_one()


class TestCreate:
    def test_answers_the_job_and_where_it_lives(self, api: Api) -> None:
        response = api.client.post("/v1/jobs", json={"spec": WANDA, "labels": {"team": "a"}, "priority": 7})
        assert response.status_code == 202
        job = response.json()
        assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
        assert int(response.headers["Retry-After"]) >= 1
        assert JobRead.model_validate(job)
        assert (job["status"], job["queue"], job["attempt"]) == ("queued", {"position": 1, "waiting_for": None}, 0)
        assert (job["labels"], job["priority"]) == ({"team": "a"}, 7)
        assert job["spec"] == CompressionSpec.model_validate(WANDA).model_dump(mode="json")
        assert job["spec_digest"] == CompressionSpec.model_validate(WANDA).digest()
        assert api.client.get(response.headers["Location"]).content == response.content

    def test_defaults_come_from_the_settings(self, api: Api, settings: Settings) -> None:
        job = api.submit()
        assert (job["max_attempts"], job["deadline_s"]) == (settings.max_attempts, settings.deadline_s)

    def test_takes_less_than_the_service_allows(self, api: Api) -> None:
        job = api.submit(max_attempts=1, deadline_s=5)
        assert (job["max_attempts"], job["attempts_left"], job["deadline_s"]) == (1, 1, 5)

    def test_more_than_the_service_allows_is_refused(self, api: Api) -> None:
        response = api.client.post("/v1/jobs", json={"spec": SPEC, "max_attempts": 10, "deadline_s": 600_000})
        assert response.status_code == 422
        assert pointers(response.json()) == ["/max_attempts", "/deadline_s"]
        assert jobs_in(api) == 0

    def test_writes_job_event_and_message_together(self, api: Api) -> None:
        api.services.relay.stop()
        job = api.submit()
        with api.database.read() as session:
            events = session.scalars(select(Event).where(Event.job_id == job["id"])).all()
            pending = session.scalars(select(Outbox.job_id)).all()
        assert [event.type for event in events] == ["queued"]
        assert pending == [job["id"]]

    def test_the_request_id_is_kept_with_the_job(self, api: Api) -> None:
        api.client.post("/v1/jobs", json={"spec": SPEC}, headers={"X-Request-ID": "from-the-pipeline/17"})
        with api.database.read() as session:
            assert session.scalars(select(Job.request_id)).one() == "from-the-pipeline/17"


class TestDryRun:
    def test_answers_the_plan_and_makes_nothing(self, api: Api) -> None:
        response = api.client.post("/v1/jobs?dry_run=true", json={"spec": WANDA})
        assert response.status_code == 200
        plan = Plan.model_validate(response.json())
        assert (plan.blocks, plan.parameters, plan.prunable_parameters) == (8, 6_951_168, 5_898_240)
        assert plan.zeros_after == pytest.approx(0.5 * plan.prunable_parameters, rel=1e-3)
        assert len(plan.layers) == 8 * 7
        assert plan.peak_memory_bytes > plan.bytes_before
        assert jobs_in(api) == 0

    @pytest.mark.parametrize(
        ("prune", "score", "shape"),
        [
            # One of four key/value heads of 32 with its two query heads, and the channels that make up a quarter.
            ({"method": "structured", "sparsity": 0.25}, "taylor", "narrower layers"),
            ({"method": "depth", "layers": 2}, "block_influence", "fewer layers"),
        ],
    )
    def test_of_a_smaller_structure(self, prune: Any, score: str, shape: str, api: Api) -> None:
        spec = {**WANDA, "prune": prune, "score": {"method": score}}
        response = api.client.post("/v1/jobs?dry_run=true", json={"spec": spec})
        assert response.status_code == 200, response.text
        plan = Plan.model_validate(response.json())
        assert plan.parameters_after is not None
        assert plan.bytes_after == 2 * plan.parameters_after
        assert plan.parameters - plan.parameters_after == pytest.approx(0.25 * plan.prunable_parameters, rel=5e-3)
        assert plan.zeros_after == 0
        assert all(shape in runtime.note and runtime.loads for runtime in plan.runtimes)

    @pytest.mark.parametrize(
        ("changes", "pointer", "words"),
        [
            ({"score": {"method": "wanda"}, "prune": {"method": "depth", "layers": 2}}, "/score", "would fit"),
            ({"allocate": {"method": "ranking"}}, "/allocate", "use prune `structured`"),
            ({"prune": {"method": "structured", "sparsity": 0.98}}, "/prune/units", "one unit of each kind stays"),
            ({"prune": {"method": "structured", "sparsity": 1.5}}, "/prune/sparsity", "less than 1"),
            (
                {"score": {"method": "random"}, "prune": {"method": "shape", "hidden": 512, "layers": 4}},
                "/prune/hidden",
                "give at most 256",
            ),
            (
                {"score": {"method": "layer_taylor"}, "prune": {"method": "depth", "layers": 7}},
                "/prune",
                "7 of 8 blocks are to go, and 6 must stay",
            ),
        ],
    )
    def test_says_what_a_structure_cannot_be(self, changes: Any, pointer: str, words: str, api: Api) -> None:
        response = api.client.post("/v1/jobs?dry_run=true", json={"spec": {**WANDA, **changes}})
        assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
        assert pointers(response.json()) == [f"/spec{pointer}"]
        assert words in response.text

    @pytest.mark.parametrize(
        ("changes", "pointer", "words"),
        [
            ({"dataset": "calibration.txt"}, "/train/domains", "is one text, without rows of a domain"),
            ({"column": "genre"}, "/train/domains/column", "its columns are book, text"),
            ({"shares": {"Emma": 1, "The Warden": 1}}, "/train/domains/shares", "no row has 'Emma'"),
            ({"method": "sheared"}, "/train", "would fit"),
            ({"batch": 3}, "/train/batch", "take a multiple of 2"),
            ({"distill": {"temperature": 1e-30}}, "/train/distill/temperature", "0.01"),
        ],
        ids=["one text", "another column", "an unknown domain", "other units", "windows for devices", "temperature"],
    )
    def test_names_the_field_of_a_training_that_is_wrong(
        self, changes: dict[str, Any], pointer: str, words: str, api: Api
    ) -> None:
        domains = {"column": "book", "shares": {"The Warden": 1, "Great Expectations": 1}}
        domains |= {name: changes[name] for name in ("column", "shares") if name in changes}
        others = {name: value for name, value in changes.items() if name not in domains}
        train = {"method": "gradual", "dataset": "heldout.jsonl", "domains": domains, "steps": 2, "batch": 2, **others}
        spec = {
            "model": SPEC["model"],
            "prune": SPEC["prune"],
            "train": train,
            "compute": {"devices": 2 if pointer == "/train/batch" else 1},
        }
        response = api.client.post("/v1/jobs?dry_run=true", json={"spec": spec})
        assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
        assert pointers(response.json()) == [f"/spec{pointer}"]
        assert words in response.text

    def test_says_what_is_impossible(self, api: Api) -> None:
        spec = {**SPEC, "prune": {"method": "mask", "pattern": "5:7"}}
        response = api.client.post("/v1/jobs?dry_run=true", json={"spec": spec})
        assert (response.status_code, response.json()["code"]) == (422, "invalid_spec")
        assert pointers(response.json()) == ["/spec/prune/pattern"]


class TestTheDoor:
    def test_what_the_files_show_to_be_impossible_makes_no_job(self, api: Api) -> None:
        response = api.client.post("/v1/jobs", json={"spec": {**SPEC, "model": {"id": "no-such-model"}}})
        assert (response.status_code, response.json()["code"]) == (422, "model_not_found")
        assert pointers(response.json()) == ["/spec/model/id"]
        assert jobs_in(api) == 0

    def test_asks_no_hub(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kw: pytest.fail("the network was asked"))
        api.submit({**SPEC, "model": {"id": "owner/name"}})
        api.submit({**WANDA, "calibrate": {"dataset": "owner/name"}})
        api.submit({**SPEC, "tune": {"method": "lora", "dataset": "owner/name"}})
        api.submit({**SPEC, "evaluate": [{"method": "perplexity", "dataset": "owner/name", "sequence_length": 64}]})

    def test_without_the_workers_folders_it_stands_open(self, api: Api, settings: Settings) -> None:
        object.__setattr__(api.services, "settings", settings.model_copy(update={"models_dir": settings.home / "none"}))
        api.submit({**SPEC, "model": {"id": "known-to-workers"}})


class TestIdempotencyKey:
    def submit(self, client: Any, key: str, **body: Any) -> httpx2.Response:
        return client.post("/v1/jobs", json={"spec": SPEC, **body}, headers={"Idempotency-Key": key})

    def test_a_repetition_gets_the_first_answer(self, api: Api) -> None:
        first = self.submit(api.client, '"8e03978e-40d5-43dd-bc93-6894a57f9324"')
        api.post(first.json(), "cancel")
        again = self.submit(api.client, '"8e03978e-40d5-43dd-bc93-6894a57f9324"')
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert again.headers["Location"] == first.headers["Location"]
        assert "Idempotency-Replayed" not in first.headers
        assert again.headers["Idempotency-Replayed"] == "true"
        assert jobs_in(api) == 1

    def test_quotes_are_not_part_of_the_key(self, api: Api) -> None:
        first, again = self.submit(api.client, '"k"'), self.submit(api.client, "k")
        assert again.json()["id"] == first.json()["id"]

    def test_another_body_is_refused(self, api: Api) -> None:
        self.submit(api.client, "k")
        other = self.submit(api.client, "k", priority=1)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
        assert jobs_in(api) == 1

    def test_a_body_is_what_was_sent(self, api: Api) -> None:
        """Without defaults: a repetition while the service is upgraded to one that has more fields is no other body."""
        self.submit(api.client, "k", labels={"b": "2", "a": "1"})
        sweep = {"spec": SPEC, "grid": {"/prune/sparsity": [0.5, 0.6]}}
        assert api.client.post("/v1/sweeps", json=sweep, headers={"Idempotency-Key": "k"}).status_code == 202
        with api.database.read() as session:
            found = set(session.scalars(select(IdempotencyKey.fingerprint)))
        bodies = [{"labels": {"a": "1", "b": "2"}, "spec": SPEC}, sweep]
        assert found == {sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest() for body in bodies}

    def test_keys_are_the_tenants_own(self, api: Api, foreign: httpx2.Headers) -> None:
        mine = self.submit(api.client, "k").json()
        body = {"spec": SPEC}
        theirs = api.client.post("/v1/jobs", json=body, headers={**foreign, "Idempotency-Key": "k"})
        assert theirs.status_code == 202
        assert theirs.json()["id"] != mine["id"]

    def test_a_refused_request_does_not_use_the_key_up(self, api: Api) -> None:
        bad = {"spec": {**SPEC, "model": {"id": "no-such-model"}}}
        assert api.client.post("/v1/jobs", json=bad, headers={"Idempotency-Key": "k"}).status_code == 422
        assert self.submit(api.client, "k").status_code == 202

    def test_after_its_time_the_key_is_new(self, api: Api) -> None:
        first = self.submit(api.client, "k").json()
        with api.database.write() as session:
            session.execute(update(IdempotencyKey).values(expires_at=now_ms() - 1))
        assert self.submit(api.client, "k").json()["id"] != first["id"]

    def test_of_requests_at_once_one_makes_the_job(self, server: httpx2.Client) -> None:
        start = threading.Barrier(8)

        def one(_: int) -> httpx2.Response:
            start.wait()
            return self.submit(server, "k")

        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(one, range(8)))
        assert {response.status_code for response in responses} == {202}
        assert len({response.content for response in responses}) == 1
        assert sum("Idempotency-Replayed" not in response.headers for response in responses) == 1
        assert len(server.get("/v1/jobs").json()["data"]) == 1

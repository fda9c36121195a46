"""A process that was stopped past the lease of a publication: what it brings late is refused, in the row and at the
place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text, update

from app.publications.contract import Published, PublishFailure
from app.publications.models import Publication
from app.publications.to import s3
from tests.helpers.api import FILES, Api, eventually, with_manifest
from tests.helpers.publishing import Bucket, all_due, asked, bucket_of, deliverer, of, publish

RESULT = with_manifest({**FILES, "deep/er/config.json": b"{}"})
OTHER = with_manifest({"model.safetensors": b"other weights", "stale.safetensors": b"more of them"})
LATE = Published("late", "late", True)
Publish = Callable[[Any, Any, Any, dict[str, str]], Published]


@pytest.fixture
def bucket(api: Api, s3_endpoint: str) -> Bucket:
    return bucket_of(api, s3_endpoint)


@contextmanager
def publishing(*turns: Publish) -> Iterator[None]:
    """The calls of the publisher, in their order, and the real one behind them."""
    real, waiting = s3.PUBLISHER.publish, list(turns)

    def next_turn(*args: Any) -> Published:
        return (waiting.pop(0) if waiting else real)(*args)

    object.__setattr__(s3.PUBLISHER, "publish", next_turn)
    try:
        yield
    finally:
        object.__setattr__(s3.PUBLISHER, "publish", real)


def states(api: Api, job: dict[str, Any]) -> list[str]:
    events = api.get(job, "/events").json()["data"]
    return [each["data"]["state"] for each in events if each["type"] == "publication"]


class Successor:
    """A process that has taken the publication up, and is at work until it is told to end."""

    def __init__(self, api: Api) -> None:
        self.at_work, self._may_end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=deliverer(api).step)

    def publish(self, *args: Any) -> Published:
        self.at_work.set()
        assert self._may_end.wait(30)
        return s3.publish(*args)

    def start(self) -> None:
        self._thread.start()
        assert self.at_work.wait(30)

    def end(self) -> None:
        self._may_end.set()
        self._thread.join()


def test_what_comes_late_is_refused_though_the_tries_were_counted_anew(api: Api, bucket: Bucket) -> None:
    """The second fails, a client has it tried again, and the third has the first one's number of tries."""
    job = api.succeeded(RESULT, publish=[asked()])
    third = Successor(api)

    def first(*_: Any) -> Published:
        all_due(api)
        assert deliverer(api).step()
        (failed,) = of(api, job)
        api.client.post(f"/v1/jobs/{job['id']}/publications/{failed['id']}/retry").raise_for_status()
        third.start()
        return LATE

    def second(*_: Any) -> Published:
        raise PublishFailure("publish_refused", "not now", "")

    with publishing(first, second, third.publish):
        assert deliverer(api).step()
        (found,) = of(api, job)
        assert (found["state"], found["tries"], found["result"]) == ("running", 1, None)
        third.end()
    (found,) = of(api, job)
    assert (found["state"], found["result"]["location"]) == ("published", f"s3://{bucket.name}/base/ours/a/b")
    assert states(api, job) == ["failed", "published"]


def test_what_comes_late_is_refused_though_it_was_given_back(api: Api, bucket: Bucket) -> None:
    """A process that is told to end gives back, which is no try, while its publisher still waits for the place."""
    job = api.succeeded(RESULT, publish=[asked()])
    stop, second = threading.Event(), Successor(api)

    def first(*_: Any) -> Published:
        stop.set()
        eventually(lambda: api.get(job).json()["publications"][0]["state"] == "pending")
        second.start()
        return LATE

    with publishing(first, second.publish):
        deliverer(api, beat_s=0.05).run(stop)
        (found,) = of(api, job)
        assert (found["state"], found["tries"], found["result"]) == ("running", 1, None)
        second.end()
    assert of(api, job)[0]["result"]["location"] == f"s3://{bucket.name}/base/ours/a/b"
    assert states(api, job) == ["published"]


def test_the_version_before_works_beside_this_one(api: Api, bucket: Bucket) -> None:
    """It knows no fence: it writes rows without, and what it takes up has one more try."""
    job = api.succeeded(RESULT, publish=[asked()])
    columns = ", ".join(each.name for each in Publication.__table__.columns if each.name not in ("id", "fence"))
    with api.database.write() as session:
        session.execute(text(f"insert into publications (id, {columns}) select 'pub_0', {columns} from publications"))
        session.execute(text("update publications set state = 'withheld' where id <> 'pub_0'"))

    def first(*_: Any) -> Published:
        with api.database.write() as session:
            session.execute(update(Publication).values(tries=Publication.tries + 1))
        return LATE

    with publishing(first):
        assert deliverer(api).step()
    with api.database.read() as session:
        found = session.get_one(Publication, "pub_0")
        assert (found.state, found.tries, found.fence, found.result) == ("running", 2, 1, None)
    all_due(api)
    assert deliverer(api).step()
    assert of(api, job)[0]["result"]["location"] == f"s3://{bucket.name}/base/ours/a/b"


STOPPED = """
import os, signal
import obstore
from app.db import Database
from app.publications.credentials import Credentials
from app.publications.deliverer import Deliverer
from app.settings import Settings
from app.signing.keys import KeyRing
from app.storage import ArtifactStore

open_writer = obstore.open_writer

class Stopped:
    def __init__(self, writer):
        self.close, self.writer = writer.close, writer

    def write(self, piece):
        self.writer.write(piece)
        os.kill(os.getpid(), signal.SIGSTOP)

obstore.open_writer = lambda *args, **kwargs: Stopped(open_writer(*args, **kwargs))
settings = Settings()
keys, credentials = KeyRing(settings.signing_keys, make=False), Credentials(settings.credentials)
Deliverer(Database(settings.database_url), ArtifactStore(settings.artifacts_url), credentials, keys).step()
"""


def test_a_process_that_was_stopped_writes_over_nothing(api: Api, bucket: Bucket) -> None:
    """It has sent a file that is not visible yet. By the time it goes on, another process has published the result,
    and another result has taken its place."""
    job = api.succeeded(RESULT, publish=[asked()])
    settings = api.services.settings
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
        "ESPALIER_HOME": str(settings.home),
        "ESPALIER_DATABASE_URL": settings.database_url,
    }
    process = subprocess.Popen([sys.executable, "-c", STOPPED], env=environment, stdout=subprocess.PIPE)
    try:
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        assert of(api, job)[0]["state"] == "running"
        assert bucket.files("base/ours/a/b") == {}
        all_due(api)
        assert deliverer(api).step()
        other = api.succeeded(OTHER)
        publish(api, other, asked(replace=True)).raise_for_status()
        assert deliverer(api).step()
        jobs, there = [api.get(each).json() for each in (job, other)], bucket.written("base/ours/a/b")
        assert [each["publications"][0]["state"] for each in jobs] == ["published", "published"]
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert b"publication_let_go" in said
    assert bucket.written("base/ours/a/b") == there
    assert bucket.files("base/ours/a/b")["model.safetensors"] == b"other weights"
    assert [api.get(each).json() for each in (job, other)] == jobs

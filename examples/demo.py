"""`make demo`: prune a real model through the service, from nothing to a checked result. Uses only the command line.

Starts the embedded service on a free port, submits examples/specs/wanda-50.json over HTTP, follows it, downloads
the model, loads it with plain transformers in another process, and has the same made again to compare the bytes. What
it made stays in .espalier/demo.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".espalier" / "demo"
SPEC = ROOT / "examples" / "specs" / "wanda-50.json"
ESPALIER = Path(sys.executable).with_name("espalier")

USE_THE_MODEL = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
folder, reported_zeros = sys.argv[1], int(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
zeros = sum(int((p == 0).sum()) for n, p in model.named_parameters() if n.endswith("_proj.weight"))
print(f"{zeros:,} zeros in the loaded model, {reported_zeros:,} in the report")
if zeros != reported_zeros:
    sys.exit("the report is wrong")
prompt = tokenizer("The old house stood", return_tensors="pt")
text = model.generate(**prompt, max_new_tokens=30, do_sample=False, repetition_penalty=1.2)
print("it writes:", tokenizer.decode(text[0], skip_special_tokens=True))
"""


def main() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("ESPALIER_")},
        "ESPALIER_HOME": str(HOME),
        "ESPALIER_MODELS_DIR": str(ROOT / "examples" / "models"),
        "ESPALIER_DATA_DIR": str(ROOT / "examples" / "data"),
        # Enough for so small a model, and sums then do not depend on how many cores there are.
        "ESPALIER_WORKER_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    log = HOME / "service.log"
    say(f"Starting the service (its log: {log})")
    with log.open("wb") as log_file:
        service = subprocess.Popen(
            [ESPALIER, "serve", "--port", "0", "--json"], env=environment, stdout=subprocess.PIPE, stderr=log_file
        )
    try:
        assert service.stdout is not None
        ready = service.stdout.readline()
        if not ready:
            sys.exit(f"the service did not start; {log} says:\n{log.read_text()}")
        where = json.loads(ready)
        environment["ESPALIER_URL"] = where["url"]
        environment["ESPALIER_API_KEY"] = Path(where["key_file"]).read_text().strip()
        prune(environment)
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait()
    say("Service stopped. `make serve` starts one to keep; README.md has a session with curl.")


def prune(environment: dict[str, str]) -> None:
    def espalier(*arguments: str) -> None:
        subprocess.run([ESPALIER, *arguments], env=environment, check=True)

    def make(folder: str) -> tuple[str, Path]:
        """Submit the spec, wait for the model, download it into `folder` of HOME; the job's id, and where that is."""
        command = [ESPALIER, "submit", str(SPEC), "--label", "made-by=demo", "--json"]
        submitted = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        job_id = json.loads(submitted.stdout)["id"]
        espalier("watch", job_id)
        espalier("download", job_id, "--out", str(HOME / folder))
        return job_id, HOME / folder

    say(f"Submitting {SPEC.relative_to(ROOT)} to {environment['ESPALIER_URL']}; downloading the result")
    job_id, model_dir = make("model")

    say("Before and after")
    espalier("report", job_id)

    say("In another process, with plain transformers")
    zeros = json.loads((model_dir / "report.json").read_text())["zeros"]
    subprocess.run([sys.executable, "-c", USE_THE_MODEL, str(model_dir), str(zeros)], env=environment, check=True)

    say("The same spec once more, in a job of its own: the same bytes?")
    _, again = make("again")
    first, second = digests(model_dir), digests(again)
    for path, digest in first.items():
        print(f"sha256 {digest}  {path}")
    if not first or first != second:
        sys.exit(f"no, the second job made others: {second}")
    print("yes, both jobs made these")
    print(f"\nmodel  {model_dir}\nreport {(model_dir / 'report.html').as_uri()}")


def digests(model_dir: Path) -> dict[str, str]:
    """sha256 of each file of weights, from the files themselves."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(model_dir.glob("*.safetensors"))
    }


def say(line: str) -> None:
    print(f"\n=== {line}", flush=True)


if __name__ == "__main__":
    main()

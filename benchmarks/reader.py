"""Time to read a large text, and memory above that of the process before, for docs/benchmarks.md.

    python -m benchmarks.reader [--gib 2] [--windows 64] [--length 512]

A text of that size in one line, and the same as JSON lines; windows are drawn for calibration and cut for evaluation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

from workers.engine.contracts.refs import DataRef
from workers.engine.methods.evaluate.perplexity import PerplexityParams
from workers.engine.model.reading import load_tokens
from workers.engine.model.windows import wanted_of
from workers.engine.sources.resolve import Sources
from workers.engine.spec import Calibrate
from workers.engine.store.clock import peak_resident_bytes

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    arguments = parser.parse_args()
    text = (ROOT / "examples/data/heldout.txt").read_text().replace("\n", " ")
    row = json.dumps({"text": text}) + "\n"
    repeats = int(arguments.gib * 2**30 / len(text))
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/models/bookworm-7m")
    tokenizer("A word, so that everything is loaded.")
    asked = {"samples": arguments.windows, "sequence_length": arguments.length}
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        sources = Sources(ROOT / "examples/models", Path(folder))
        for name, piece in (("large.txt", text), ("large.jsonl", row)):
            with (Path(folder) / name).open("w") as file:
                for _ in range(repeats):
                    file.write(piece)
            refs: list[DataRef] = [Calibrate(dataset=name, **asked), PerplexityParams(dataset=name, **asked)]
            for ref in refs:
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident
                before, began, worked = peak_resident_bytes(), time.perf_counter(), time.process_time()
                tokens = load_tokens(ref, tokenizer, sources, "", wanted_of(ref))
                print(
                    f"{name}, {type(ref).__name__}: {len(tokens.ids_T):,} tokens read in "
                    f"{time.perf_counter() - began:.1f} s ({time.process_time() - worked:.1f} s of processor time), "
                    f"peak {(peak_resident_bytes() - before) / 2**20:.0f} MiB above",
                    flush=True,
                )
            (Path(folder) / name).unlink()


if __name__ == "__main__":
    main()

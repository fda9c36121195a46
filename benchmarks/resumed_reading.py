"""Processor time to read a training's text, and to read it again in a further attempt, for docs/scale.md.

    python -m benchmarks.resumed_reading [--mib 8]

Rows of 3,000 characters by bookworm-7m's tokenizer, from each kind of file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path

import pyarrow
from pyarrow import parquet
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.engine.contracts.refs import DataRef
from workers.engine.model.reading import Reading
from workers.engine.sources.resolve import Sources
from workers.engine.store.kept_pieces import KeptPieces
from workers.engine.store.token_file import TokenFile

ROOT = Path(__file__).parents[1]
ROW = 3000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=8)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/models/bookworm-7m")
    tokenizer("A word, so that everything is loaded.")
    with tempfile.TemporaryDirectory(dir=ROOT) as temporary:
        folder = Path(temporary)
        for path in written(folder, arguments.mib * 2**20):
            first = attempt(path, tokenizer)
            again = min((attempt(path, tokenizer) for _ in range(3)), key=lambda found: found[1])
            assert again[::2] == first[::2]
            kept = kept_beside(path).stat().st_size
            print(
                f"{path.name}: {first[0]:,} tokens; a million takes {first[1] * 1e6 / first[0]:.2f} processor seconds, "
                f"and read again {again[1] * 1e6 / first[0]:.3f}; {kept / first[0]:.2f} bytes a token are kept",
                flush=True,
            )


def written(folder: Path, size: int) -> list[Path]:
    """The same rows, of so many characters, in a file of each kind."""
    text = (ROOT / "examples/data/heldout.txt").read_text()
    parts = [text[begin : begin + ROW] for begin in range(0, len(text) - ROW, ROW)]
    rows = [f"{number} {parts[number % len(parts)]}" for number in range(size // ROW)]
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    paths = [folder / name for name in ("a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet")]
    paths[0].write_text("\n\n".join(rows))
    paths[1].write_text(lines)
    paths[2].write_bytes(gzip.compress(lines.encode()))
    parquet.write_table(pyarrow.table({"text": rows}), paths[3])
    return paths


def kept_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.pieces")


def attempt(path: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, float, str]:
    """(tokens, processor seconds, digest of the tokens)"""
    sources, file = Sources(ROOT / "examples/models", path.parent), TokenFile(path.parent)
    kept = KeptPieces(kept_beside(path), "bookworm")
    reading = Reading(DataRef(dataset=path.name), tokenizer, sources, "/tune", vocabulary=4096, file=file, kept=kept)
    began = time.process_time()
    while reading.on():
        pass
    return len(file), time.process_time() - began, file.digest


if __name__ == "__main__":
    main()

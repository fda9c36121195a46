"""How often the interval of a perplexity ratio holds the true value, for docs/benchmarks.md.

    python -m benchmarks.coverage BOOKS.parquet [--windows 8] [--length 128] [--draws 2000]

A data set of many documents (a column `text`) stands for all there is: the loss of every window of each is measured
once, of bookworm-7m dense and with half of its weights removed by Wanda, and the true ratio follows from all of them.
Then a few documents are drawn again and again, with a few windows of each, and the interval is made of these, as a
report makes it. Losses are kept in .espalier/coverage.npz.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workers.engine.contracts.facts import Measurement
from workers.engine.maths.standard_errors import CONFIDENCE, half_width, ratio_spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".espalier/coverage.npz"
DOCUMENTS = (1, 2, 3, 5, 8, 20, 40)
WINDOWS = (1, 2, 4, 8)


def measure(books: Path, windows: int, length: int) -> dict[str, NDArray[np.float64]]:
    """`dense` and `pruned`: mean nats a token of each window, [documents, windows]."""
    import torch
    from transformers import AutoTokenizer

    from workers.engine.events import Silent
    from workers.engine.methods.evaluate.perplexity import PerplexityParams
    from workers.engine.model.loaded import load_model
    from workers.engine.model.loss import nll
    from workers.engine.model.reading import load_tokens
    from workers.engine.model.windows import measured_windows
    from workers.engine.pipeline import compress
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec

    dense = ROOT / "examples/models/bookworm-7m"
    tokenizer = AutoTokenizer.from_pretrained(dense)
    params = PerplexityParams(dataset=books.name, sequence_length=length, per_document=windows)
    found = measured_windows(
        params, lambda ref, wanted: load_tokens(ref, tokenizer, Sources(books, books.parent), "", wanted), ""
    )
    assert found.documents is not None  # books are longer than windows
    counts = Counter(found.documents)
    ids_BT = torch.stack(
        [ids for ids, document in zip(found.ids_NL, found.documents, strict=True) if counts[document] == windows]
    )
    spec = CompressionSpec.model_validate(
        {
            "model": {"id": "bookworm-7m"},
            "calibrate": {"dataset": "calibration.txt", "samples": 16, "sequence_length": 512},
            "score": {"method": "wanda"},
            "prune": {"method": "mask", "sparsity": 0.5},
        }
    )
    losses = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        sources = Sources(ROOT / "examples/models", ROOT / "examples/data")
        compress(spec, Path(folder), sources, Silent(), Path(folder) / "checkpoint")
        for name, place in (("dense", dense), ("pruned", Path(folder) / "model")):
            model = load_model(place, torch.device("cpu"), torch.float32)
            nll_B = torch.cat([nll(model, batch_BT) for batch_BT in ids_BT.split(16)])
            losses[name] = nll_B.reshape(-1, windows).numpy()
    return losses


def measured(nll: NDArray[np.float64], documents: list[int] | None) -> Measurement:
    """As the evaluator gives it."""
    value = math.exp(nll.mean())
    return Measurement("perplexity", value, "perplexity", parts=(value * nll).tolist(), documents=documents)


def coverage(
    found: dict[str, NDArray[np.float64]], documents: int, windows: int, draws: int
) -> tuple[float, float, float]:
    """Shares of intervals that hold the true ratio over windows and over documents; the median half width of these."""
    truth = math.exp(found["pruned"].mean() - found["dense"].mean())
    generator = np.random.default_rng([documents, windows])
    labels = np.repeat(np.arange(documents), windows).tolist()
    held, widths = [0, 0], []
    for _ in range(draws):
        books = generator.integers(len(found["dense"]), size=documents)
        places = np.stack([generator.permutation(found["dense"].shape[1])[:windows] for _ in books])
        drawn = [np.take_along_axis(found[name][books], places, axis=1).ravel() for name in ("dense", "pruned")]
        width = 0.0
        for kind, known in enumerate((None, labels)):
            dense, pruned = (measured(nll, known) for nll in drawn)
            sure = ratio_spread(dense, pruned)
            assert sure.stderr is not None
            width = half_width(sure.stderr, sure.degrees_of_freedom, CONFIDENCE)
            held[kind] += abs(pruned.value / dense.value - truth) <= width
        widths.append(width / truth)
    return held[0] / draws, held[1] / draws, float(np.median(widths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("--windows", type=int, default=8, help="of each document")
    parser.add_argument("--length", type=int, default=128, help="tokens of a window")
    parser.add_argument("--draws", type=int, default=2000)
    arguments = parser.parse_args()
    if not KEPT.exists():
        KEPT.parent.mkdir(exist_ok=True)
        np.savez(KEPT, **measure(arguments.books, arguments.windows, arguments.length))
    with np.load(KEPT) as kept:
        found = {name: kept[name] for name in kept}
    change = found["pruned"] - found["dense"]
    between, within = change.mean(axis=1).var(ddof=1), change.var(axis=1, ddof=1).mean()
    between -= within / change.shape[1]
    print(f"{change.shape[0]} documents of {change.shape[1]} windows; ratio {math.exp(change.mean()):.4f};")
    print(f"correlation of two windows' changes within a document {between / (between + within):.2f}\n")
    print("| documents | " + " | ".join(f"{windows} of each" for windows in WINDOWS) + " |")
    print("|---:|" + "---:|" * len(WINDOWS))
    for documents in DOCUMENTS:
        cells = []
        for windows in WINDOWS:
            if documents * windows < 2:
                cells.append("")
                continue
            by_window, by_document, width = coverage(found, documents, windows, arguments.draws)
            cells.append(f"{100 * by_window:.1f} / {100 * by_document:.1f} (± {100 * width:.1f} %)")
        print(f"| {documents} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

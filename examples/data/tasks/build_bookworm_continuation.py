"""Build bookworm_continuation.jsonl from ../heldout.txt: 200 contexts, the real continuation and three false ones.

    python build_bookworm_continuation.py

Context: 40 words up to a sentence's middle. Continuations: 12 words each; the false ones are other contexts' real
continuations. The books are in the public domain, and so is the result.
"""

import json
import random
from pathlib import Path

SEED, ITEMS, CONTEXT_WORDS, CONTINUATION_WORDS, CHOICES = 0, 200, 40, 12, 4


def build(words: list[str]) -> list[dict[str, object]]:
    """Items of non-overlapping spans at random places; the same words and seed give the same items."""
    rng = random.Random(SEED)
    span = CONTEXT_WORDS + CONTINUATION_WORDS
    starts = sorted(rng.sample(range(len(words) // span), ITEMS))
    spans = [words[start * span : (start + 1) * span] for start in starts]
    contexts = [" ".join(text[:CONTEXT_WORDS]) for text in spans]
    continuations = [" ".join(text[CONTEXT_WORDS:]) for text in spans]
    items: list[dict[str, object]] = []
    for index, context in enumerate(contexts):
        false = rng.sample([text for other, text in enumerate(continuations) if other != index], CHOICES - 1)
        label = rng.randrange(CHOICES)
        items.append(
            {"context": context, "choices": [*false[:label], continuations[index], *false[label:]], "label": label}
        )
    return items


if __name__ == "__main__":
    here = Path(__file__).parent
    items = build((here.parent / "heldout.txt").read_text(encoding="utf-8").split())
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in items]
    (here / "bookworm_continuation.jsonl").write_text("".join(lines), encoding="utf-8")

"""Token ids of a text, by the model's tokenizer, which is untrusted code and may raise anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.engine.errors import UnsupportedModel
from workers.engine.files.model_files import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """The ids of `text`; with `special` also those that the tokenizer puts around one. Raises UnsupportedModel."""
    found: list[int] = _encoded(tokenizer, text, add_special_tokens=special)["input_ids"]
    return found


def ids_and_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """The ids of `text`, and where in it each token ends, by a tokenizer that is fast. Raises UnsupportedModel."""
    found = _encoded(tokenizer, text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], [end for _, end in found["offset_mapping"]]


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> Mapping[str, Any]:
    try:
        # verbose=False: no warning about texts longer than the context.
        found: Mapping[str, Any] = tokenizer(text, verbose=False, **options)
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of tokenizers' Rust
            raise
        raise UnsupportedModel(
            f"the model's tokenizer fails on a text: {type(error).__name__}: {shown(error)}",
            "copy the tokenizer again as its authors saved it; one without byte fallback needs an unknown token",
            field="/model/id",
        ) from error
    return found

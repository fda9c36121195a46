"""Token ids of a text, by the model's tokenizer, which is untrusted code and may raise anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.errors import UnsupportedModel
from workers.engine.files.model_files import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """The ids of `text`; with `special` also those that the tokenizer puts around one. Raises UnsupportedModel."""
    try:
        # verbose=False: no warning about texts longer than the context.
        found: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
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

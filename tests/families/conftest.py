"""Tokenizers are read once: a family's jobs read the same text again and again."""

from tests.helpers.tokenizers import tokenized_once

__all__ = ["tokenized_once"]

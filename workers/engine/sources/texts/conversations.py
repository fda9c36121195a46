"""Conversations to text, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workers.engine.errors import InvalidSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
"""ShareGPT's name of a role -> that of chat templates, where they differ."""


def is_turns(value: object) -> bool:
    """Whether it is a conversation: `role` and `content` of each turn, or ShareGPT's `from` and `value`."""
    turns = value if isinstance(value, list) else []
    fields = [{*turn} if isinstance(turn, dict) else set() for turn in turns]
    return bool(fields) and all({"role", "content"} <= known or {"from", "value"} <= known for known in fields)


def rendered(turns: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, where: str, field: str) -> str:
    """The conversation as the model was trained to read it, without the opening token: windows have their own.

    Raises InvalidSpec at `field` where the tokenizer has no template, or its template refuses these turns.
    """
    if not tokenizer.chat_template:
        raise InvalidSpec(
            f"{where} is a conversation, and the model's tokenizer has no chat template to write it out with",
            "use a model with a chat template, or write the conversations out as plain text in a column of their own",
            field=field,
        )
    messages = [_message(turn, where, field) for turn in turns]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    except Exception as error:  # a template is code of the model's author and may raise anything
        raise InvalidSpec(
            f"{where}: the model's chat template refuses this conversation: {str(error)[:200]}",
            "leave the row out, or change its turns to roles in an order that the model knows",
            field=field,
        ) from error
    return str(text).removeprefix(tokenizer.bos_token or "")


def _message(turn: Mapping[str, Any], where: str, field: str) -> dict[str, Any]:
    """A turn as chat templates take it; the texts of several parts are joined."""
    known = {key: value for key, value in turn.items() if value is not None}  # parquet fills missing fields with null
    if "role" in turn:
        role, content = known.pop("role", ""), known.pop("content", "")
    else:
        role, content = known.pop("from", ""), known.pop("value", "")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        content = [part.get("text") for part in content]
    texts = content if isinstance(content, list) else [content]
    if not all(isinstance(text, str) for text in (role, *texts)):
        raise InvalidSpec(
            f"{where} has a turn of something else than text", "leave the row out, or keep its texts", field=field
        )
    content = "".join(texts)
    return {**known, "role": ROLES.get(role, role), "content": content}

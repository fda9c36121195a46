"""Parts that several fields of a spec share: patterns of names, the strict base, references to models and texts.

Apart from `spec.py` because method files extend `DataRef` while `spec.py` is still collecting them. Import-light.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
HUB_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
NAME_OR_HUB_ID = rf"({NAME})|({HUB_ID})"
REVISION = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
COLUMN = r"^[^\x00-\x1f\x7f]{1,96}$"


class SpecModel(BaseModel):
    """Frozen, refuses unknown fields, non-finite numbers, and values of another JSON type than the field's."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelRef(SpecModel):
    """Which model to compress."""

    id: str = Field(
        pattern=NAME_OR_HUB_ID,
        description="`owner/name` of a model on the Hugging Face hub, or, without a slash, the name of a folder "
        "under the service's models directory. Only safetensors weights are read.",
        examples=["bookworm-7m", "Qwen/Qwen3-0.6B"],
    )
    revision: str = Field(
        "main",
        pattern=REVISION,
        description="Branch, tag or commit of a hub model; resolved to a commit before work starts. "
        "Must be left alone for a local model.",
    )

    @property
    def local(self) -> bool:
        return "/" not in self.id

    @model_validator(mode="after")
    def _local_models_have_no_revision(self) -> ModelRef:
        if self.local and self.revision != "main":
            raise PydanticCustomError("no_revision", "a local model has no revisions: leave `revision` out")
        return self


class DataRef(SpecModel):
    """A text: a file of the service, or a data set of the hub."""

    dataset: str = Field(
        pattern=NAME_OR_HUB_ID,
        description="`owner/name` of a dataset on the Hugging Face hub, or, without a slash, a .txt, .jsonl or "
        ".parquet file under the service's data directory; .txt and .jsonl also compressed, as .gz or .zst.",
        examples=["heldout.txt", "Salesforce/wikitext"],
    )
    subset: str | None = Field(None, pattern=NAME, description="Configuration of a hub dataset, if it has several.")
    split: str = Field("train", pattern=NAME, description="Split of a hub dataset.")
    text_field: str = Field(
        "text",
        pattern=COLUMN,
        description="Column that holds the text (hub, .jsonl, .parquet): a string, several that make one document, or "
        "a conversation (turns of `role` and `content`, or of `from` and `value`), which the model's chat template "
        "writes out.",
    )
    document_field: str | None = Field(
        None,
        pattern=COLUMN,
        description="Column that says which document a row is of, where rows are parts of documents; null: each row is "
        "one. Intervals of measurements are over documents. A .txt file is one document.",
    )
    bos: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether every window begins with the model's beginning-of-sequence token; `auto` does what the "
        "tokenizer does by itself.",
    )
    revision: str = Field("main", pattern=REVISION, description="Branch, tag or commit of a hub dataset.")

    @property
    def local(self) -> bool:
        return "/" not in self.dataset

    @property
    def window_tokens(self) -> int:
        """Tokens of a window that the model attends over; 0 where it reads no windows."""
        return 0

    @property
    def least_windows(self) -> int:
        """Windows without which the text is too short; 0 where it reads none."""
        return 0

    @model_validator(mode="after")
    def _files_have_no_splits(self) -> DataRef:
        if self.local and (self.subset, self.split, self.revision) != (None, "train", "main"):
            raise PydanticCustomError(
                "no_split", "a local file has no subset, split or revision: leave them out, or name a hub dataset"
            )
        return self

    @property
    def label(self) -> str:
        """`dataset[/subset][/split][@revision][:text_field]`, without parts that are at their defaults."""
        parts = [self.dataset]
        if self.subset:
            parts.append(f"/{self.subset}")
        for name, mark in (("split", "/"), ("revision", "@"), ("text_field", ":")):
            value = getattr(self, name)
            if value != DataRef.model_fields[name].default:
                parts.append(mark + value)
        return "".join(parts)

"""Inputs of an evaluator: one model, and the data that both models are measured on. Import-light."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from workers.engine.errors import CheckpointMismatch

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.refs import DataRef
    from workers.engine.contracts.texts import Tokens, Wanted


@dataclass
class EvaluationData:
    """Data that both models are measured on, read once."""

    digests: dict[str, str] = field(default_factory=dict)
    """Data label -> `sha256:` digest of the bytes read."""
    tokens: dict[tuple[DataRef, Wanted], Tokens] = field(default_factory=dict)

    def record(self, label: str, digest: str) -> None:
        """Note the digest of the data called `label`. Raises CheckpointMismatch if another was noted before."""
        known = self.digests.setdefault(label, digest)
        if known != digest:
            raise CheckpointMismatch(
                f"{label}: the data changed while the dense and the pruned model were measured",
                "leave data files alone while a job runs, and submit the job again",
            )


class EvaluationContext(Protocol):
    """One loaded model, and where its data and files lie."""

    @property
    def architecture(self) -> Architecture:
        """Of the model as it is, dense or pruned."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def model_dir(self) -> Path:
        """Folder the model was loaded from; its safetensors files are the weights as stored."""

    @property
    def device(self) -> torch.device: ...

    @property
    def model(self) -> PreTrainedModel:
        """The whole model, for evaluators that declare that they need it: in eval mode, on `device`, with parameters
        of the spec's compute dtype."""

    @property
    def seed(self) -> int: ...

    @property
    def data_dir(self) -> Path:
        """The service's folder of data sets and tasks."""

    @property
    def data(self) -> EvaluationData: ...

    @property
    def pointer(self) -> str:
        """JSON pointer of the evaluation in the spec, e.g. `/evaluate/0`, for errors."""

    def window_nll(self, windows_NT: Tensor, batch_size: int) -> Tensor:
        """Mean negative log-likelihood in nats of each window's T - 1 predictions, float64 [N] on the CPU."""

    def check_fits(self, tokens: int, parameter: str) -> None:
        """Raise SequenceTooLong, naming `parameter` of the evaluation, if the model cannot attend to so many tokens."""

    def load_tokens(self, ref: DataRef, wanted: Wanted) -> Tokens:
        """The token ids of `ref`, as many as `wanted` asks for; tokenised once per run."""

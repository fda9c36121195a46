"""The text that a pruned model is tuned on: disjoint windows to train on and to evaluate on. N = windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workers.engine.model.windows import consecutive_windows, ids_digest, load_tokens, wanted_of

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.tuning_params import TuneMethodParams
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import TextReport
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec


@dataclass(frozen=True)
class TuningText:
    """Token ids, int64 [N, T], cut from one text without overlap."""

    train_NT: Tensor
    holdout_NT: Tensor
    label: str
    read: TextReport | None = None

    @property
    def digest(self) -> str:
        return ids_digest(torch.cat([self.holdout_NT, self.train_NT]))

    @property
    def digests(self) -> dict[str, str]:
        """`tune/<label>` -> `sha256:` digest of all windows."""
        return {f"tune/{self.label}": self.digest}

    def batch(self, params: TuneMethodParams, step: int) -> Tensor:
        """The windows of one step, int64 [batch, T]: every epoch goes through all windows in an order of its own.

        It depends on the seed and the step alone, so that a resumed run continues the order of the killed one.
        """
        count = len(self.train_NT)
        first, last = step * params.batch, (step + 1) * params.batch
        epochs = range(first // count, -(-last // count))
        order_N = torch.cat([_order(count, params.seed, epoch) for epoch in epochs])
        begin = first - epochs.start * count
        return self.train_NT[order_N[begin : begin + params.batch]]


def tuning_text(spec: CompressionSpec, model: LoadedModel, sources: Sources) -> TuningText | None:
    """The windows of the spec, or None where nothing is tuned.

    The first `holdout` are held out, whatever the number of steps, so runs of different lengths compare. Raises what
    reading data raises, and DatasetTooShort where less than one step's windows would be left.
    """
    if spec.tune is None:
        return None
    params = spec.tune
    tokens = load_tokens(
        params,
        model.tokenizer,
        sources,
        "/tune",
        wanted_of(params),
        vocabulary=model.architecture.vocabulary,
    )
    least = params.holdout + params.batch
    fit = len(tokens.ids_T) // (params.sequence_length - len(tokens.opening))
    count = max(least, min(params.holdout + params.steps * params.batch, fit))
    windows_NT = consecutive_windows(tokens, params.sequence_length, count=count, field="/tune")
    return TuningText(windows_NT[params.holdout :], windows_NT[: params.holdout], params.label, tokens.report)


def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed((seed << 24) + epoch))

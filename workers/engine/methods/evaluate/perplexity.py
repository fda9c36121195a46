"""Perplexity: exp of the mean negative log-likelihood per predicted token over non-overlapping windows.

The protocol of the pruning literature (GPTQ, SparseGPT, Wanda): the text as one token stream, cut into windows of
equal length, the rest dropped. N = windows, T = tokens of a window.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.registry import LossMethodParams, evaluator
from workers.engine.stats import Measurement

if TYPE_CHECKING:
    from workers.engine.stages.evaluate import EvaluationContext


class PerplexityParams(LossMethodParams):
    """Perplexity on a text."""

    method: Literal["perplexity"] = Field("perplexity", description="How well the model predicts a text; lower wins.")
    sequence_length: int = Field(
        2048, ge=8, le=131072, description="Tokens per window; at most the model's context length."
    )
    samples: int | None = Field(None, ge=1, description="How many windows to read, from the start; null reads all.")
    batch_size: int = Field(
        1, ge=1, le=256, description="Windows per forward pass. Costs memory; moves the last digits."
    )

    @property
    def measures(self) -> tuple[str, ...]:
        return (f"perplexity/{self.label}",)


@evaluator(
    PerplexityParams,
    paper="Jelinek et al. 1977, doi:10.1121/1.2016299",
    whole_model=False,
)
def evaluate(context: EvaluationContext, params: PerplexityParams) -> list[Measurement]:
    """`perplexity/<data label>`, >= 1.

    The standard error is that of the mean over windows, carried through exp by the delta method:
    perplexity * sd(window means) / sqrt(N). Windows of one book are not independent, so it is on the low side.
    Raises SequenceTooLong, DatasetTooShort and what reading the data raises.
    """
    from workers.engine.data import ids_digest, loss_windows

    length = params.sequence_length
    context.check_fits(length, "sequence_length")
    windows_NT = loss_windows(params, context.load_tokens, context.pointer)
    context.data.record(
        f"perplexity/{params.label}/{len(windows_NT)}x{length}",
        ids_digest(windows_NT),
    )
    nll_N = context.window_nll(windows_NT, params.batch_size)
    perplexity = nll_N.mean().exp().item()
    stderr = perplexity * nll_N.std().item() / math.sqrt(len(nll_N)) if len(nll_N) > 1 else None
    return [
        Measurement(
            name=f"perplexity/{params.label}",
            value=perplexity,
            unit="perplexity",
            higher_is_better=False,
            stderr=stderr,
            note=f"{len(nll_N)} windows of {length} tokens; ± standard error over windows",
            parts=(perplexity * nll_N).tolist(),
        )
    ]

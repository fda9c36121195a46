"""Perplexity: exp of the mean negative log-likelihood per predicted token over non-overlapping windows.

The protocol of the pruning literature (GPTQ, SparseGPT, Wanda): the text as one token stream, cut into windows of
equal length, the rest dropped. N = windows, T = tokens of a window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.facts import Measurement
from workers.engine.contracts.params import LossMethodParams
from workers.engine.registry import evaluator

if TYPE_CHECKING:
    from workers.engine.contracts.evaluation import EvaluationContext


class PerplexityParams(LossMethodParams):
    """Perplexity on a text."""

    method: Literal["perplexity"] = Field("perplexity", description="How well the model predicts a text; lower wins.")
    sequence_length: int = Field(
        2048,
        ge=8,
        le=131072,
        description="Tokens per window; at most the model's context length.",
        examples=[512, 2048],
    )
    samples: int | None = Field(
        None, ge=1, description="How many windows to read, from the start; null reads all.", examples=[64]
    )
    per_document: int | None = Field(
        None,
        ge=1,
        description="Most windows of each document, from its start, so that no long one makes up all samples; "
        "null takes the text as one stream.",
    )
    batch_size: int = Field(
        1, ge=1, le=256, description="Windows per forward pass. Costs memory; moves the last digits."
    )

    @property
    def tokens_at_once(self) -> int:
        return self.batch_size * self.sequence_length

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

    The standard error is that of the mean of the windows' losses, over documents where there are several
    (`comparison.spread`), carried through exp by the delta method. Of one document it is over windows, and about this
    text alone: windows of one book are alike.
    Raises SequenceTooLong, DatasetTooShort and what reading the data raises.
    """
    from workers.engine.maths.standard_errors import spread
    from workers.engine.model.windows import ids_digest, measured_windows

    length = params.sequence_length
    context.check_fits(length, "sequence_length")
    windows = measured_windows(params, context.load_tokens, context.pointer)
    count, documents = len(windows.ids_NL), len(set(windows.documents or ()))
    context.data.record(f"perplexity/{params.label}/{count}x{length}{params.variant}", ids_digest([windows.ids_NL]))
    nll_N = context.window_nll(windows.ids_NL, params.batch_size)
    perplexity = nll_N.mean().exp().item()
    parts = (perplexity * nll_N).tolist()
    sure = spread(parts, windows.documents)
    of = "one document" if documents else "documents whose ends are not known"
    over = f"over {documents} documents" if documents > 1 else f"over windows of {of}: about this text alone"
    sureness = f"± standard error {over}" if count > 1 else "nothing says how far off one window is"
    return [
        Measurement(
            name=f"perplexity/{params.label}",
            value=perplexity,
            unit="perplexity",
            higher_is_better=False,
            stderr=sure.stderr,
            note=f"{count} window{'s' * (count > 1)} of {length} tokens; {sureness}",
            parts=parts,
            documents=windows.documents,
            degrees_of_freedom=sure.degrees_of_freedom,
        )
    ]

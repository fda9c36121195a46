"""Agreement: how far the pruned model's next-token predictions are from the dense one's, on a text.

A model may keep its perplexity and yet answer otherwise (Dutta et al. 2024, arXiv:2407.09141).
N = windows, B = those of one pass, T = predictions of a window, V = vocabulary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.facts import Measurement
from workers.engine.contracts.params import WindowsMethodParams
from workers.engine.registry import comparing_evaluator

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from workers.engine.contracts.evaluation import EvaluationContext
    from workers.engine.model.windows import Windows


class AgreementParams(WindowsMethodParams):
    """Distance of the pruned model's predictions from the dense one's."""

    method: Literal["agreement"] = Field(
        "agreement", description="How far predictions are from the dense model's: KL divergence, same likeliest token."
    )
    sequence_length: int = Field(
        512,
        ge=8,
        le=131072,
        description="Tokens per window; at most the model's context length.",
        examples=[512, 2048],
    )
    samples: int | None = Field(
        32, ge=1, description="How many windows to read, from the start; null reads all.", examples=[32]
    )
    per_document: int | None = Field(
        None, ge=1, description="Most windows of each document, from its start; null takes the text as one stream."
    )
    batch_size: int = Field(
        1,
        ge=1,
        le=256,
        description="Windows per forward pass. Where only one of the models fits in memory, each is loaded once for so "
        "many windows.",
    )

    @property
    def tokens_at_once(self) -> int:
        return 2 * self.batch_size * self.sequence_length  # the predictions of both models

    @property
    def measures(self) -> tuple[str, ...]:
        return (f"agreement/{self.label}/kl", f"agreement/{self.label}/top1")


@comparing_evaluator(AgreementParams, paper="arXiv:2407.09141")
def evaluate(
    dense: Callable[[], EvaluationContext], pruned: Callable[[], EvaluationContext], params: AgreementParams
) -> tuple[list[Measurement], list[Measurement]]:
    """`agreement/<data label>/kl`, >= 0 nats a token: the mean over predictions of KL(dense || pruned).
    `agreement/<data label>/top1`, in [0, 1]: how often both find the same token likeliest.

    Standard errors are over documents where there are several, else over windows.
    Raises SequenceTooLong, DatasetTooShort and what reading the data raises.
    """
    import torch

    from workers.engine.model.windows import ids_digest, measured_windows

    context = dense()
    context.check_fits(params.sequence_length, "sequence_length")
    windows = measured_windows(params, context.load_tokens, context.pointer)
    context.data.record(
        f"agreement/{params.label}/{len(windows.ids_NL)}x{params.sequence_length}{params.variant}",
        ids_digest([windows.ids_NL]),
    )
    del context
    found = []
    for ids_BL in windows.ids_NL.split(params.batch_size):
        logs_BTV = _predictions(dense(), ids_BL)
        found.append(_distances(logs_BTV, _predictions(pruned(), ids_BL)))
        del logs_BTV
    kl_N, same_N = (torch.cat(parts).tolist() for parts in zip(*found, strict=True))
    of_itself = [0.0] * len(kl_N), [1.0] * len(kl_N)
    return _measurements(params, windows, *of_itself), _measurements(params, windows, kl_N, same_N)


def _predictions(context: EvaluationContext, ids_BL: Tensor) -> Tensor:
    """Logarithms of the probabilities of every next token but the one behind the window, float32 [B, T, V]."""
    logits_BLV: Tensor = context.model(input_ids=ids_BL.to(context.device), use_cache=False).logits
    return logits_BLV[:, :-1].float().log_softmax(dim=-1)


def _distances(dense_BTV: Tensor, pruned_BTV: Tensor) -> tuple[Tensor, Tensor]:
    """Means over each window, float64 [B]: of the KL divergence, and of how often the likeliest token is the same."""
    from torch.nn.functional import kl_div

    kl_BT = kl_div(pruned_BTV, dense_BTV, reduction="none", log_target=True).sum(dim=-1, dtype=dense_BTV.dtype)
    same_BT = dense_BTV.argmax(dim=-1) == pruned_BTV.argmax(dim=-1)
    return kl_BT.double().mean(dim=1).cpu(), same_BT.double().mean(dim=1).cpu()


def _measurements(
    params: AgreementParams, windows: Windows, kl_N: list[float], same_N: list[float]
) -> list[Measurement]:
    from workers.engine.maths.standard_errors import spread

    count, length = windows.ids_NL.shape
    found = []
    for name, parts_N, unit in zip(params.measures, (kl_N, same_N), ("nats a token", "share of tokens"), strict=True):
        sure = spread(parts_N, windows.documents)
        found.append(
            Measurement(
                name=name,
                value=math.fsum(parts_N) / count,
                unit=unit,
                higher_is_better=name.endswith("/top1"),
                stderr=sure.stderr,
                note=f"{count} window{'s' * (count > 1)} of {length} tokens, against the dense model's predictions",
                parts=parts_N,
                documents=windows.documents,
                degrees_of_freedom=sure.degrees_of_freedom,
            )
        )
    return found

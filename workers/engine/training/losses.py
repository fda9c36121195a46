"""Distance of the tuned model from the dense one. The loss on text is `model/loss.py`'s.

B = windows, T = tokens of one, N = predictions, V = vocabulary, K = tokens of it that are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import kl_div

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_REST = 1e-6
"""Least probability of the tokens not compared one by one: a lower one is lost in rounding the others' sum."""


@dataclass(frozen=True)
class Predictions:
    """The dense model's next-token distributions at a temperature."""

    logs: Tensor
    """Logarithms of probabilities, float32: of every token [N, V], or of the likeliest and of all others [N, K + 1]."""
    tokens_NK: Tensor | None
    """The likeliest, where only those are compared."""


def predictions(dense_BTV: Tensor, temperature: float, top_k: int | None = None) -> Predictions:
    """From the dense model's logits. The last position predicts nothing that is known, and is left out as in the loss
    on the text. `top_k`: of so many tokens, if the vocabulary is larger."""
    logits_NV = _scaled(dense_BTV, temperature)
    if top_k is None or top_k >= logits_NV.shape[1]:
        return Predictions(logits_NV.log_softmax(dim=1), None)
    tokens_NK = logits_NV.topk(top_k, dim=1).indices
    return Predictions(_of_some(logits_NV, tokens_NK), tokens_NK)


def distillation(logits_BTV: Tensor, dense: Predictions, temperature: float) -> Tensor:
    """KL divergence of the dense model's next-token distributions from the tuned one's, in nats a token.

    Times the temperature's square, which keeps its gradients as large as the text's (Hinton et al. 2015,
    arXiv:1503.02531). Over some tokens and the rest it is at most the divergence over all.
    """
    logits_NV = _scaled(logits_BTV, temperature)
    own = logits_NV.log_softmax(dim=1) if dense.tokens_NK is None else _of_some(logits_NV, dense.tokens_NK)
    return kl_div(own, dense.logs, reduction="batchmean", log_target=True) * temperature**2


def _scaled(logits_BTV: Tensor, temperature: float) -> Tensor:
    return logits_BTV[:, :-1].flatten(0, 1).float() / temperature


def _of_some(logits_NV: Tensor, tokens_NK: Tensor) -> Tensor:
    """Logarithms of the probabilities of those tokens and, last, of all others, [N, K + 1]."""
    logs_NK = logits_NV.gather(1, tokens_NK) - logits_NV.logsumexp(dim=1, keepdim=True)
    rest_N1 = -torch.expm1(logs_NK.logsumexp(dim=1, keepdim=True))
    return torch.cat([logs_NK, rest_N1.clamp_min(_LEAST_REST).log()], dim=1)

"""The loss of predicting the next token. It is computed nowhere else.

B = windows, T = tokens of a window, V = vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


_NO_TOKEN = -100
"""Predicted by nothing: cross_entropy leaves it out of its mean."""


def next_token_loss(logits_V: Tensor, next_: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
    """Negative log-likelihood in nats of tokens `next_` [...] under logits [..., V], in float32.

    `mean` is over all tokens; `none` gives each token's, [...].
    """
    found = cross_entropy(logits_V.flatten(0, -2).float(), next_.flatten(), reduction=reduction)
    return found if reduction == "mean" else found.view(next_.shape)


def loss_on_windows(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """`next_token_loss` of windows under their own logits, without a copy of these less the last of each window."""
    next_BT = ids_BT.roll(-1, dims=1)
    next_BT[:, -1] = _NO_TOKEN
    return next_token_loss(logits_BTV, next_BT)


def nll(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of each window's T - 1 predictions, float64 [B]."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    return next_token_loss(logits_BTV[:, :-1], ids_BT[:, 1:], "none").double().mean(dim=1)

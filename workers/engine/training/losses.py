"""Distance of the tuned model from the dense one. The loss on text is `model/loss.py`'s. B = windows, T = tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import kl_div

if TYPE_CHECKING:
    from torch import Tensor


def distillation(logits_BTV: Tensor, dense_BTV: Tensor, temperature: float) -> Tensor:
    """KL divergence of the dense model's next-token distributions from the tuned one's, in nats a token.

    Times the temperature's square, which keeps its gradients as large as the text's (Hinton et al. 2015,
    arXiv:1503.02531). The last position is left out, as in the loss on the text.
    """
    found = kl_div(
        (logits_BTV[:, :-1].flatten(0, 1).float() / temperature).log_softmax(dim=1),
        (dense_BTV[:, :-1].flatten(0, 1).float() / temperature).log_softmax(dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return found * temperature**2

"""A mixture computed expert by expert, so that what each of its layers reads can be seen.

transformers computes all experts of a block in one module, from tensors that hold all of them; which tokens go to which
expert is given to that module by the block. The weights are read when an expert's turn comes, so that they may be
changed in between. T = tokens, K = experts that a token is sent to, N = tokens of one expert, D = hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from workers.engine.architectures.parts import DOWN, GATE_UP, UP
from workers.engine.errors import UnsupportedModel
from workers.engine.model.replaced import replaced

if TYPE_CHECKING:
    from torch import Tensor, nn

Reader = Callable[[str, "Tensor"], None]
"""Called with a stream's name and its inputs [N, I], once a pass; there may be none."""


@contextmanager
def by_expert(experts: nn.Module, read: Reader, *, every: bool) -> Iterator[None]:
    """The module of all experts of a block calls `read` for every stream of every expert, within the context. `every`:
    each expert's streams are of all tokens, whichever are sent to it. Raises UnsupportedModel for a module of another
    kind."""
    if not hasattr(experts, GATE_UP) and not hasattr(experts, UP):
        raise _unknown(experts)
    compute = _Each(experts, read, every)
    forward: Callable[..., Tensor]
    if hasattr(experts, "is_transposed") or not compute.gated:
        if getattr(experts, "has_post_expert_norm", False):
            raise _unknown(experts)
        forward = compute.routed
    else:
        forward = compute.scaled
    with replaced(experts, forward):
        yield


class _Each:
    def __init__(self, experts: Any, read: Reader, every: bool) -> None:
        self.experts, self.read, self.every = experts, read, every
        self.gated = hasattr(experts, GATE_UP)
        self.first = GATE_UP if self.gated else UP
        self.count = len(getattr(experts, self.first))
        self.transposed = getattr(experts, "is_transposed", self.gated)

    def routed(self, hidden_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """The weighted sum over the experts of each token."""
        sum_TD = torch.zeros_like(hidden_TD)
        for expert in range(self.count):
            token_N, rank_N = torch.where(index_TK == expert)
            output_ND = self._output(expert, hidden_TD, token_N)
            sum_TD.index_add_(0, token_N, (output_ND * weight_TK[token_N, rank_N, None]).to(sum_TD.dtype))
        return sum_TD

    def scaled(self, hidden_ND: Tensor) -> Tensor:
        """Llama 4's experts, each of which is given all tokens, scaled by its weight, which is mostly zero."""
        inputs_ETD = hidden_ND.unflatten(0, (self.count, -1))
        outputs_ETD = torch.zeros_like(inputs_ETD)
        for expert in range(self.count):
            (token_N,) = torch.where((inputs_ETD[expert] != 0).any(dim=1))
            outputs_ETD[expert, token_N] = self._output(expert, inputs_ETD[expert], token_N)
        return outputs_ETD.flatten(0, 1)

    def _output(self, expert: int, hidden_TD: Tensor, token_N: Tensor) -> Tensor:
        x = hidden_TD if self.every else hidden_TD[token_N]
        self.read(f"expert_{expert}_input", x)
        both = self._linear(x, self.first, expert)
        if not self.gated:
            inner = self.experts.act_fn(both)
        elif hasattr(self.experts, "_apply_gate"):
            inner = self.experts._apply_gate(both)
        else:
            gate, up = both.chunk(2, dim=-1)
            inner = up * self.experts.act_fn(gate)
        self.read(f"expert_{expert}_hidden", inner)
        return self._linear(inner[token_N] if self.every else inner, DOWN, expert)

    def _linear(self, x: Tensor, name: str, expert: int) -> Tensor:
        weight = getattr(self.experts, name)[expert]
        bias = getattr(self.experts, f"{name}_bias", None)
        return torch.nn.functional.linear(
            x, weight.T if self.transposed else weight, None if bias is None else bias[expert]
        )


def _unknown(experts: nn.Module) -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(experts).__name__}: experts that are computed in a way that is not known",
        "use a score that looks at no activations, such as `magnitude`, or `depth`",
        field="/model/id",
    )

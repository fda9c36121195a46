"""The mixture of a block as the block itself uses it: which tokens go where, and what comes out.

Blocks of transformers call `router(hidden)`, which gives logits, weights and indices, and then `experts(hidden, index,
weight)`, whatever chose the experts: a softmax or sigmoids, groups, correction terms, renormalised or not. Weights are
read where the block passes them on, and never computed again.
T = tokens, K = experts that a token is sent to, D = hidden size, E = experts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workers.engine.architectures.mixtures import expert_of, mixture, of_each_expert
from workers.engine.architectures.parts import DOWN, GATE_UP
from workers.engine.errors import UnsupportedModel
from workers.engine.maths.experts import dense_weights
from workers.engine.model.replaced import replaced

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.loaded import LoadedModel

OUTPUT_BYTES = 2**26
"""Outputs of experts that are in memory at once, before they are added up."""


@dataclass(frozen=True)
class Routed:
    """The tokens of one pass through a mixture."""

    hidden_TD: Tensor
    """Inputs of the experts."""
    index_TK: Tensor
    """The experts that each token is sent to."""
    weight_TK: Tensor
    """The weights that their outputs are multiplied with."""
    asked: tuple[Any, ...]
    """The arguments of the router."""
    logits_TE: Tensor
    """Outputs of the router for each expert, before it chooses."""


@dataclass(frozen=True)
class Mixture:
    """The modules of one block's mixture."""

    router: nn.Module
    experts: nn.Module
    count: int
    """Number of experts."""
    axes: Mapping[str, int]
    """Parameters and buffers below the router -> their axis of experts."""

    @contextmanager
    def watched(
        self, read: Callable[[Routed], None], wrote: Callable[[Tensor], None] = lambda _: None
    ) -> Iterator[None]:
        """Call `read` with every pass before the experts run, and `wrote` with the sum [T, D] that they give, within
        the context."""
        asked: list[tuple[tuple[Any, ...], Tensor]] = []
        route, compute = self.router.forward, self.experts.forward

        def ask(*args: Any) -> Any:
            found = route(*args)
            asked.append((args, found[0].reshape(-1, found[0].shape[-1])))
            return found

        def forward(hidden_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
            read(Routed(hidden_TD, index_TK, weight_TK, *asked.pop()))
            output_TD: Tensor = compute(hidden_TD, index_TK, weight_TK)
            wrote(output_TD)
            return output_TD

        with replaced(self.router, ask), replaced(self.experts, forward):
            yield

    @contextmanager
    def only(self, kept: Sequence[int]) -> Iterator[None]:
        """The block sends tokens to these experts only, as if it had no others, within the context. The router may be
        filled later."""
        with replaced(self.router, lambda *args: self.narrowed(kept)(*args)):
            yield

    def narrowed(self, kept: Sequence[int]) -> Callable[..., Any]:
        """The router of a mixture that has these experts only. It gives their indices among all."""
        router = self._narrowed(kept)
        number_E = torch.tensor(list(kept), device=next(router.parameters()).device)

        def of_kept(argument: Any) -> Any:
            """Correction terms, which some mixtures hold themselves and pass to their router."""
            of_experts = isinstance(argument, torch.Tensor) and argument.shape == (self.count,)
            return argument[number_E] if of_experts else argument

        def route(*args: Any) -> Any:
            logits, weight_TK, index_TK, *others = router(*map(of_kept, args))
            return logits, weight_TK, number_E[index_TK], *others

        return route

    def _narrowed(self, kept: Sequence[int]) -> nn.Module:
        """A copy of the router with these experts only, numbered anew."""
        router = copy.deepcopy(self.router)
        router.__dict__.pop("forward", None)  # of a mixture that is watched
        number_E = torch.tensor(list(kept), device=next(router.parameters()).device)
        for name, axis in self.axes.items():
            path, _, own = name.rpartition(".")
            module = router.get_submodule(path)
            part = getattr(module, own).detach().index_select(axis, number_E)
            setattr(module, own, nn.Parameter(part, False) if own in module._parameters else part)
        for module in router.modules():
            if hasattr(module, "num_experts"):
                setattr(module, "num_experts", len(kept))  # noqa: B010 (a module's attributes are typed as tensors)
        return router

    def weights_of(self, kept: Sequence[int], asked: tuple[Any, ...]) -> Tensor:
        """The weight of every expert [T, E] by a router that has the kept ones only, asked the same."""
        _, weight_TK, index_TK, *_ = self.narrowed(kept)(*asked)
        return self.weights(index_TK, weight_TK)

    def weights(self, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """The weight of every expert [T, E], zero of those that a token is not sent to."""
        return dense_weights(index_TK, weight_TK, self.count)

    def outputs(self, hidden_TD: Tensor, index_TK: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """(tokens, unweighted outputs [T, K, D] of the experts of each), some tokens at a time, by the module's own
        computation."""
        chosen = index_TK.shape[1]
        step = max(1, OUTPUT_BYTES // (chosen * hidden_TD[:1].nbytes))
        for start in range(0, len(hidden_TD), step):
            index_PK = index_TK[start : start + step]
            pair_P1 = index_PK.reshape(-1, 1)  # a token for each of its experts, so that none is added to another
            hidden_PD = hidden_TD[start : start + step].repeat_interleave(chosen, dim=0)
            output_PD = type(self.experts).forward(self.experts, hidden_PD, pair_P1, hidden_PD.new_ones(pair_P1.shape))
            yield slice(start, start + len(index_PK)), output_PD.unflatten(0, (-1, chosen))

    def every(self, tokens: int) -> Tensor:
        """The indices of all experts for so many tokens [T, E]."""
        device = next(self.experts.parameters()).device
        return torch.arange(self.count, device=device).expand(tokens, -1)


class ScaledInputs(Mixture):
    """Llama 4's mixture. The router gives every expert's weight [T, E], a sigmoid where a token is sent and else 0, and
    the experts are given all tokens times it, [E T, D]; their outputs are added up as they are.

    So the weight of an output is 1, and what an expert makes of a token does not depend on which others there are.
    """

    @contextmanager
    def watched(
        self, read: Callable[[Routed], None], wrote: Callable[[Tensor], None] = lambda _: None
    ) -> Iterator[None]:
        asked: list[tuple[tuple[Any, ...], Tensor, Tensor]] = []
        route, compute = self.router.forward, self.experts.forward

        def ask(*args: Any) -> Any:
            scale_TE, logits_TE = route(*args)
            asked.append((args, logits_TE, scale_TE))
            return scale_TE, logits_TE

        def forward(scaled_ND: Tensor) -> Tensor:
            args, logits_TE, scale_TE = asked.pop()
            weight_TK, index_TK = (scale_TE > 0).to(scale_TE.dtype).topk(self.router.top_k, dim=1)  # type: ignore[arg-type]
            read(Routed(args[0].reshape(len(scale_TE), -1), index_TK, weight_TK, args, logits_TE))
            output_ND: Tensor = compute(scaled_ND)
            wrote(output_ND.unflatten(0, (self.count, -1)).sum(dim=0))
            return output_ND

        with replaced(self.router, ask), replaced(self.experts, forward):
            yield

    def narrowed(self, kept: Sequence[int]) -> Callable[..., Any]:
        route = self._narrowed(kept)

        def scattered(*args: Any) -> Any:
            scale_TN, logits_TN = route(*args)
            scale_TE = scale_TN.new_zeros(len(scale_TN), self.count)
            scale_TE[:, list(kept)] = scale_TN
            return scale_TE, logits_TN

        return scattered

    def weights_of(self, kept: Sequence[int], asked: tuple[Any, ...]) -> Tensor:
        scale_TE, _ = self.narrowed(kept)(*asked)
        return (scale_TE > 0).to(scale_TE.dtype)

    def outputs(self, hidden_TD: Tensor, index_TK: Tensor) -> Iterator[tuple[slice, Tensor]]:
        scale_TE = torch.nn.Linear.forward(self.router, hidden_TD).float().sigmoid().to(hidden_TD.dtype)  # type: ignore[arg-type]
        both, down, act = (getattr(self.experts, name) for name in (GATE_UP, DOWN, "act_fn"))
        step = max(1, OUTPUT_BYTES // (index_TK.shape[1] * hidden_TD[:1].nbytes))
        for start in range(0, len(hidden_TD), step):
            part = slice(start, min(start + step, len(hidden_TD)))
            output_PKD = hidden_TD.new_zeros(*index_TK[part].shape, hidden_TD.shape[1])
            for expert in range(self.count):
                token_N, place_N = torch.where(index_TK[part] == expert)
                x_ND = hidden_TD[part][token_N] * scale_TE[part][token_N, expert, None]
                gate_NI, up_NI = (x_ND @ both[expert]).chunk(2, dim=1)
                output_PKD[token_N, place_N] = (up_NI * act(gate_NI)) @ down[expert]
            yield part, output_PKD


def mixture_in(model: LoadedModel, block: int, module: nn.Module) -> Mixture | None:
    """The mixture of a block, whose module is given; None where it has none. Raises UnsupportedModel for one that is
    called in another way."""
    architecture = model.architecture
    facts = mixture(architecture, block)
    if facts is None:
        return None
    layout = architecture.layout
    layer = next(layer.name for layer in architecture.block(block) if expert_of(layout, layer.name) is not None)
    parent, _, own = layout.below(layout.host(layer)).rpartition(".")
    around = module.get_submodule(parent)
    experts = around.get_submodule(own)
    name = next((name for name in ("gate", "router") if isinstance(getattr(around, name, None), nn.Module)), None)
    scaled = any(part.reads_all for part in layout.mlps)
    if name is None or not (scaled or hasattr(experts, "has_gate")):
        raise UnsupportedModel(
            f"{architecture.model_type}: its blocks call their experts in a way that is not known",
            "remove blocks with `depth`, or weights",
            field="/prune",
        )
    router = around.get_submodule(name)
    prefix = f"{layout.in_module(layout.block(block))}.{parent + '.' if parent else ''}{name}."
    named = {layout.in_module(full): axis for full, axis in of_each_expert(architecture, model.source.tensors).items()}
    axes = {full.removeprefix(prefix): axis for full, axis in named.items() if full.startswith(prefix)}
    return (ScaledInputs if scaled else Mixture)(router, experts, facts.experts, axes)

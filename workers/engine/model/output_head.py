"""The output head: logits from the last block's outputs, by the model's own code, as some families scale or cap them.

T = tokens, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, MoeModelOutputWithPast

from workers.engine.model.loaded import filled, head_tensors, tensors_of
from workers.engine.model.replaced import replaced

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.engine.model.replaced import replaced
from workers.engine.model.loaded import LoadedModel


class _Decoded(MoeModelOutputWithPast, BaseModelOutputWithPastAndCrossAttentions):
    """A decoder's output with every part that a model may look for."""


@contextmanager
def head(model: LoadedModel) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from the last block's outputs [T, D] to logits [T, V], float32."""
    layout = model.architecture.layout
    decoder = model.skeleton.get_submodule(layout.in_module(layout.decoder))
    with ExitStack() as stack:
        stack.enter_context(filled(model, layout.head, head_tensors(model)))
        ending = []  # of the decoder
        for name in (layout.final_norm, *layout.after):
            if _has(model.skeleton, layout.in_module(name)):
                module = stack.enter_context(filled(model, name, tensors_of(model, name)))
                ending += [module] * name.startswith(f"{layout.decoder}.")

        def decoded(*_: Any, inputs_embeds: Tensor, **__: Any) -> _Decoded:
            for module in ending:
                inputs_embeds = module(inputs_embeds)
            return _Decoded(last_hidden_state=inputs_embeds)

        stack.enter_context(replaced(decoder, decoded))
        yield lambda hidden_TD: model.skeleton(inputs_embeds=hidden_TD[None], use_cache=False).logits[0].float()


def _has(model: nn.Module, name: str) -> bool:
    """Whether a model has a module, of those that only some of its family have."""
    parent, _, own = name.rpartition(".")
    return getattr(model.get_submodule(parent), own, None) is not None

"""The output head: logits from the last block's outputs, by the model's own code, as some families scale or cap them.

T = tokens, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers.modeling_outputs import BaseModelOutputWithPast

from workers.engine.model.loaded import filled, head_tensors, tensors_of

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.loaded import LoadedModel


@contextmanager
def head(model: LoadedModel) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from the last block's outputs [T, D] to logits [T, V], float32."""
    layout = model.architecture.layout
    with (
        filled(model, layout.final_norm, tensors_of(model, layout.final_norm)) as norm,
        filled(model, layout.head, head_tensors(model)),
    ):

        def decoded(*_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutputWithPast:
            return BaseModelOutputWithPast(last_hidden_state=norm(inputs_embeds))

        decoder = model.skeleton.get_submodule(layout.decoder)
        decoder.forward = decoded  # on the instance, so the class is not changed
        try:
            yield lambda hidden_TD: model.skeleton(inputs_embeds=hidden_TD[None], use_cache=False).logits[0].float()
        finally:
            del decoder.forward

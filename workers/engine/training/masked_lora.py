"""LoRA (Hu et al. 2021, arXiv:2106.09685) whose update keeps pruned weights at zero; otherwise peft's layer.

The update of a masked layer is M * (s B A), in the forward pass as in the merge, so what is trained is what ships. M is
the non-zeros of the frozen weight; the update is recomputed in the backward pass instead of being kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from workers.engine.training.trainable import mask_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

ADAPTER = "default"


class MaskedLora(Linear):
    """peft's LoRA layer, masked where its weight holds zeros. GPT-2's Conv1D holds it as [I, O], and its update."""

    def __init__(self, base_layer: nn.Linear | Conv1D, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, config=config, **kwargs)
        self.is_target_conv_1d_layer = self.fan_in_fan_out = isinstance(base_layer, Conv1D)
        self.masked = mask_of(base_layer.weight) is not None

    def get_delta_weight(self, adapter: str) -> Tensor:
        delta = super().get_delta_weight(adapter)
        return delta * (self.get_base_layer().weight != 0) if self.masked else delta

    def forward(self, x: Tensor) -> Tensor:
        if not self.masked:
            return super().forward(x)
        base: Tensor = self.base_layer(x)
        dropped = self.lora_dropout[ADAPTER](x.to(self.lora_A[ADAPTER].weight.dtype))
        update: Tensor = checkpoint(
            lambda inputs: linear(inputs, self._update()),
            dropped,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return base + update.to(base.dtype)

    def _update(self) -> Tensor:
        """[O, I]."""
        delta = self.get_delta_weight(ADAPTER)
        return delta.T if self.fan_in_fan_out else delta


def injected(
    model: nn.Module, names: list[str], *, rank: int, alpha: float, dropout: float, unmasked: Sequence[str] = ()
) -> dict[str, MaskedLora]:
    """Put an adapter on each named linear layer; everything else is frozen. Adapters are float32. `unmasked`: layers
    whose zeros are no pruning's."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, bias="none")
    config._register_custom_module({nn.Linear: MaskedLora, Conv1D: MaskedLora})
    # Of a model of transformers, peft takes some of these names for those of experts, as files name them.
    inject_adapter_in_model(config, nn.ModuleList([model]), ADAPTER)
    layers = {name: layer for name, layer in model.named_modules() if name in names and isinstance(layer, MaskedLora)}
    for layer in layers.values():
        layer.lora_A.float()
        layer.lora_B.float()
    for name in unmasked:
        layers[name].masked = False
    return layers

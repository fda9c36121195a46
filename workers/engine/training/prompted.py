"""A prompt that a model reads before every window while it trains.

B = windows, T = tokens of a window, P = tokens of the prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from workers.engine.model.windows import opening_ids, refuse_unknown
from workers.engine.planning.text_length import check_prompt
from workers.engine.sources.texts.token_ids import token_ids

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.engine.contracts.train_params import TrainMethodParams
    from workers.engine.model.loaded import LoadedModel


def prompt_ids(params: TrainMethodParams, dense: LoadedModel) -> tuple[Tensor, int]:
    """(ids of the text that `params` has the model read first, int64 [P]; how many tokens of every window stay in front
    of it). Raises SequenceTooLong where text and window exceed the context, UnsupportedModel for unknown tokens."""
    ids_P = torch.tensor(token_ids(dense.tokenizer, params.read_first, special=False), dtype=torch.int64)
    refuse_unknown(ids_P, dense.architecture.vocabulary, dense.tokenizer, "of the prompt")
    check_prompt(params, len(ids_P), dense.architecture.context_length)
    return ids_P, len(opening_ids(dense.tokenizer, params.bos, "/train"))


def prompted(model: nn.Module, prompt_P: Tensor, front: int) -> None:
    """Make the model read the prompt whenever it is in training mode; its logits are those of the windows' tokens, of
    which the first after the prompt is foreseen by the prompt's last. `front`: how many tokens at the beginning of a
    window stay in front."""

    def read(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not model.training:
            return args, given
        ids_BT = given["input_ids"]
        prompt_BP = prompt_P.to(ids_BT.device).expand(len(ids_BT), -1)
        return args, given | {"input_ids": torch.cat([ids_BT[:, :front], prompt_BP, ids_BT[:, front:]], dim=1)}

    def leave_out(_: nn.Module, __: Any, output: Any) -> Any:
        if model.training:
            output.logits = output.logits[:, len(prompt_P) :]
        return output

    model.register_forward_pre_hook(read, with_kwargs=True)
    model.register_forward_hook(leave_out)

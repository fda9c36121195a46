"""Generation speed: tokens per second of reading a prompt (prefill) and of writing after it (decode).

They are measured apart: prefill is bound by arithmetic, decode by reading the weights once per token. Dense and pruned
take turns, and how they compare is estimated from pairs. B = sequences, T = prompt tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from workers.engine.contracts.facts import Probe
from workers.engine.contracts.params import MethodParams
from workers.engine.registry import paired_evaluator

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.evaluation import EvaluationContext

MARGIN = 0.05
"""Two copies of one model differ by up to some percent, by where in memory they lie."""
TURN_TOKENS = 8
"""Tokens decoded in a turn. With more, other work starts or stops within a turn more often; with fewer, the first
tokens weigh more, which find the caches full of the other model."""


class GenerationSpeedParams(MethodParams):
    """Prefill and decode tokens per second."""

    method: Literal["generation_speed"] = Field(
        "generation_speed", description="Prefill and decode tokens per second of plain transformers, greedy."
    )
    prompt_tokens: int = Field(128, ge=1, le=131072, description="Tokens of each prompt (random ids from the seed).")
    new_tokens: int = Field(32, ge=1, le=8192, description="Tokens written after each prompt; nothing stops earlier.")
    batch_size: int = Field(1, ge=1, le=256, description="Sequences generated together.")
    repeats: int = Field(
        6,
        ge=2,
        le=100,
        description="Times each model reads and writes at least, in turn with the other. On a disturbed machine it "
        "goes on for up to a minute each of prefill and decode, until the interval of the ratio is narrow.",
    )
    warmup: int = Field(1, ge=0, le=100, description="Times before the clock starts.")

    @property
    def timed_tokens(self) -> tuple[int, int]:
        return self.batch_size * self.prompt_tokens, self.batch_size * (self.prompt_tokens + self.new_tokens)

    @property
    def measures(self) -> tuple[str, ...]:
        return "generation_speed/prefill", "generation_speed/decode"


@paired_evaluator(GenerationSpeedParams)
def evaluate(context: EvaluationContext, params: GenerationSpeedParams) -> list[Probe]:
    """`generation_speed/prefill` and `generation_speed/decode`, tokens/s summed over the batch.

    Raises SequenceTooLong if prompt and new tokens exceed the context.
    """
    import torch

    context.check_fits(params.prompt_tokens + params.new_tokens, "prompt_tokens")
    prompt_BT = torch.randint(
        context.model.config.get_text_config().vocab_size,
        (params.batch_size, params.prompt_tokens),
        generator=torch.Generator().manual_seed(context.seed),
    ).to(context.device)
    writing = Writing(context, prompt_BT, params.new_tokens)
    for _ in range(params.warmup):
        writing.prefill()
        for _ in range(writing.turns):
            writing.decode()
    shape = f"{params.batch_size} x {params.prompt_tokens} + {params.new_tokens} tokens"
    return [
        Probe("generation_speed/prefill", "tokens/s", True, MARGIN, params.repeats, shape, writing.prefill),
        Probe(
            "generation_speed/decode", "tokens/s", True, MARGIN, params.repeats * writing.turns, shape, writing.decode
        ),
    ]


class Writing:
    """Greedy continuations of one prompt by one model, over and over, with a clock."""

    def __init__(self, context: EvaluationContext, prompt_BT: Tensor, new_tokens: int) -> None:
        self._context, self._prompt_BT, self._new_tokens = context, prompt_BT, new_tokens
        self.turns = math.ceil(new_tokens / TURN_TOKENS)
        """Of `decode` that write all new tokens."""
        self._written = new_tokens
        self._output: Any = None

    def prefill(self) -> float:
        """Read the prompt; tokens/s."""
        started_s = self._time_s()
        # Only the last position's logits, as `generate` asks for: the rest is no part of reading a prompt.
        self._output = self._context.model(input_ids=self._prompt_BT, use_cache=True, logits_to_keep=1)
        self._written = 0
        return self._prompt_BT.numel() / (self._time_s() - started_s)

    def decode(self) -> float:
        """Write on for a turn, one forward pass a token, from the prompt again where all is written; tokens/s."""
        if self._written >= self._new_tokens:
            self.prefill()
        tokens = min(math.ceil(self._new_tokens / self.turns), self._new_tokens - self._written)
        started_s = self._time_s()
        for _ in range(tokens):
            next_B1 = self._output.logits[:, -1:].argmax(dim=-1)
            self._output = self._context.model(
                input_ids=next_B1, past_key_values=self._output.past_key_values, use_cache=True
            )
        self._written += tokens
        return self._prompt_BT.shape[0] * tokens / (self._time_s() - started_s)

    def _time_s(self) -> float:
        from workers.engine.store.clock import device_time_s

        return device_time_s(self._context.device)

"""Generation speed: tokens per second of reading a prompt (prefill) and of writing after it (decode).

Both are measured apart because they are bound by different things: prefill by arithmetic, decode by reading the
weights once per token. B = sequences, T = prompt tokens.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.registry import MethodParams, evaluator
from workers.engine.stats import Measurement

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.stages.evaluate import EvaluationContext


class GenerationSpeedParams(MethodParams):
    """Prefill and decode tokens per second."""

    method: Literal["generation_speed"] = Field(
        "generation_speed", description="Prefill and decode tokens per second of plain transformers, greedy."
    )
    prompt_tokens: int = Field(128, ge=1, le=131072, description="Tokens of each prompt (random ids from the seed).")
    new_tokens: int = Field(32, ge=1, le=8192, description="Tokens written after each prompt; nothing stops earlier.")
    batch_size: int = Field(1, ge=1, le=256, description="Sequences generated together.")
    repeats: int = Field(5, ge=2, le=100, description="Timed rounds; the median is reported.")
    warmup: int = Field(2, ge=0, le=100, description="Rounds before the clock starts.")

    @property
    def measures(self) -> tuple[str, ...]:
        return "generation_speed/prefill", "generation_speed/decode"


@evaluator(GenerationSpeedParams)
def evaluate(context: EvaluationContext, params: GenerationSpeedParams) -> list[Measurement]:
    """`generation_speed/prefill` and `generation_speed/decode`, tokens/s summed over the batch.

    The value is the median of the rounds, the spread (`stderr`) half their interquartile range: of four and more rounds
    that is no less than the median's standard error, were they normally distributed. Raises SequenceTooLong if prompt
    and new tokens exceed the context.
    """
    import torch

    context.check_fits(params.prompt_tokens + params.new_tokens, "prompt_tokens")
    prompt_BT = torch.randint(
        context.model.config.vocab_size,
        (params.batch_size, params.prompt_tokens),
        generator=torch.Generator().manual_seed(context.seed),
    ).to(context.device)
    rounds = [time_round(context, prompt_BT, params.new_tokens) for _ in range(params.warmup + params.repeats)]
    prefill_s, decode_s = zip(*rounds[params.warmup :], strict=True)

    shape = f"{params.batch_size} x {params.prompt_tokens} + {params.new_tokens} tokens"
    return [
        _measurement("prefill", [prompt_BT.numel() / elapsed_s for elapsed_s in prefill_s], shape),
        _measurement("decode", [params.batch_size * params.new_tokens / elapsed_s for elapsed_s in decode_s], shape),
    ]


def time_round(context: EvaluationContext, prompt_BT: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds to read the prompt, and to decode `new_tokens` greedy tokens one forward pass each."""
    from workers.engine.clock import device_time_s

    started = device_time_s(context.device)
    # Only the last position's logits, as `generate` asks for: the rest is no part of reading a prompt.
    output = context.model(input_ids=prompt_BT, use_cache=True, logits_to_keep=1)
    prefilled = device_time_s(context.device)
    for _ in range(new_tokens):
        next_B1 = output.logits[:, -1:].argmax(dim=-1)
        output = context.model(input_ids=next_B1, past_key_values=output.past_key_values, use_cache=True)
    return prefilled - started, device_time_s(context.device) - prefilled


def _measurement(phase: str, tokens_per_s: list[float], shape: str) -> Measurement:
    lower, _, upper = statistics.quantiles(tokens_per_s, n=4, method="inclusive")
    return Measurement(
        name=f"generation_speed/{phase}",
        value=statistics.median(tokens_per_s),
        unit="tokens/s",
        higher_is_better=True,
        stderr=(upper - lower) / 2,
        note=f"{shape}; median of {len(tokens_per_s)} ± half the interquartile range",
    )

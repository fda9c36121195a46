"""Mixtures that skip experts: one whose weight is less than a share of the largest does not run for that token.

Needs only transformers, 5.14 or newer:

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

`config.betas` has the share of each block (Lu et al. 2024, NAEE, arXiv:2402.14800, section 3.3). The weights of the
others keep their sum. Skipped experts cost no product in the implementations "eager" and "grouped_mm" (the default);
"batched_mm" computes them and gives the same. Without `trust_remote_code` the model loads and skips nothing.
"""

from transformers import MixtralForCausalLM, OlmoeForCausalLM, Qwen2MoeForCausalLM, Qwen3MoeForCausalLM


class Skips:
    """The family's model, whose routers name no expert in the place of a skipped one."""

    def __init__(self, config):
        super().__init__(config)
        for number, block in enumerate(self.model.layers):
            if str(number) in config.betas:
                skip(block.mlp, float(config.betas[str(number)]))


def skip(mixture, beta):
    """Let a block's router skip experts."""
    experts = mixture.experts
    experts._is_expert_parallel = True  # an index beyond the last expert then stands for none, as on other devices

    def hook(router, args, output):
        logits, weights, index = output[:3]
        largest, first = weights.max(dim=-1, keepdim=True)
        skipped = (weights < beta * largest).scatter(-1, first, False)
        left = weights.masked_fill(skipped, 0)
        left = left * (weights.sum(dim=-1, keepdim=True) / left.sum(dim=-1, keepdim=True))
        return (logits, left, index.masked_fill(skipped, experts.num_experts), *output[3:])

    mixture.gate.register_forward_hook(hook)


class SkippingMixtralForCausalLM(Skips, MixtralForCausalLM):
    pass


class SkippingQwen2MoeForCausalLM(Skips, Qwen2MoeForCausalLM):
    pass


class SkippingQwen3MoeForCausalLM(Skips, Qwen3MoeForCausalLM):
    pass


class SkippingOlmoeForCausalLM(Skips, OlmoeForCausalLM):
    pass

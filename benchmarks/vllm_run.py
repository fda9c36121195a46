"""The peer's half of `benchmarks.runtimes`: vLLM reads a prompt and goes on. Runs in vLLM's own environment.

    python vllm_run.py MODEL REQUEST OUT

REQUEST is a JSON file: token ids `prompt`, number `tokens` to add greedily, `batch` of prompts to time them with.
OUT: log-probabilities of the prompt's tokens after the first, the tokens added, seconds. Imports nothing of ours.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    model, request_file, out = map(Path, sys.argv[1:])
    request = json.loads(request_file.read_text())
    prompt, tokens = request["prompt"], request["tokens"]
    llm = LLM(
        str(model),
        dtype="float32",
        skip_tokenizer_init=True,
        trust_remote_code=True,
        enforce_eager=True,  # no compilation: it takes longer than all else here
        enable_prefix_caching=False,
        max_model_len=len(prompt) + tokens,
    )
    greedy = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True, "detokenize": False}
    (answer,) = llm.generate({"prompt_token_ids": prompt}, SamplingParams(prompt_logprobs=0, **greedy), use_tqdm=False)
    seconds = []
    for _ in range(request["repeats"] + 1):
        started = time.perf_counter()
        llm.generate([{"prompt_token_ids": prompt}] * request["batch"], SamplingParams(**greedy), use_tqdm=False)
        seconds.append(time.perf_counter() - started)
    found = {
        "logprobs": [entry[token].logprob for entry, token in zip(answer.prompt_logprobs[1:], prompt[1:], strict=True)],
        "tokens": list(answer.outputs[0].token_ids),
        "seconds": statistics.median(seconds[1:]),
    }
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

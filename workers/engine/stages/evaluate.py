"""Evaluate: every measurement of the spec, on the dense and on the pruned model, in one run with one data set.

The models are loaded as any user would load them, from their folders by plain transformers, so that the pruned half
is also the test that the result loads. One is held at a time.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from workers.engine.data import load_tokens
from workers.engine.errors import CheckpointMismatch, NumericalFailure, SequenceTooLong, UnsupportedModel
from workers.engine.registry import method_of
from workers.engine.report import Metric
from workers.engine.stats import Measurement

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from workers.engine.checkpoint import Checkpoint
    from workers.engine.data import Tokens
    from workers.engine.events import Events
    from workers.engine.refs import DataRef
    from workers.engine.sources import Sources
    from workers.engine.spec import CompressionSpec

DENSE_MEASUREMENTS = "dense-measurements"


@dataclass
class EvaluationData:
    """What both models are measured on: read once, so that they cannot differ."""

    digests: dict[str, str] = field(default_factory=dict)
    """Data label -> `sha256:` digest of what was read."""
    tokens: dict[tuple[str, int | None], Tokens] = field(default_factory=dict)

    def record(self, label: str, digest: str) -> None:
        """Note what was read under `label`. Raises CheckpointMismatch if it was something else before."""
        known = self.digests.setdefault(label, digest)
        if known != digest:
            raise CheckpointMismatch(
                f"{label}: the data changed while the dense and the pruned model were measured",
                "leave data files alone while a job runs, and submit the job again",
            )


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluator sees: one loaded model, and where things come from."""

    model: PreTrainedModel
    """In eval mode, on `device`, with parameters of the spec's compute dtype."""
    tokenizer: PreTrainedTokenizerBase
    model_dir: Path
    """Folder the model was loaded from; its safetensors files are the weights as stored."""
    device: torch.device
    seed: int
    sources: Sources
    events: Events
    data: EvaluationData
    pointer: str
    """JSON pointer of the evaluation in the spec, e.g. `/evaluate/0`, for errors."""

    def check_fits(self, tokens: int, parameter: str) -> None:
        """Raise SequenceTooLong, naming `parameter` of the evaluation, if the model cannot attend to so many tokens."""
        context_length = int(self.model.config.max_position_embeddings)
        if tokens > context_length:
            raise SequenceTooLong(
                f"{tokens} tokens at once do not fit the model's context of {context_length}",
                f"lower `{parameter}`",
                field=f"{self.pointer}/{parameter}",
            )

    def load_tokens(self, ref: DataRef, max_characters: int | None) -> Tokens:
        """The token ids of the first `max_characters` of `ref`, or a little more; tokenised once per run."""
        key = (ref.label, max_characters)
        if key not in self.data.tokens:
            self.data.tokens[key] = load_tokens(
                ref, self.tokenizer, self.sources, self.pointer, max_characters=max_characters
            )
        return self.data.tokens[key]


@dataclass(frozen=True)
class Evaluation:
    """What the stage found."""

    metrics: list[Metric]
    data_digests: dict[str, str]
    """Data label -> `sha256:` digest of what was read."""


def evaluate(
    spec: CompressionSpec,
    dense_dir: Path,
    pruned_dir: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    sources: Sources,
    events: Events,
    checkpoint: Checkpoint,
) -> Evaluation:
    """Measure both models. The dense one's numbers go into the checkpoint: a retry does not measure them again.

    Without measurements in the spec no model is loaded, so that a model larger than memory can still be pruned.
    """
    if not spec.evaluate:
        return Evaluation([], {})
    data = EvaluationData()
    total = 2 * len(spec.evaluate)

    def measure(model_dir: Path, done: int) -> list[Measurement]:
        model = load_model(model_dir, device, getattr(torch, spec.compute.dtype))
        found: list[Measurement] = []
        for index, params in enumerate(spec.evaluate):
            context = EvaluationContext(
                model, tokenizer, model_dir, device, spec.seed, sources, events, data, f"/evaluate/{index}"
            )
            with torch.inference_mode():
                found += method_of("evaluate", params).function(context, params)
            events.progress(done + index + 1, total, "measurement")
        _refuse_non_finite(found)
        return found

    saved = checkpoint.load_json(DENSE_MEASUREMENTS)
    if saved is None:
        dense = measure(dense_dir, 0)
        gc.collect()  # the dense model must be gone before the pruned one is loaded
        checkpoint.save_json(
            DENSE_MEASUREMENTS, {"measurements": [asdict(found) for found in dense], "data_digests": data.digests}
        )
    else:
        dense = [Measurement(**found) for found in saved["measurements"]]
        data.digests.update(saved["data_digests"])
        events.progress(len(spec.evaluate), total, "measurement")
    pruned = measure(pruned_dir, len(spec.evaluate))
    return Evaluation(join(dense, pruned), data.digests)


def load_model(model_dir: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `model_dir`, in eval mode, by plain transformers: safetensors only, none of its author's code.

    Raises UnsupportedModel where the files lack weights of the architecture, which transformers would fill with
    random numbers and a warning.
    """
    model, loading = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):
        raise UnsupportedModel(
            f"{model_dir.name}: {len(missing)} weights of the architecture are not in its files, first {missing[0]}",
            "use a complete checkpoint whose config.json describes its weights",
            field="/model/id",
        )
    return model.to(device).eval()


def join(dense: list[Measurement], pruned: list[Measurement]) -> list[Metric]:
    """Pair what was measured on the two models, in the spec's order.

    Where two evaluations give the same name (one data set at two lengths), the second is `name#2`, and so on.
    """
    seen: Counter[str] = Counter()
    metrics = []
    for before, after in zip(dense, pruned, strict=True):
        if before.name != after.name:
            raise ValueError(f"{before.name} of the dense model stands against {after.name} of the pruned one")
        seen[after.name] += 1
        repeat = f"#{seen[after.name]}" if seen[after.name] > 1 else ""
        metrics.append(
            Metric(
                name=after.name + repeat,
                unit=after.unit,
                higher_is_better=after.higher_is_better,
                dense=before.value,
                pruned=after.value,
                ratio=after.value / before.value if before.value else None,
                dense_stderr=before.stderr,
                pruned_stderr=after.stderr,
                note=after.note,
            )
        )
    return metrics


def _refuse_non_finite(measurements: list[Measurement]) -> None:
    for found in measurements:
        if not math.isfinite(found.value):
            raise NumericalFailure(
                f"{found.name} is {found.value}",
                "the model's outputs are not finite: lower the sparsity, or compute in float32",
                field="/evaluate",
            )

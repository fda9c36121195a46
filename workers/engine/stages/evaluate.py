"""Evaluate: every measurement of the spec, on the dense and on the pruned model, in one run with one data set.

The models are loaded as any user would load them, from their folders by plain transformers, so that the pruned half
is also the test that the result loads. One is held at a time; where one does not fit, its blocks are, one at a time.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from workers.engine.architectures.llama import BLOCKS
from workers.engine.comparison import compared
from workers.engine.data import load_tokens
from workers.engine.errors import CheckpointMismatch, NumericalFailure, SequenceTooLong
from workers.engine.estimate import evaluates_whole
from workers.engine.registry import method_of
from workers.engine.report import Metric, Sample
from workers.engine.stages.calibrate import Calibration
from workers.engine.stages.load import LoadedModel, load_model, load_result, memory_budget, result_of, tensors_of
from workers.engine.stages.stream import StreamedLoss
from workers.engine.stats import Measurement

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from workers.engine.checkpoint import Checkpoint
    from workers.engine.data import Tokens, Wanted
    from workers.engine.events import Events
    from workers.engine.refs import DataRef
    from workers.engine.report import TextReport
    from workers.engine.sources import Sources
    from workers.engine.spec import CompressionSpec

DENSE_MEASUREMENTS = "dense-measurements"


@dataclass
class EvaluationData:
    """What both models are measured on: read once, so that they cannot differ."""

    digests: dict[str, str] = field(default_factory=dict)
    """Data label -> `sha256:` digest of what was read."""
    tokens: dict[tuple[DataRef, Wanted], Tokens] = field(default_factory=dict)

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

    loaded: LoadedModel
    """The model's files and structure."""
    whole: PreTrainedModel | None
    """In eval mode, on `device`, with parameters of the spec's compute dtype; None where it does not fit in memory."""
    seed: int
    sources: Sources
    events: Events
    data: EvaluationData
    checkpoint: Checkpoint
    pointer: str
    """JSON pointer of the evaluation in the spec, e.g. `/evaluate/0`, for errors."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    @property
    def model_dir(self) -> Path:
        """Folder the model was loaded from; its safetensors files are the weights as stored."""
        return self.loaded.path

    @property
    def device(self) -> torch.device:
        return self.loaded.device

    @property
    def model(self) -> PreTrainedModel:
        """The whole model, for evaluators that declare that they need it."""
        assert self.whole is not None  # `evaluates_whole` saw to it
        return self.whole

    def window_nll(self, windows_NT: Tensor, batch_size: int) -> Tensor:
        """Mean negative log-likelihood in nats of each window's T - 1 predictions, float64 [N] on the CPU."""
        if self.whole is None:
            text = Calibration(windows_NT, self.pointer)
            blocks = range(self.loaded.architecture.blocks)
            with closing(StreamedLoss(self.loaded, text, self.checkpoint, keep_path=False)) as streamed:
                return streamed.nll(blocks, lambda block: tensors_of(self.loaded, f"{BLOCKS}.{block}"))
        return torch.cat([nll(self.whole, ids_BT.to(self.device)) for ids_BT in windows_NT.split(batch_size)])

    def check_fits(self, tokens: int, parameter: str) -> None:
        """Raise SequenceTooLong, naming `parameter` of the evaluation, if the model cannot attend to so many tokens."""
        context_length = self.loaded.architecture.context_length
        if tokens > context_length:
            raise SequenceTooLong(
                f"{tokens} tokens at once do not fit the model's context of {context_length}",
                f"lower `{parameter}`",
                field=f"{self.pointer}/{parameter}",
            )

    def load_tokens(self, ref: DataRef, wanted: Wanted) -> Tokens:
        """The token ids of `ref`, as many as are wanted; tokenised once per run."""
        if (ref, wanted) not in self.data.tokens:
            self.data.tokens[ref, wanted] = load_tokens(
                ref,
                self.tokenizer,
                self.sources,
                self.pointer,
                wanted,
                vocabulary=self.loaded.architecture.vocabulary,
            )
        return self.data.tokens[ref, wanted]


@dataclass(frozen=True)
class Evaluation:
    """What the stage found."""

    metrics: list[Metric]
    samples: list[Sample]
    data_digests: dict[str, str]
    """Data label -> `sha256:` digest of what was read."""
    texts: list[TextReport]


def evaluate(
    spec: CompressionSpec,
    dense: LoadedModel,
    pruned_dir: Path,
    *,
    sources: Sources,
    events: Events,
    checkpoint: Checkpoint,
    check_ratio: Callable[[float], None],
) -> Evaluation:
    """Measure both models. The dense one's numbers go into the checkpoint: a retry does not measure them again.

    Where the spec bounds a perplexity, that is measured first, and `check_ratio` told pruned / dense; what it raises
    ends the stage. Without measurements in the spec no model is loaded. Raises MemoryBudgetTooSmall.
    """
    if not spec.evaluate:
        return Evaluation([], [], {}, [])
    data = EvaluationData()
    total = 2 * len(spec.evaluate)
    budget = memory_budget(spec, dense.device)
    whole = evaluates_whole(spec, dense.source, dense.architecture, budget)
    if not whole:
        events.log(f"the models do not fit in {budget / 2**20:.0f} MiB: they are measured block by block")

    def measure(loaded: LoadedModel, done: int, compare: Callable[[float], None]) -> list[Measurement]:
        """`compare` is told the value that the spec bounds, as soon as it is measured."""
        load = load_model if loaded is dense else load_result
        model = load(loaded.path, loaded.device, loaded.dtype) if whole else None
        found: dict[int, list[Measurement]] = {}
        for index, params in sorted(enumerate(spec.evaluate), key=lambda item: item[1] is not spec.ratio_text):
            context = EvaluationContext(
                loaded=loaded,
                whole=model,
                seed=spec.seed,
                sources=sources,
                events=events,
                data=data,
                checkpoint=checkpoint,
                pointer=f"/evaluate/{index}",
            )
            with torch.inference_mode():
                found[index] = method_of("evaluate", params).function(context, params)
            _refuse_non_finite(found[index])
            events.progress(done + len(found), total, "measurement")
            if params is spec.ratio_text:
                compare(found[index][0].value)
        return [one for index in range(len(spec.evaluate)) for one in found[index]]

    saved = checkpoint.load_json(DENSE_MEASUREMENTS)
    if saved is None:
        before = measure(dense, 0, lambda value: None)
        gc.collect()  # the dense model must be gone before the pruned one is loaded
        checkpoint.save_json(
            DENSE_MEASUREMENTS, {"measurements": [asdict(found) for found in before], "data_digests": data.digests}
        )
    else:
        before = [Measurement(**found) for found in saved["measurements"]]
        data.digests.update(saved["data_digests"])
        events.progress(len(spec.evaluate), total, "measurement")

    def compare(value: float) -> None:
        (name,) = spec.ratio_text.measures if spec.ratio_text else ()
        check_ratio(value / next(measured.value for measured in before if measured.name == name))

    after = measure(result_of(dense, pruned_dir), len(spec.evaluate), compare)
    texts = [tokens.report for tokens in data.tokens.values() if tokens.report]
    return Evaluation(join(before, after), _side_by_side(before, after), data.digests, texts)


def nll(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Mean negative log-likelihood of each window's predictions, float64 [B] on the CPU. V = vocabulary."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
    nll_BT = cross_entropy(logits_BTV.transpose(1, 2), ids_BT[:, 1:], reduction="none")
    return nll_BT.double().mean(dim=1).cpu()


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
                **compared(before, after),
                note=after.note,
            )
        )
    return metrics


def _side_by_side(dense: list[Measurement], pruned: list[Measurement]) -> list[Sample]:
    return [
        Sample(prompt=prompt, dense=written, pruned=answer)
        for before, after in zip(dense, pruned, strict=True)
        for (prompt, written), (_, answer) in zip(before.samples, after.samples, strict=True)
    ]


def _refuse_non_finite(measurements: list[Measurement]) -> None:
    for found in measurements:
        if not math.isfinite(found.value):
            raise NumericalFailure(
                f"{found.name} is {found.value}",
                "the model's outputs are not finite: lower the sparsity, or compute in float32",
                field="/evaluate",
            )

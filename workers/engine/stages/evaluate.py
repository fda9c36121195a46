"""Evaluate: every measurement of the spec, on the dense and on the pruned model, in one run with one data set.

The models are loaded from their folders by plain transformers, as users load them, which also tests that the result
loads. One is in memory at a time; where it does not fit, one of its blocks is. Measurements that look at both models,
and those that drift with the machine and are made on both in turn, come last; both are in memory if they fit.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from workers.engine.contracts.evaluation import EvaluationData
from workers.engine.contracts.facts import Measurement, Probe
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import LossMethodParams
from workers.engine.errors import NumericalFailure, SequenceTooLong
from workers.engine.maths.standard_errors import SURE, compared, spread
from workers.engine.model.calibration import Calibration
from workers.engine.model.loaded import LoadedModel, block_tensors, load_model, load_result, result_of
from workers.engine.model.loss import nll
from workers.engine.model.memory import memory_budget
from workers.engine.model.reading import load_tokens
from workers.engine.model.streamed_loss import StreamedLoss
from workers.engine.model.turns import in_turn
from workers.engine.planning.predictions import whole_models
from workers.engine.registry import method_of
from workers.engine.report import Metric, Sample
from workers.engine.reporting.wording import percent

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.refs import DataRef
    from workers.engine.contracts.texts import Tokens, Wanted
    from workers.engine.events import Events
    from workers.engine.maths.paired import Comparison
    from workers.engine.registry import Method
    from workers.engine.report import TextReport
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.store.run import Run

DENSE_MEASUREMENTS = "dense-measurements"
"""Resume point: measurements of the dense model by evaluation, without times."""


@dataclass(frozen=True)
class EvaluatedModel:
    """The context of an evaluator, see `EvaluationContext`."""

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

    @property
    def architecture(self) -> Architecture:
        return self.loaded.architecture

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    @property
    def model_dir(self) -> Path:
        return self.loaded.path

    @property
    def data_dir(self) -> Path:
        return self.sources.data_dir

    @property
    def device(self) -> torch.device:
        return self.loaded.device

    @property
    def model(self) -> PreTrainedModel:
        return needed(self.whole, "the whole model")

    def window_nll(self, windows_NT: Tensor, batch_size: int) -> Tensor:
        ranks = self.loaded.ranks
        if self.whole is None:
            text = Calibration(windows_NT, self.pointer)
            blocks = range(self.loaded.architecture.blocks)
            with closing(StreamedLoss(self.loaded, text, self.checkpoint, keep_path=False)) as streamed:
                return streamed.nll(blocks, lambda block: block_tensors(self.loaded, block))
        share_NT = windows_NT[ranks.share(len(windows_NT))]
        batches = share_NT.to(self.device).split(batch_size) if len(share_NT) else ()
        nll_N = (
            torch.cat([nll(self.whole, ids_BT) for ids_BT in batches]).cpu()
            if batches
            else torch.empty(0, dtype=torch.float64)
        )
        return torch.cat(ranks.gather(nll_N))

    def check_fits(self, tokens: int, parameter: str) -> None:
        context_length = self.loaded.architecture.context_length
        if tokens > context_length:
            raise SequenceTooLong(
                f"{tokens} tokens at once do not fit the model's context of {context_length}",
                f"lower `{parameter}`",
                field=f"{self.pointer}/{parameter}",
            )

    def load_tokens(self, ref: DataRef, wanted: Wanted) -> Tokens:
        if (ref, wanted) not in self.data.tokens:
            vocabulary = self.loaded.architecture.vocabulary
            self.data.tokens[ref, wanted] = self.loaded.ranks.first(
                lambda: load_tokens(ref, self.tokenizer, self.sources, self.pointer, wanted, vocabulary=vocabulary)
            )
        return self.data.tokens[ref, wanted]


@dataclass(frozen=True)
class Evaluation:
    """Results of the stage."""

    metrics: list[Metric]
    samples: list[Sample]
    data_digests: dict[str, str]
    """Data label -> `sha256:` digest of the data read."""
    texts: list[TextReport]


def evaluate(
    spec: CompressionSpec,
    dense: LoadedModel,
    pruned_dir: Path,
    sources: Sources,
    run: Run,
    check_ratio: Callable[[float], None] = lambda ratio: None,
) -> Evaluation:
    """Measure both models. Measurements of the dense one that do not drift are kept for a retry.

    Where the spec bounds a perplexity, that is measured first, and `check_ratio` called with pruned / dense; its
    exceptions end the stage. Without measurements in the spec no model is loaded. Raises MemoryBudgetTooSmall.
    """
    if not spec.evaluate:
        return Evaluation([], [], {}, [])
    free = memory_budget(spec.compute.memory_budget, dense.device, dense.ranks.count)
    budget = min(dense.ranks.gather(free))
    held = _Held(dense, whole_models(spec, dense.source, dense.architecture, budget), run.events, budget)
    stage = _Stage(spec, dense, result_of(dense, pruned_dir), sources, run, held)
    with torch.inference_mode():
        before, resumed = stage.of_dense()
        after = stage.measured(stage.pruned, lambda index, value: check_ratio(value / before[index][0].value))
        found = {index: join(before[index], after[index], resumed=resumed) for index in after}
        found |= stage.of_both()
    return Evaluation(
        apart([metric for index in sorted(found) for metric in found[index]]),
        [sample for index in sorted(after) for sample in _side_by_side(before[index], after[index])],
        stage.data.digests,
        [tokens.report for tokens in stage.data.tokens.values() if tokens.report],
    )


@dataclass
class _Stage:
    """The evaluations of a spec, by their index in it."""

    spec: CompressionSpec
    dense: LoadedModel
    pruned: LoadedModel
    sources: Sources
    run: Run
    held: _Held
    data: EvaluationData = field(default_factory=EvaluationData)
    done: int = 0
    """Measurements, of either model."""

    def of_dense(self) -> tuple[dict[int, list[Measurement]], bool]:
        """(measurements of the dense model alone, whether an earlier attempt made them)."""
        saved = self.run.checkpoint.load_json(DENSE_MEASUREMENTS)
        if saved is not None:
            found = {int(k): [Measurement(**one) for one in each] for k, each in saved["measurements"].items()}
            self.data.digests.update(saved["data_digests"])
            self._advance(len(found))
            return found, True
        found = self.measured(self.dense, lambda index, value: None)
        kept = {index: [asdict(one) for one in each] for index, each in found.items()}
        self.run.checkpoint.save_json(DENSE_MEASUREMENTS, {"measurements": kept, "data_digests": self.data.digests})
        return found, False

    def measured(self, loaded: LoadedModel, compare: Callable[[int, float], None]) -> dict[int, list[Measurement]]:
        """The measurements of one model alone. Calls `compare` with the value that the spec bounds, as soon as it is
        measured."""
        found: dict[int, list[Measurement]] = {}
        bounded = self.spec.ratio_text
        for index, params in sorted(enumerate(self.spec.evaluate), key=lambda item: item[1] is not bounded):
            if self._method(index).paired or self._method(index).compares:
                continue
            found[index] = self._measurements(loaded, index)
            _refuse_non_finite(found[index])
            self._advance(1)
            if params is bounded:
                compare(index, found[index][0].value)
        return found

    def of_both(self) -> dict[int, list[Metric]]:
        """The measurements of both models together: first those that compare them, then those of times."""
        found: dict[int, list[Metric]] = {}
        indices = range(len(self.spec.evaluate))
        for index in (index for index in indices if self._method(index).compares):
            found[index] = self.dense.ranks.first(partial(self._compared, index))
            self._advance(2)
        for index in (index for index in indices if self._method(index).paired):
            found[index] = self.dense.ranks.first(partial(self._in_turns, index))
            self._advance(2)
        return found

    def _method(self, index: int) -> Method:
        return method_of("evaluate", self.spec.evaluate[index])

    def _measurements(self, loaded: LoadedModel, index: int) -> Any:
        """By all ranks where its windows can be shared, else by the first."""
        if isinstance(self.spec.evaluate[index], LossMethodParams):
            return self._evaluated(loaded, index)
        return self.dense.ranks.first(lambda: self._evaluated(loaded, index))

    def _compared(self, index: int) -> list[Metric]:
        models = [partial(self._context_of, loaded, index) for loaded in (self.dense, self.pruned)]
        of_itself, of_pruned = self._method(index).function(*models, self.spec.evaluate[index])
        _refuse_non_finite(of_pruned)
        return join(of_itself, of_pruned)

    def _in_turns(self, index: int) -> list[Metric]:
        opens = [partial(self._evaluated, loaded, index) for loaded in (self.dense, self.pruned)]
        return [metric_of(*found) for found in in_turn(*opens, resident=self.held.most > 1)]

    def _evaluated(self, loaded: LoadedModel, index: int) -> Any:
        return self._method(index).function(self._context_of(loaded, index), self.spec.evaluate[index])

    def _context_of(self, loaded: LoadedModel, index: int) -> EvaluatedModel:
        return EvaluatedModel(
            loaded=loaded,
            whole=self.held.model(loaded),
            seed=self.spec.seed,
            sources=self.sources,
            events=self.run.events,
            data=self.data,
            checkpoint=self.run.checkpoint,
            pointer=f"/evaluate/{index}",
        )

    def _advance(self, by: int) -> None:
        self.done += by
        self.run.events.progress(self.done, 2 * len(self.spec.evaluate), "measurement")


class _Held:
    """Whole models in memory, at most `most`, which may be 0."""

    def __init__(self, dense: LoadedModel, most: int, events: Events, budget: int) -> None:
        self.dense, self.most = dense, most
        self._models: dict[Path, PreTrainedModel] = {}
        if not most:
            events.log(f"the models do not fit in {budget / 2**20:.0f} MiB: they are measured block by block")

    def model(self, loaded: LoadedModel) -> PreTrainedModel | None:
        """The whole model, or None where `most` is 0. The one loaded first is dropped where there is no room."""
        if self.most and loaded.path not in self._models:
            while len(self._models) >= self.most:
                self._models.pop(next(iter(self._models)))
                gc.collect()  # the one must be gone before the other is loaded
            load = load_model if loaded is self.dense else load_result
            self._models[loaded.path] = load(loaded.path, loaded.device, loaded.dtype)
        return self._models.get(loaded.path)


def join(dense: list[Measurement], pruned: list[Measurement], *, resumed: bool = False) -> list[Metric]:
    """Pair measurements of the two models, in the spec's order. `resumed`: an earlier attempt measured the dense
    one."""
    metrics = []
    for before, after in _with_flips(dense, pruned):
        if before.name != after.name:
            raise ValueError(f"{before.name} of the dense model stands against {after.name} of the pruned one")
        metrics.append(
            Metric(
                name=after.name,
                unit=after.unit,
                higher_is_better=after.higher_is_better,
                dense=before.value,
                pruned=after.value,
                ratio=after.value / before.value if before.value else None,
                dense_stderr=before.stderr,
                pruned_stderr=after.stderr,
                **compared(before, after),
                margin=after.margin,
                resumed=resumed,
                note=after.note,
            )
        )
    return apart(metrics)


def _with_flips(dense: list[Measurement], pruned: list[Measurement]) -> Iterator[tuple[Measurement, Measurement]]:
    """The pairs, and behind one of right and wrong answers how many of them changed: right ones may make up for wrong
    ones in the mean (Dutta et al. 2024, arXiv:2407.09141)."""
    for before, after in zip(dense, pruned, strict=True):
        yield before, after
        if before.parts and after.parts and before.right_or_wrong and after.right_or_wrong:
            changed = [abs(new - old) for new, old in zip(after.parts, before.parts, strict=True)]
            sure = spread(changed, after.documents)
            flips = replace(
                after,
                name=f"{after.name}/flips",
                value=math.fsum(changed) / len(changed),
                unit="share of answers",
                higher_is_better=False,
                stderr=sure.stderr,
                degrees_of_freedom=sure.degrees_of_freedom,
                parts=changed,
                note=f"answers that are right in one model alone, of {len(changed)}",
            )
            yield replace(flips, value=0.0, stderr=0.0, parts=[0.0] * len(changed)), flips


def apart(metrics: list[Metric]) -> list[Metric]:
    """Where two evaluations give the same name (one data set at two lengths), the second is `name#2`, and so on."""
    seen: Counter[str] = Counter()
    renamed = []
    for metric in metrics:
        seen[metric.name] += 1
        repeat = f"#{seen[metric.name]}" if seen[metric.name] > 1 else ""
        renamed.append(metric.model_copy(update={"name": metric.name + repeat}))
    return renamed


def metric_of(probe: Probe, found: Comparison) -> Metric:
    """The metric of a probe, from paired rounds."""
    return Metric(
        name=probe.name,
        unit=probe.unit,
        higher_is_better=probe.higher_is_better,
        dense=found.dense,
        pruned=found.pruned,
        ratio=found.ratio,
        dense_stderr=found.dense_stderr,
        pruned_stderr=found.pruned_stderr,
        ratio_stderr=found.ratio_stderr,
        difference_stderr=found.difference_stderr,
        degrees_of_freedom=found.degrees_of_freedom,
        pruned_degrees_of_freedom=found.pruned_degrees_of_freedom,
        margin=probe.margin,
        note=f"{probe.note}; both models in turn, {found.rounds} rounds, extremes trimmed; the same unless "
        f"surely ({percent(SURE)}) beyond {percent(probe.margin)}",
    )


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

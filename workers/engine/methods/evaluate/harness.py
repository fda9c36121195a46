"""Language-model evaluation harness: the accuracies papers report, by EleutherAI's lm-evaluation-harness, in memory.

A task is a yaml file under the data directory's `tasks/` (always), or one the harness ships, whose data comes from
the Hugging Face hub (when online).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from workers.engine.contracts.facts import Measurement
from workers.engine.contracts.params import MethodParams
from workers.engine.registry import evaluator

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from workers.engine.contracts.evaluation import EvaluationContext

TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]


_REQUEST_TOKENS = 512
"""Assumed length of a request; tasks differ."""


RIGHT_OR_WRONG = ("acc", "acc_norm", "exact_match")
"""The harness's metrics that judge each answer by itself."""


class HarnessParams(MethodParams):
    """Tasks of the lm-evaluation-harness."""

    method: Literal["harness"] = Field("harness", description="Tasks of EleutherAI's lm-evaluation-harness.")
    tasks: list[TaskName] = Field(
        min_length=1,
        max_length=16,
        description="Tasks or groups: names of task files under `tasks/` in the data directory, or of the harness.",
        examples=[["bookworm_continuation"]],
    )
    num_fewshot: int | None = Field(None, ge=0, le=64, description="Examples in the prompt; null keeps the task's own.")
    limit: int | None = Field(None, ge=1, description="Most questions per task, from the start; null asks all.")
    batch_size: int = Field(8, ge=1, le=1024, description="Requests per forward pass. Moves the last digits.")
    bos: Literal["auto", "always", "never"] = Field(
        "auto", description="Whether prompts begin with the model's beginning-of-sequence token; as for texts."
    )

    @property
    def tokens_at_once(self) -> int:
        return self.batch_size * _REQUEST_TOKENS


@evaluator(HarnessParams, paper="doi:10.5281/zenodo.5371628")
def evaluate(context: EvaluationContext, params: HarnessParams) -> list[Measurement]:
    """`harness/<task>/<metric>` in the harness's own unit, with its standard error; groups give their aggregate too.

    Raises UnknownTask, UnsuitableTask, DatasetNotFound, and HubUnavailable where a task's data cannot be fetched.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.manager import TaskManager

    from workers.engine.sources.harness_tasks import UnsuitableTask, load_tasks, suitable

    tasks = load_tasks(params.tasks, context.data_dir / "tasks", context.pointer)
    tokenizer, opens = prompting(context.tokenizer, params.bos, context.pointer)
    with suitable(params.tasks, context.pointer), known_tokens_only(context.model.get_input_embeddings(), tokenizer):
        found = lm_eval.simple_evaluate(
            model=HFLM(
                pretrained=context.model, tokenizer=tokenizer, batch_size=params.batch_size, add_bos_token=opens
            ),
            tasks=tasks,
            task_manager=TaskManager(include_defaults=False),  # all are loaded; its own would read 10,000 task files
            num_fewshot=params.num_fewshot,
            limit=params.limit,
            random_seed=context.seed,
            numpy_random_seed=context.seed,
            torch_random_seed=context.seed,
            fewshot_random_seed=context.seed,
        )
    for task, samples in found["samples"].items():
        context.data.record(f"harness/{task}/{found['n-shot'][task]}-shot/{len(samples)}", _digest(samples))
    measured = [
        measurement
        for task, scores in {**found["results"], **found.get("groups", {})}.items()
        for measurement in _measurements(task, scores, found)
    ]
    if not measured:
        raise UnsuitableTask(
            f"{', '.join(params.tasks)} measured nothing",
            "name metrics in the task file that the harness has for its `output_type`",
            field=f"{context.pointer}/tasks",
        )
    return measured


def prompting(
    tokenizer: PreTrainedTokenizerBase, bos: Literal["auto", "always", "never"], pointer: str
) -> tuple[PreTrainedTokenizerBase, bool]:
    """The tokenizer, and whether the harness is to let it put its special tokens before prompts."""
    from workers.engine.model.windows import opening_ids

    opens = bool(opening_ids(tokenizer, bos, pointer))
    if opens and not opening_ids(tokenizer, "auto", pointer):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_bos_token = True
    return tokenizer, opens


@contextmanager
def known_tokens_only(embedding: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Have the embedding raise UnsupportedModel for ids beyond its rows: the harness makes the prompts."""
    from workers.engine.model.windows import refuse_unknown

    rows: int = embedding.weight.shape[0]  # type: ignore[index, assignment]
    if max(tokenizer.get_vocab().values(), default=0) < rows:
        yield
        return
    check = embedding.register_forward_pre_hook(
        lambda _, ids: refuse_unknown(ids[0].reshape(-1), rows, tokenizer, "of a task's prompts")
    )
    try:
        yield
    finally:
        check.remove()


def _measurements(task: str, scores: dict[str, Any], found: dict[str, Any]) -> list[Measurement]:
    """One measurement per metric; the harness keys them `<metric>,<filter>` and `<metric>_stderr,<filter>`."""
    import lm_eval

    from workers.engine.maths.standard_errors import spread

    measurements = []
    for key, value in scores.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = scores.get(f"{metric}_stderr,{filter_name}")
        answers = _answers(found["samples"].get(task, []), metric, filter_name, float(value))
        if answers and not isinstance(stderr, float):
            stderr = spread(answers, None).stderr
        measurements.append(
            Measurement(
                name=f"harness/{task}/{metric}" + ("" if filter_name == "none" else f":{filter_name}"),
                value=float(value),
                unit=metric,
                higher_is_better=found["higher_is_better"].get(task, {}).get(metric),
                stderr=stderr if isinstance(stderr, float) else None,
                note=_note(task, found) + f"lm-eval {lm_eval.__version__}",
                # No number of the harness is exact: one whose error neither it nor we know has no parts.
                parts=answers or [],
                documents=list(range(len(answers))) if answers else None,  # each question is a document
                degrees_of_freedom=len(answers) - 1 if answers and len(answers) > 1 else None,
                right_or_wrong=metric in RIGHT_OR_WRONG and set(answers or ()) <= {0, 1},
            )
        )
    return measurements


def _answers(samples: list[dict[str, Any]], metric: str, filter_name: str, value: float) -> list[float] | None:
    """Each question's score, where `value` is their mean; None for groups and for metrics of a whole corpus."""
    scores = [s[metric] for s in samples if s["filter"] == filter_name and isinstance(s.get(metric), int | float)]
    if not scores or not math.isclose(sum(scores) / len(scores), value, rel_tol=1e-9, abs_tol=1e-12):
        return None
    return [float(score) for score in scores]


def _note(task: str, found: dict[str, Any]) -> str:
    questions = found["n-samples"].get(task)
    shots = found["n-shot"].get(task)
    version = found["versions"].get(task)
    return "".join(
        f"{text}; "
        for value, text in (
            (questions, f"{questions and questions['effective']} questions"),
            (shots, f"{shots}-shot"),
            (version, f"task version {version}"),
        )
        if value is not None
    )


def _digest(samples: list[dict[str, Any]]) -> str:
    """`sha256:` over prompt and target of every question, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample['prompt_hash']} {sample['target_hash']}\n".encode())
    return "sha256:" + digest.hexdigest()

"""The evaluators on models whose answers can be worked out by hand, and the join of dense and pruned."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.small_models import SIZES, SaveModel, load, spec_of
from workers.engine.contracts.evaluation import EvaluationData
from workers.engine.contracts.facts import Measurement
from workers.engine.errors import (
    BadRequest,
    DatasetTooShort,
    EngineError,
    NumericalFailure,
    SequenceTooLong,
    UnsupportedModel,
)
from workers.engine.events import Silent
from workers.engine.gates import Gate, judge
from workers.engine.methods.evaluate import continuations, generation_speed, harness, perplexity, size
from workers.engine.model import loaded as whole
from workers.engine.ranks import Ranks
from workers.engine.sources.resolve import Sources
from workers.engine.stages.evaluate import DENSE_MEASUREMENTS, EvaluatedModel, evaluate, join
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run

VOCABULARY = 4096


class Uniform(nn.Module):
    """Knows nothing: every next token is equally likely. Counts the positions it is asked about."""

    def __init__(self, logit: float = 0.0) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=128, vocab_size=VOCABULARY)
        self.config.get_text_config = lambda: self.config
        self.logit, self.asked = logit, list[tuple[int, int]]()

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        self.asked.append((input_ids.shape[0], input_ids.shape[1]))
        return SimpleNamespace(logits=torch.full((*input_ids.shape, VOCABULARY), self.logit), past_key_values=None)


def context(sources: Sources, model: Any, folder: Path, tokenizer: Any = None) -> EvaluatedModel:
    """Of a model as a whole; `folder` holds its files, if any. What looks at its structure sees the context length."""
    length = model.config.max_position_embeddings if model else 0
    return EvaluatedModel(
        loaded=SimpleNamespace(  # type: ignore[arg-type]
            architecture=SimpleNamespace(context_length=length, vocabulary=VOCABULARY),
            tokenizer=tokenizer,
            path=folder,
            ranks=Ranks(),
            device=torch.device("cpu"),
        ),
        whole=model,
        seed=0,
        sources=sources,
        events=Silent(),
        data=EvaluationData(),
        checkpoint=None,  # type: ignore[arg-type]  # only models that are measured block by block need one
        pointer="/evaluate/0",
    )


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


def test_perplexity_of_knowing_nothing_is_the_vocabulary(sources: Sources, tmp_path: Path, tokenizer: Any) -> None:
    # -log(1/4096) at every position, so exp(mean) = 4096 and no window differs from another.
    params = perplexity.PerplexityParams(dataset="heldout.txt", sequence_length=32, samples=5, batch_size=2)
    (found,) = perplexity.evaluate(context(sources, Uniform(), tmp_path, tokenizer), params)
    assert found.name == "perplexity/heldout.txt"
    assert found.value == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.stderr == pytest.approx(0, abs=1e-6)


def test_perplexity_is_the_mean_over_windows_whatever_the_batch(sources: Sources, tiny: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    one_by_one, together = (
        perplexity.evaluate(
            context(sources, model, tiny, tokenizer),
            perplexity.PerplexityParams(dataset="heldout.txt", sequence_length=64, samples=6, batch_size=batch),
        )[0]
        for batch in (1, 4)
    )
    assert one_by_one.value == pytest.approx(together.value, rel=1e-5)  # float32 sums in another order

    text = (sources.data_dir / "heldout.txt").read_text()
    ids_T = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    losses = [model(ids_T[None, i : i + 64], labels=ids_T[None, i : i + 64]).loss.item() for i in range(0, 384, 64)]
    assert one_by_one.value == pytest.approx(math.exp(sum(losses) / 6), rel=1e-5)


def test_perplexity_refuses_what_cannot_be_measured(sources: Sources, tmp_path: Path, tokenizer: Any) -> None:
    def measure(**parts: Any) -> None:
        params = perplexity.PerplexityParams(dataset="heldout.txt", **parts)
        perplexity.evaluate(context(sources, Uniform(), tmp_path, tokenizer), params)

    with pytest.raises(SequenceTooLong, match="128") as too_long:
        measure(sequence_length=129)
    assert too_long.value.field == "/evaluate/0/sequence_length"
    with pytest.raises(DatasetTooShort):
        measure(sequence_length=128, samples=10_000)


def test_speed_counts_every_token_it_claims(sources: Sources, tmp_path: Path) -> None:
    model = Uniform()
    params = generation_speed.GenerationSpeedParams(prompt_tokens=7, new_tokens=9, batch_size=2, repeats=4, warmup=1)
    prefill, decode = generation_speed.evaluate(context(sources, model, tmp_path), params)
    # One prompt of two sequences of seven, then nine steps of one token each, in two turns.
    assert model.asked == [(2, 7), *[(2, 1)] * 9]
    assert (prefill.name, decode.name) == ("generation_speed/prefill", "generation_speed/decode")
    assert (prefill.readings, decode.readings) == (4, 8)
    model.asked.clear()
    assert prefill.read() > 0
    assert model.asked == [(2, 7)]
    assert decode.read() > 0
    assert model.asked == [(2, 7), *[(2, 1)] * 5]
    assert decode.read() > 0
    assert model.asked == [(2, 7), *[(2, 1)] * 9]
    assert decode.read() > 0  # all is written: it begins anew
    assert model.asked[10:] == [(2, 7), *[(2, 1)] * 5]
    with pytest.raises(SequenceTooLong):
        generation_speed.evaluate(
            context(sources, model, tmp_path), generation_speed.GenerationSpeedParams(prompt_tokens=126, new_tokens=3)
        )


def test_repetition_is_the_share_of_4_grams_seen_before() -> None:
    assert continuations.repetition([1, 2, 3, 4, 5, 6]) == 0
    assert continuations.repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert continuations.repetition([7] * 8) == pytest.approx(4 / 5)
    assert continuations.repetition([1, 2]) == 0


def test_continuations_are_the_likeliest_tokens_whatever_the_folder_says(
    sources: Sources, tiny: Path, tokenizer: Any
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=5.0)
    params = continuations.ContinuationsParams(prompts=("It was", "The end of the"), new_tokens=6)
    (found,) = continuations.evaluate(context(sources, model, tiny, tokenizer), params)
    for prompt, written in found.samples:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        for _ in range(6):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
        assert written == tokenizer.decode(ids[0, -6:], skip_special_tokens=True)
    assert found.value == pytest.approx(sum(found.parts or ()) / 2)
    assert found.higher_is_better is None  # a text may repeat itself rightly: neither more nor less is called better
    with pytest.raises(SequenceTooLong) as too_long:
        continuations.evaluate(
            context(sources, model, tiny, tokenizer),
            continuations.ContinuationsParams(prompts=("It was",), new_tokens=127),
        )
    assert too_long.value.field == "/evaluate/0/new_tokens"


def test_a_continuation_ends_where_the_model_ends_it(sources: Sources, tiny: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    ids = tokenizer("It was", return_tensors="pt").input_ids
    model.generation_config.eos_token_id = int(model(ids).logits[0, -1].argmax())
    assert continuations.greedy(context(sources, model, tiny, tokenizer), "It was", 6) == [
        model.generation_config.eos_token_id
    ]


def test_size_counts_the_files_of_the_index_and_no_others(sources: Sources, tmp_path: Path) -> None:
    save_file({"a": torch.tensor([[1.0, 0.0, 0.0], [2.0, 3.0, 0.0]])}, tmp_path / "one.safetensors")
    save_file({"b": torch.tensor([0.0, 4.0])}, tmp_path / "two.safetensors")
    save_file({"stray": torch.zeros(100)}, tmp_path / "stray.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = {m.name: m.value for m in size.evaluate(context(sources, None, tmp_path), size.SizeParams())}
    stored = sum((tmp_path / name).stat().st_size for name in weight_map.values())
    assert found == {"size/parameters": 8, "size/zeros": 4, "size/weight_bytes": stored}


def test_files_of_harness_tasks_are_read_as_texts_are(examples: Sources, tmp_path: Path) -> None:
    """Compressed, with a byte order mark and other line ends, and with what others take for a line end in a text."""
    shipped = examples.data_dir / "tasks"
    rows = (shipped / "bookworm_continuation.jsonl").read_text().splitlines()[:3]
    rows = [row.replace(" the ", " \u2028the ", 1) for row in rows]
    (tmp_path / "few.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + "\r\n".join(rows).encode()))
    task = (shipped / "bookworm_continuation.yaml").read_text()
    (tmp_path / "few.yaml").write_text(
        task.replace("bookworm_continuation", "few").replace("few.jsonl", "few.jsonl.gz")
    )
    from workers.engine.sources.harness_tasks import load_tasks  # here and below: a second of imports, of each process

    (loaded,) = load_tasks(["few"], tmp_path, "/evaluate/0")
    assert [doc["context"] for doc in loaded.test_docs()] == [json.loads(row)["context"] for row in rows]
    assert loaded.dump_config()["metadata"]["version"] == 1.0


def test_the_harness_runs_a_local_task_and_the_shipped_model_beats_chance(examples: Sources) -> None:
    folder = examples.models_dir / "bookworm-7m"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen = context(examples, model, folder, AutoTokenizer.from_pretrained(folder))
    params = harness.HarnessParams(tasks=["bookworm_continuation"], limit=24)
    found = {m.name: m for m in harness.evaluate(seen, params)}
    assert all(name.startswith(params.measures) for name in found)
    accuracy = found["harness/bookworm_continuation/acc"]
    assert accuracy.parts is not None
    assert sum(accuracy.parts) / 24 == accuracy.value
    assert accuracy.value > 0.25  # chance; all 200 questions give 0.58
    assert accuracy.stderr is not None
    assert accuracy.higher_is_better
    assert "24 questions" in accuracy.note
    with pytest.raises(BadRequest, match="nonsense") as unknown:
        harness.evaluate(seen, harness.HarnessParams(tasks=["nonsense"]))
    assert "bookworm_continuation" in unknown.value.hint
    assert unknown.value.code == "unknown_task"


def made_task(folder: Path, name: str, **changes: Any) -> None:
    """A multiple-choice task of two questions."""
    (folder / "tasks").mkdir(exist_ok=True)
    rows = [{"context": "It was", "choices": [" a dog", " a"], "label": n} for n in range(2)]
    (folder / f"tasks/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"tasks/{name}.yaml").write_text(json.dumps(task | changes))  # JSON is YAML


def test_what_goes_wrong_inside_the_harness_is_the_tasks_fault(examples: Sources, tmp_path: Path) -> None:
    folder = examples.models_dir / "bookworm-7m"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sources = Sources(examples.models_dir, tmp_path)
    made_task(tmp_path, "no_template", doc_to_text="{{context | nothing}}")
    made_task(tmp_path, "no_rows", doc_to_text="{{1 // 0}}")
    made_task(tmp_path, "no_metric", metric_list=[{"metric": "nothing", "aggregation": "mean"}])
    made_task(tmp_path, "sound")

    class Broken(type(tokenizer)):  # type: ignore[misc]
        def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
            if "It was" in str(text):
                raise TypeError("argument 'sequence': cannot be converted")
            return super()._encode_plus(text, *args, **kwargs)

    for name in ("no_template", "no_rows", "no_metric"):
        seen = context(sources, model, folder, tokenizer)
        with pytest.raises(BadRequest, match=name) as refused:
            harness.evaluate(seen, harness.HarnessParams(tasks=[name]))
        assert (refused.value.code, refused.value.field) == ("unsuitable_task", "/evaluate/0/tasks")
    seen = context(sources, model, folder, Broken.from_pretrained(folder))
    with pytest.raises(BadRequest, match="sound cannot be asked of this model: TypeError: argument") as refused:
        harness.evaluate(seen, harness.HarnessParams(tasks=["sound"]))
    assert refused.value.code == "unsuitable_task"


ENDINGS = {
    "ends": ("raise SystemExit('install slr')", "unsuitable_task"),
    "full": ("raise OSError(28, 'No space left on device')", "disk_full"),
    "full_below": ("raise RuntimeError('generation failed') from OSError(28, 'No space left on device')", "disk_full"),
    "missing_below": ("raise RuntimeError('no generation') from FileNotFoundError(2, 'no file')", "unsuitable_task"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_code_of_a_task_that_ends_the_process_or_fills_the_disk(name: str, tmp_path: Path) -> None:
    from workers.engine.sources.harness_tasks import UnsuitableTask, load_tasks, suitable

    statement, code = ENDINGS[name]
    made_task(tmp_path, name, process_docs="@")
    (tmp_path / "tasks/own.py").write_text(f"def ends(found):\n    {statement}\n")
    task = tmp_path / f"tasks/{name}.yaml"
    task.write_text(task.read_text().replace('"@"', "!function own.ends"))
    with pytest.raises(EngineError) as raised:
        load_tasks([name], tmp_path / "tasks", "/evaluate/0")
    assert raised.value.code == code
    with pytest.raises(UnsuitableTask), suitable([name], "/evaluate/0"):
        raise SystemExit(1)


def test_no_number_of_the_harness_is_taken_as_exact(examples: Sources, tmp_path: Path) -> None:
    """The harness knows no error of a median, and gives groups one only where all of their tasks have one."""
    folder = examples.models_dir / "bookworm-7m"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen = context(Sources(examples.models_dir, tmp_path), model, folder, AutoTokenizer.from_pretrained(folder))
    metric = {"metric": "brier_score", "higher_is_better": False}
    made_task(tmp_path, "brier", metric_list=[metric])
    measured = harness.evaluate(seen, harness.HarnessParams(tasks=["brier"]))
    metrics = join(measured, [replace(one, value=one.value / 2) for one in measured])
    assert {(m.ratio_stderr is None, m.interval_over) for m in metrics} <= {(True, "text"), (False, "text")}
    (result,) = judge([Gate(metric="harness/brier/brier_score", max=1.0)], metrics)
    assert (result.verdict, "taken as exact" in result.reason) == ("inconclusive", False)


def test_dense_and_pruned_are_joined_by_name() -> None:
    dense = [Measurement("a", 2.0, "s", False, 0.1), Measurement("b", 0.0, "n"), Measurement("a", 4.0, "s", False)]
    pruned = [Measurement("a", 3.0, "s", False, 0.2), Measurement("b", 5.0, "n"), Measurement("a", 4.0, "s", False)]
    metrics = join(dense, pruned)
    assert [(m.name, m.ratio) for m in metrics] == [("a", 1.5), ("b", None), ("a#2", 1.0)]
    assert (metrics[0].dense_stderr, metrics[0].pruned_stderr) == (0.1, 0.2)


def run(sources: Sources, folder: Path, pruned: Path, **parts: Any) -> Any:
    """Evaluate `tiny` against the model in `pruned`."""
    spec = spec_of(**parts)
    return evaluate(
        spec,
        load(spec, sources),
        pruned,
        sources,
        Run.of(Checkpoint(folder / "checkpoint"), Silent()),
    )


PERPLEXITY = [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32, "samples": 4}]


def test_the_dense_model_is_measured_once_even_if_the_job_is_retried(
    sources: Sources, tiny: Path, tmp_path: Path
) -> None:
    first = run(sources, tmp_path, tiny, evaluate=PERPLEXITY)
    assert first.metrics[0].ratio == 1.0
    saved = Checkpoint(tmp_path / "checkpoint").load_json(DENSE_MEASUREMENTS)
    assert saved is not None
    saved["measurements"]["0"][0]["value"] *= 2  # would be lost if it were measured again
    Checkpoint(tmp_path / "checkpoint").save_json(DENSE_MEASUREMENTS, saved)
    again = run(sources, tmp_path, tiny, evaluate=PERPLEXITY)
    assert again.metrics[0].ratio == 0.5
    assert (first.metrics[0].resumed, again.metrics[0].resumed) == (False, True)
    assert again.data_digests == first.data_digests


SPEED = {"method": "generation_speed", "prompt_tokens": 8, "new_tokens": 4, "repeats": 2, "warmup": 0}


def test_times_are_never_taken_from_an_earlier_attempt(
    sources: Sources, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engine.model.turns.MOST_S", 0)  # no more rounds than must be
    evaluate = [SPEED, *PERPLEXITY, SPEED | {"batch_size": 2}]
    names = [f"generation_speed/{part}" for part in ("prefill", "decode")]
    for resumed in (False, True):
        metrics = run(sources, tmp_path, tiny, evaluate=evaluate).metrics
        assert [metric.name for metric in metrics] == [*names, "perplexity/heldout.txt", *(f"{n}#2" for n in names)]
        assert [metric.resumed for metric in metrics] == [False, False, resumed, False, False]
    assert "generation_speed" not in str(Checkpoint(tmp_path / "checkpoint").load_json(DENSE_MEASUREMENTS))


@pytest.mark.parametrize(("most", "loads"), [(2, ["tiny", "pruned"]), (1, ["tiny", "pruned"] * 5 + ["tiny"])])
def test_both_models_are_held_if_they_fit_and_loaded_in_turn_if_not(
    most: int,
    loads: list[str],
    sources: Sources,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tiny, tmp_path / "pruned")
    loaded: list[str] = []

    def load_model(folder: Path, *rest: Any) -> Any:
        loaded.append(folder.name)
        return whole.load_model(folder, *rest)

    monkeypatch.setattr("workers.engine.model.turns.MOST_S", 0)
    monkeypatch.setattr("workers.engine.stages.evaluate.load_model", load_model)
    monkeypatch.setattr("workers.engine.stages.evaluate.load_result", load_model)
    monkeypatch.setattr("workers.engine.stages.evaluate.whole_models", lambda *_: most)
    found = run(sources, tmp_path, tmp_path / "pruned", evaluate=[*PERPLEXITY, SPEED])
    assert loaded == loads
    assert found.metrics[1].degrees_of_freedom >= 3
    assert found.metrics[1].ratio == pytest.approx(found.metrics[1].pruned / found.metrics[1].dense)


AGREEMENT = {"method": "agreement", "dataset": "heldout.txt", "sequence_length": 32, "samples": 5, "batch_size": 2}


class TestAgreement:
    def test_a_model_agrees_with_itself(self, sources: Sources, tiny: Path, tmp_path: Path) -> None:
        kl, top1 = run(sources, tmp_path, tiny, evaluate=[AGREEMENT]).metrics
        assert (kl.name, kl.dense, kl.pruned, kl.ratio) == ("agreement/heldout.txt/kl", 0, 0, None)
        assert (top1.name, top1.dense, top1.pruned) == ("agreement/heldout.txt/top1", 1, 1)

    @pytest.mark.parametrize("most", [2, 1])
    def test_is_that_of_plain_transformers_whether_both_fit_or_one(
        self,
        most: int,
        sources: Sources,
        tiny: Path,
        save_model: SaveModel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from transformers import LlamaConfig

        other = save_model("other", LlamaConfig(**SIZES | {"initializer_range": 0.1}))
        alive: weakref.WeakSet[Any] = weakref.WeakSet()
        loads = []

        def load_model(folder: Path, *rest: Any) -> Any:
            assert len(alive) < most, "the one is gone before the other comes"
            loads.append(folder.name)
            model = whole.load_model(folder, *rest)
            alive.add(model)
            return model

        monkeypatch.setattr("workers.engine.stages.evaluate.load_model", load_model)
        monkeypatch.setattr("workers.engine.stages.evaluate.load_result", load_model)
        monkeypatch.setattr("workers.engine.stages.evaluate.whole_models", lambda *_: most)
        kl, top1 = run(sources, tmp_path, other, evaluate=[AGREEMENT]).metrics
        assert loads == (["tiny", "other"] if most == 2 else ["tiny", "other"] * 3)

        tokens = AutoTokenizer.from_pretrained(tiny)(
            (sources.data_dir / "heldout.txt").read_text(), return_tensors="pt"
        )
        ids_NT = tokens.input_ids[0, : 5 * 32].view(5, 32)
        with torch.no_grad():
            dense, pruned = (
                AutoModelForCausalLM.from_pretrained(folder)(ids_NT).logits[:, :-1].double() for folder in (tiny, other)
            )
        p, q = dense.softmax(-1), pruned.softmax(-1)
        assert kl.pruned > 0.01
        assert kl.pruned == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-5)
        assert top1.pruned == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
        assert kl.pruned_stderr is not None
        assert (kl.higher_is_better, top1.higher_is_better) == (False, True)


def test_answers_that_changed_are_counted_where_the_mean_hides_them() -> None:
    """Of four answers two are right in both models, and only one in the same."""

    def answers(*parts: float, **declared: Any) -> Measurement:
        name, value = "harness/task/acc", sum(parts) / len(parts)
        return Measurement(name, value, "acc", True, 0.2, parts=parts, documents=range(len(parts)), **declared)

    before, after = answers(1, 1, 0, 0, right_or_wrong=True), answers(1, 0, 1, 0, right_or_wrong=True)
    score, flips = join([before], [after])
    assert (score.dense, score.pruned) == (0.5, 0.5)
    assert (flips.name, flips.dense, flips.pruned, flips.higher_is_better) == ("harness/task/acc/flips", 0, 0.5, False)
    assert flips.pruned_stderr == pytest.approx((1 / 3) ** 0.5 / 2)  # of 0, 1, 1, 0
    assert len(join([answers(1, 0.5)], [answers(0.2, 0.3)])) == 1, "no answer is half right"


def test_without_measurements_no_model_is_loaded(sources: Sources, tiny: Path, tmp_path: Path) -> None:
    assert run(sources, tmp_path, tmp_path / "there is none", evaluate=[]).metrics == []


def test_missing_weights_are_an_error_not_random_numbers(
    sources: Sources, save_model: SaveModel, tiny: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import LlamaConfig

    broken = save_model("broken", LlamaConfig(**SIZES))
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"no `mlp\.up_proj` in block 1"):
        run(sources, tmp_path, broken, evaluate=PERPLEXITY)


def test_a_model_that_overflows_is_a_failure_not_a_nan(
    sources: Sources, save_model: SaveModel, tiny: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import LlamaConfig

    broken = save_model("nan", LlamaConfig(**SIZES))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericalFailure, match="perplexity"):
        run(sources, tmp_path, broken, evaluate=PERPLEXITY)

"""Gates: verdicts with their uncertainty, by numbers that can be redone by hand, and how comparisons get theirs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.helpers.reports import report_of
from tests.helpers.small_models import spec_of
from workers.engine.contracts.facts import Measurement
from workers.engine.events import Silent
from workers.engine.gates import Gate, judge, measured_names, overall
from workers.engine.maths.standard_errors import difference_spread, half_width, interval_over, ratio_spread, spread
from workers.engine.pipeline import compress
from workers.engine.report import Metric, Report
from workers.engine.reporting.model_card import render as render_card
from workers.engine.reporting.page import render as render_page
from workers.engine.reporting.wording import bounds, intervals, judged_value
from workers.engine.reporting.wording import verdict as verdict_of
from workers.engine.sources.resolve import Sources
from workers.engine.stages.evaluate import join

Z = 1.959963984540054  # two-sided 95 %


def metric(**fields: Any) -> Metric:
    """Dense 10, pruned 11; standard errors 0.01 of the ratio, 0.1 of the difference, 0.5 of the pruned value."""
    known = {"name": "perplexity/a.txt", "unit": "perplexity", "higher_is_better": False, "dense": 10.0, "pruned": 11.0}
    spread = {"ratio": 1.1, "pruned_stderr": 0.5, "ratio_stderr": 0.01, "difference_stderr": 0.1}
    return Metric.model_validate(known | spread | fields)


def verdict(found: Metric, **gate: Any) -> str:
    (result,) = judge([Gate(metric="perplexity/a.txt", **gate)], [found])
    return result.verdict


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        # of the ratio: 1.1 ± 1.96 * 0.01 = [1.0804, 1.1196]
        ({"max": 1.12}, "pass"),
        ({"max": 1.119}, "inconclusive"),
        ({"max": 1.1}, "inconclusive"),
        ({"max": 1.081}, "inconclusive"),
        ({"max": 1.08}, "fail"),
        ({"min": 1.08}, "pass"),
        ({"min": 1.1}, "inconclusive"),
        ({"min": 1.12}, "fail"),
        ({"min": 1.0, "max": 1.2}, "pass"),
        ({"min": 1.09, "max": 1.11}, "inconclusive"),
        ({"min": 0.9, "max": 1.0}, "fail"),
        # less sure of it, the interval is shorter: ± 0.6745 * 0.01
        ({"max": 1.107, "confidence": 0.5}, "pass"),
        ({"max": 1.107, "confidence": 0.99}, "inconclusive"),
        # of the difference: 1 ± 0.196; of the pruned value: 11 ± 0.98
        ({"of": "difference", "max": 1.2}, "pass"),
        ({"of": "difference", "max": 0.8}, "fail"),
        ({"of": "pruned", "max": 12.0}, "pass"),
        ({"of": "pruned", "max": 11.5}, "inconclusive"),
    ],
)
def test_the_interval_decides(gate: dict[str, Any], expected: str) -> None:
    assert verdict(metric(), **gate) == expected


def test_the_result_says_what_was_judged() -> None:
    (result,) = judge([Gate(metric="perplexity/a.txt", max=1.1)], [metric()])
    assert result.interval is not None
    assert result.value == 1.1
    assert result.interval == pytest.approx((1.1 - Z * 0.01, 1.1 + Z * 0.01))
    assert (result.metric, result.of, result.min, result.max, result.confidence) == (
        "perplexity/a.txt", "ratio", None, 1.1, 0.95
    )  # fmt: skip


def test_without_a_standard_error_the_value_is_exact_and_that_is_said() -> None:
    exact = metric(ratio_stderr=None)
    assert [verdict(exact, max=bound) for bound in (1.1, 1.0999)] == ["pass", "fail"]
    assert verdict(exact, min=1.1) == "pass"
    (result,) = judge([Gate(metric="perplexity/a.txt", max=2)], [exact])
    assert (result.interval, "taken as exact" in result.reason) == ((1.1, 1.1), True)


def test_one_sample_decides_nothing() -> None:
    """It is not exact: another window would give another value, and nothing says how far from this one."""
    (found,) = join([measured(10, 10)], [measured(11, 11)])
    for of in ("ratio", "difference", "pruned"):
        (result,) = judge([Gate(metric="perplexity/a.txt", of=of, min=0, max=100)], [found])
        assert (result.verdict, result.interval, "one sample" in result.reason) == ("inconclusive", None, True)
    assert judged_value(result) == "11.00"
    assert verdict_of(found) == ""
    report = report_of(metrics=[found.model_dump()])
    said = "Nothing says how far off these are, of one sample or of a metric without an error: perplexity/a.txt."
    assert intervals(report) == said


def test_samples_that_all_agree_are_not_taken_for_all_there_are() -> None:
    """Three questions answered alike say little of the fourth."""
    (found,) = join([measured(0.5, 1, 0, 1, stderr=0.3)], [measured(0.5, 1, 0, 1, stderr=0.3)])
    (result,) = judge([Gate(metric="perplexity/a.txt", min=0.95)], [found])
    assert (result.verdict, result.interval, "a rare difference may" in result.reason) == ("pass", (1, 1), True)


def test_the_pruned_value_is_judged_by_its_own_degrees_of_freedom() -> None:
    """Both models are alike in how documents differ, so the error of the difference is that over windows, of the pruned
    model alone that over documents: 11 ± 12.7 * 0.5 and not 11 ± 3.18 * 0.5."""
    found = metric(degrees_of_freedom=3, pruned_degrees_of_freedom=1)
    bound: dict[str, Any] = {"of": "pruned", "max": 13}
    assert [verdict(f, **bound) for f in (found, metric(degrees_of_freedom=3))] == ["inconclusive", "pass"]
    # Differences 0, 1, 1, 0: alike in both documents, whose values are not.
    values, documents = ([-102.0, -100.0, 100.0, 102.0], [-102.0, -99.0, 101.0, 102.0]), [0, 0, 1, 1]
    over_windows, over_documents = spread([0, 1, 1, 0], documents), spread(values[1], documents)
    assert (over_windows.degrees_of_freedom, over_documents.degrees_of_freedom) == (3, 1)
    dense, pruned = (
        Measurement("a", 0.0, "u", stderr=1.0, parts=v, documents=documents, degrees_of_freedom=1) for v in values
    )
    (joined,) = join([dense], [pruned])
    assert (joined.degrees_of_freedom, joined.pruned_degrees_of_freedom) == (3, 1)


def test_what_was_not_measured_is_inconclusive_and_the_reason_lists_what_was() -> None:
    (result,) = judge([Gate(metric="harness/x/acc", max=1)], [metric(), metric(name="size/zeros")])
    assert (result.verdict, result.value, result.interval) == ("inconclusive", None, None)
    assert "perplexity/a.txt, size/zeros" in result.reason
    (result,) = judge([Gate(metric="size/zeros", max=1)], [metric(name="size/zeros", dense=0, ratio=None)])
    assert (result.verdict, "zero" in result.reason) == ("inconclusive", True)


def test_the_worst_verdict_is_the_reports() -> None:
    passes, fails = Gate(metric="perplexity/a.txt", max=2), Gate(metric="perplexity/a.txt", max=1)
    unsure = Gate(metric="perplexity/a.txt", max=1.1)
    assert overall(judge([], [metric()])) is None
    assert overall(judge([passes, passes], [metric()])) == "pass"
    assert overall(judge([passes, unsure], [metric()])) == "inconclusive"
    assert overall(judge([unsure, fails, passes], [metric()])) == "fail"


def test_values_are_shown_with_two_digits_of_what_is_not_known() -> None:
    gates = [Gate(metric="perplexity/a.txt", of="ratio", max=1.1), Gate(metric="perplexity/a.txt", of="pruned", min=1)]
    ratio, pruned = judge(gates, [metric()])
    assert (bounds(ratio), judged_value(ratio)) == ("≤ 1.1", "1.100 [1.080, 1.120]")
    assert (bounds(pruned), judged_value(pruned)) == ("≥ 1", "11.0 [10.0, 12.0]")
    (exact,) = judge(
        [Gate(metric="size/zeros", of="pruned", min=1, max=3e6)],
        [metric(name="size/zeros", pruned=2351104, pruned_stderr=None)],
    )
    assert (bounds(exact), judged_value(exact)) == ("1 to 3e+06", "2,351,104")


def test_the_page_calls_a_change_small_by_the_spread_of_the_change() -> None:
    wide = {"dense_stderr": 5.0, "pruned_stderr": 5.0}  # of each model alone: they share it
    assert verdict_of(metric(**wide, difference_stderr=0.1)) == "worse"
    assert verdict_of(metric(**wide, difference_stderr=0.52)) == "within spread"


@pytest.mark.parametrize(
    ("ratio", "stderr", "word"),
    [
        (1.2, 0.01, "better"),  # [1.150, 1.250]
        (1.07, 0.01, "same"),  # [1.020, 1.120]: reaches into the margin
        (1.2, 0.1, "same"),  # nobody can tell
        (1.03, 0.001, "same"),  # sure, and within the margin
        (0.92, 0.005, "worse"),
    ],
)
def test_a_change_within_the_margin_is_no_change(ratio: float, stderr: float, word: str) -> None:
    found = metric(
        higher_is_better=True,
        ratio=ratio,
        ratio_stderr=stderr,
        difference_stderr=0.0,
        degrees_of_freedom=8,
        margin=0.05,
    )
    assert verdict_of(found) == word


def test_few_rounds_make_wide_intervals() -> None:
    """Student's t with two degrees of freedom reaches 4.30 standard errors: [1.057, 1.143] is the normal one's."""
    assert verdict(metric(degrees_of_freedom=2), min=1.08) == "inconclusive"
    assert verdict(metric(degrees_of_freedom=2), min=1.056) == "pass"


def test_page_and_card_show_the_verdicts() -> None:
    gates = judge([Gate(metric="perplexity/a.txt", max=b) for b in (2, 1.1, 1)], [metric()])
    report = report_of(gates=[gate.model_dump() for gate in gates], verdict="fail")
    page, card = render_page(report), render_card(report)
    for verdict, mark in (("pass", "✓"), ("inconclusive", "?"), ("fail", "✗")):
        assert f'badge {verdict}">{mark} {verdict}' in page
        assert f"| {verdict} |" in card
    assert "## Gates: fail" in card
    assert "with 95 % confidence" in " ".join(page.split())
    assert "Gates" not in render_page(report_of()) + render_card(report_of())


# -- how sure a comparison is ------------------------------------------------------------------------------------------


def measured(value: float, *parts: float, stderr: float | None = None) -> Measurement:
    return Measurement("perplexity/a.txt", value, "perplexity", stderr=stderr, parts=parts or None)


def test_sample_by_sample_what_both_share_cancels() -> None:
    # Pruned is dense plus 1 on every window: the difference is certain, though the windows differ widely.
    dense, pruned = measured(10, 2, 10, 18, stderr=4.6), measured(11, 3, 11, 19, stderr=4.6)
    assert difference_spread(dense, pruned).stderr == pytest.approx(0, abs=1e-12)
    # Of the ratio: p_i/10 - d_i 11/100 = 0.08, 0, -0.08; their standard deviation is 0.08, over the root of 3.
    assert ratio_spread(dense, pruned).stderr == pytest.approx(0.08 / math.sqrt(3))


def test_taken_as_independent_variances_add() -> None:
    dense, pruned = measured(10, stderr=0.3), measured(20, stderr=0.4)
    assert difference_spread(dense, pruned).stderr == pytest.approx(0.5)
    # ratio * hypot(0.3/10, 0.4/20) = 2 * 0.0360555
    assert ratio_spread(dense, pruned).stderr == pytest.approx(2 * math.hypot(0.03, 0.02))
    assert difference_spread(dense, measured(20)).stderr == pytest.approx(0.3)


def test_exact_measurements_compare_exactly() -> None:
    exact = (None, None)
    assert (difference_spread(measured(10), measured(20)), ratio_spread(measured(10), measured(20))) == (exact, exact)
    assert ratio_spread(measured(0, stderr=1), measured(1, stderr=1)) == exact
    assert difference_spread(measured(10, 10), measured(20, 20)) == exact  # one sample has no spread


def test_the_report_has_both() -> None:
    (found,) = join([measured(10, 9, 11, stderr=1)], [measured(11, 10.2, 11.8, stderr=0.8)])
    assert found.difference_stderr == pytest.approx(0.2)  # parts 1.2 and 0.8
    assert found.ratio_stderr is not None


def test_a_paired_ratio_of_perplexities_is_that_of_mean_log_likelihoods() -> None:
    """Against the textbook: the log of the ratio is a mean of differences, and its error carries through exp."""
    dense_N, pruned_N = [3.1, 3.6, 3.9, 3.3], [3.2, 3.65, 4.1, 3.4]
    d, p = math.exp(sum(dense_N) / 4), math.exp(sum(pruned_N) / 4)
    differences = [b - a for a, b in zip(dense_N, pruned_N, strict=True)]
    mean = sum(differences) / 4
    stderr = math.sqrt(sum((x - mean) ** 2 for x in differences) / 3 / 4)
    found = ratio_spread(measured(d, *(d * x for x in dense_N)), measured(p, *(p * x for x in pruned_N)))
    assert found.stderr == pytest.approx(p / d * stderr)


def test_windows_of_one_document_are_not_independent() -> None:
    """Two documents, each alike in itself: twice as many windows of the same say nothing more."""
    once, twice = spread([1, 3], [0, 1]), spread([1, 1, 3, 3], [0, 0, 1, 1])
    # Without a document the mean is that of the other, 3 or 1: sqrt(1/2 * ((3 - 2)^2 + (1 - 2)^2)) = 1.
    assert (once, twice) == ((pytest.approx(1.0), 1), (pytest.approx(1.0), 1))
    assert spread([1, 1, 3, 3], None) == (pytest.approx(math.sqrt(4 / 3 / 4)), 3)


def test_documents_of_different_lengths() -> None:
    """By hand: the means without each document are 3, 3 and 5/3, and their mean is 23/9."""
    jackknife = math.sqrt(2 / 3 * sum((mean - 23 / 9) ** 2 for mean in (3, 3, 5 / 3)))
    assert spread([1, 2, 2, 5], [0, 1, 1, 2]) == (pytest.approx(jackknife), 2)


def test_the_wider_of_both_errors_counts() -> None:
    # Documents with the same mean: over documents the error is zero, over windows it is not.
    assert spread([1, 3, 1, 3], [0, 0, 1, 1]) == (pytest.approx(math.sqrt(4 / 3 / 4)), 3)


def test_the_interval_is_students() -> None:
    # t of 95 % two-sided: 12.706 with one degree of freedom, 2.776 with four; 1.960 normal.
    widths = [half_width(2.0, freedom, 0.95) for freedom in (1, 4, None)]
    assert widths == pytest.approx([2 * 12.7062, 2 * 2.7764, 2 * Z], rel=1e-4)
    assert [verdict(metric(degrees_of_freedom=d), max=1.12) for d in (None, 4)] == ["pass", "inconclusive"]
    assert verdict_of(metric(difference_stderr=0.4)) == "worse"
    assert verdict_of(metric(difference_stderr=0.4, degrees_of_freedom=4)) == "within spread"


def test_what_the_interval_is_about_is_said() -> None:
    parts = {"parts": [1.0, 2.0, 3.0], "stderr": 1.0}
    known = Measurement("a", 2, "u", documents=[0, 0, 1], **parts)  # type: ignore[arg-type]
    one = Measurement("a", 2, "u", documents=[0, 0, 0], **parts)  # type: ignore[arg-type]
    unknown = Measurement("a", 2, "u", **parts)  # type: ignore[arg-type]
    about = [interval_over(found) for found in (known, one, unknown, measured(10), measured(10, stderr=1))]
    assert about == ["documents", "text", "text", None, None]
    (joined,) = join([known], [known])
    assert (joined.interval_over, joined.degrees_of_freedom) == ("documents", 1)
    assert interval_over(measured(10, 10)) == "text"
    alone = judge([Gate(metric="perplexity/a.txt", max=2)], [metric(interval_over="text")])[0]
    assert (alone.verdict, "about this text alone" in alone.reason) == ("pass", True)


# -- in a spec ---------------------------------------------------------------------------------------------------------

EVALUATE = [
    {"method": "size"},
    {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 64},
    {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32},
    {"method": "harness", "tasks": ["bookworm_continuation"]},
]


def locations(gates: list[dict[str, Any]], evaluate: list[dict[str, Any]] = EVALUATE) -> list[tuple[Any, str]]:
    with pytest.raises(ValidationError) as caught:
        spec_of(evaluate=evaluate, gates=gates)
    return [(error["loc"], error["type"]) for error in caught.value.errors()]


def test_a_gate_on_what_is_measured_is_accepted() -> None:
    for name in ("size/zeros", "perplexity/heldout.txt", "perplexity/heldout.txt#2", "harness/bookworm/acc:strict"):
        spec = spec_of(evaluate=EVALUATE, gates=[{"metric": name, "max": 1.1}])
        assert spec.model_validate_json(spec.model_dump_json()) == spec
    assert measured_names(spec_of(evaluate=EVALUATE).evaluate)[-1] == "harness/"


def test_a_gate_on_what_is_not_measured_is_refused_by_its_field() -> None:
    good = {"metric": "size/zeros", "max": 1}
    for name in ("perplexity/other.txt", "perplexity/heldout.txt#3", "size", "generation_speed/decode", "harness"):
        assert locations([good, {"metric": name, "max": 1}]) == [(("gates", 1, "metric"), "not_measured")]
    assert locations([good], evaluate=[]) == [(("gates", 0, "metric"), "not_measured")]


def test_bounds_must_allow_something() -> None:
    name = {"metric": "size/zeros"}
    assert locations([name]) == [(("gates", 0), "bound_required")]
    assert locations([name | {"min": 2, "max": 1}]) == [(("gates", 0), "empty_bounds")]
    assert locations([name | {"max": 1, "confidence": 1}]) == [(("gates", 0, "confidence"), "less_than")]
    spec_of(evaluate=EVALUATE, gates=[name | {"min": 1, "max": 1}])


def test_the_evaluators_measure_what_they_say(
    sources: Sources, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a real report has real verdicts: a random model is as good pruned as dense."""
    monkeypatch.setattr("workers.engine.model.turns.MOST_S", 0)  # no more rounds than must be
    evaluate = [*EVALUATE[:3], {"method": "generation_speed", "prompt_tokens": 8, "new_tokens": 4, "repeats": 2}]
    gates = [{"metric": "perplexity/heldout.txt", "max": 1.5}, {"metric": "size/weight_bytes", "max": 0.5}]
    spec = spec_of(evaluate=evaluate, gates=gates)
    report = compress(spec, tmp_path, sources, Silent(), tmp_path / "checkpoint")
    assert [found.name for found in report.metrics] == measured_names(spec.evaluate)
    assert ([gate.verdict for gate in report.gates], report.verdict) == (["pass", "fail"], "fail")
    paired = report.metric("perplexity/heldout.txt")
    assert paired.difference_stderr is not None
    assert paired.dense_stderr is not None
    assert 0 < paired.difference_stderr < paired.dense_stderr
    assert Report.model_validate_json((tmp_path / "model/report.json").read_bytes()) == report


def test_reports_from_before_gates_can_be_read() -> None:
    old = json.loads(report_of().model_dump_json())
    del old["gates"], old["verdict"]
    for found in old["metrics"]:
        del found["ratio_stderr"], found["difference_stderr"]
    report = Report.model_validate(old)
    assert (report.gates, report.verdict) == ([], None)

"""The files beside the weights: companions, card, report, page, manifest."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.reports import report_of
from tests.helpers.small_models import spec_of
from workers.engine.files.manifest import file_entries, verify
from workers.engine.methods.score.wanda import WandaParams
from workers.engine.removals.runtimes import own_code, stock_checkpoint
from workers.engine.report import Report
from workers.engine.reporting.figures import widths_figure
from workers.engine.reporting.model_card import render as render_card
from workers.engine.reporting.page import render as render_page
from workers.engine.stages.package import package

HOSTILE = "<script>alert(1)</script> | `x` {{ 7 * 7 }}\n# heading"


class Page(HTMLParser):
    """Tags still open, and every address the page would fetch."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.fetched, self.text = list[str](), list[str](), ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [str(v) for k, v in attrs if k in ("src", "href") and not str(v).startswith("#")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_of_a_model_that_lost_its_only_attention_has_no_figure_of_widths() -> None:
    dropped = [
        layer.model_copy(update={"shape": (0, 0)}) if layer.reads == "head" else layer for layer in report_of().layers
    ]
    assert widths_figure(dropped) == ""
    dropped[0] = dropped[0].model_copy(update={"shape": (4, 8)})
    assert "Width of attention" in widths_figure(dropped)


@pytest.mark.usefixtures("drawn")
def test_the_page_is_whole_alone_and_names_every_layer() -> None:
    page = Page(render_page(report_of()))
    assert page.open == []
    assert page.fetched == []  # nothing is loaded from anywhere
    for layer in report_of().layers:
        assert layer.name in page.text
    assert "38.50" in page.text
    assert "×1.100" in page.text


@pytest.mark.usefixtures("drawn")
def test_the_page_shows_hostile_text_as_text() -> None:
    hostile = report_of(
        warnings=[HOSTILE], provenance={**report_of().provenance.model_dump(), "model_id": HOSTILE, "device": HOSTILE}
    )
    html = render_page(hostile)
    assert "<script" not in html
    assert "alert(1)" in Page(html).text


@pytest.mark.usefixtures("drawn")
def test_the_same_report_gives_the_same_page() -> None:
    assert render_page(report_of()) == render_page(report_of())


GATES = [
    {
        "metric": "perplexity/heldout.txt",
        "of": "ratio",
        "min": None,
        "max": bound,
        "confidence": 0.95,
        "value": 1.1,
        "interval": (1.08, 1.12),
        "verdict": verdict,
        "reason": "because",
    }
    for bound, verdict in ((2.0, "pass"), (1.05, "fail"), (1.1, "inconclusive"))
]


@pytest.mark.parametrize(
    ("gates", "verdict", "said"),
    [
        (GATES, "fail", "perplexity/heldout.txt (pruned / dense) is 1.100 [1.080, 1.120], allowed is ≤ 1.05"),
        (
            GATES[::2],
            "inconclusive",
            "perplexity/heldout.txt (pruned / dense) is 1.100 [1.080, 1.120], allowed is ≤ 1.1",
        ),
        (GATES[:1], "pass", "the gate holds"),
    ],
)
def test_the_first_thing_said_is_whether_the_gates_hold(gates: list[Any], verdict: str, said: str) -> None:
    report = report_of(gates=gates, verdict=verdict)
    header = render_page(report).split("<header>")[1].split("</header>")[0]
    assert f'badge {verdict}">' in header
    assert said in " ".join(Page(header).text.split())
    above = render_card(report).split("set to zero")[0]
    assert f"**Gates: {verdict}.** {said}".replace("[", "\\[") in above
    assert 'class="badge' not in render_page(report_of()).split("</header>")[0]


def test_the_page_says_when_of_which_job_and_for_whom() -> None:
    made = {"made_at": "2026-03-01T23:30:00+01:00", "origin": {"job_id": "job_1", "asked_by": HOSTILE, "attempt": 2}}
    page = render_page(report_of(**made))
    assert "<script" not in page
    header = Page(page.split("<header>")[1].split("</header>")[0]).text
    assert "2026-03-01 22:30 UTC · job job_1, attempt 2 · for <script>" in header
    assert "UTC" not in render_page(report_of())  # a report of before


def test_the_page_says_what_an_earlier_attempt_did() -> None:
    metric = report_of().metrics[0].model_dump()
    report = report_of(
        resumed_blocks=2,
        resumed_allocation=True,
        metrics=[metric | {"resumed": True}, metric | {"name": "generation_speed/decode"}],
        tune=TUNED,
        spec=spec_of(tune={"method": "group", "dataset": "calibration.txt"}).model_dump(mode="json"),
    )
    said = " ".join(Page(render_page(report)).text.split())
    for sentence in (
        "How much each layer loses was decided by an earlier attempt at the job.",
        "2 blocks were finished by an earlier attempt.",
        "The first 60 steps of the tuning were done by an earlier attempt.",
        "The dense model was measured by an earlier attempt: perplexity/heldout.txt.",
    ):
        assert sentence in said
    assert "earlier attempt" not in render_page(report_of())


@pytest.mark.parametrize(
    ("metric", "title", "value"),
    [
        ({"name": "macs/64", "unit": "MACs", "dense": 4e8, "pruned": 3e8}, "macs/64", "300.0 M MACs"),
        ({"name": "macs/64", "unit": "MACs", "dense": 999, "pruned": 12}, "macs/64", "12 MACs"),
        ({"name": "size/weight_bytes", "unit": "bytes", "pruned": 14.3e6}, "size/weight_bytes", "14.30 MB"),
        ({"name": "generation_speed/decode", "unit": "tokens/s", "pruned": 150.2}, "decode", "150.2 tokens/s"),
        ({"name": "perplexity/a.txt", "unit": "perplexity"}, "perplexity/a.txt", "38.50"),
        ({"name": "harness/task/acc", "unit": "acc"}, "harness/task/acc", "38.50"),
        ({"name": "other/thing", "unit": "furlongs"}, "other/thing, furlongs", "38.50"),
    ],
)
def test_every_tile_has_a_unit(metric: dict[str, Any], title: str, value: str) -> None:
    page = render_page(report_of(metrics=[report_of().metrics[0].model_dump() | metric]))
    tile = " ".join(Page(page.split('<dl class="tiles">')[1].split("</dl>")[0]).text.split())
    assert title in tile
    assert value in tile


@pytest.mark.usefixtures("drawn")
def test_a_report_without_measurements_has_a_page() -> None:
    assert Page(render_page(report_of(metrics=[]))).open == []


TUNED = {
    "method": "group",
    "steps": 200,
    "stopped_early": True,
    "best_step": 100,
    "holdout_loss_before": 3.5,
    "holdout_loss_after": 3.25,
    "curve": [
        {"step": 0, "holdout_loss": 3.6, "train_loss": None},
        {"step": 100, "holdout_loss": 3.25, "train_loss": 3.4},
        {"step": 200, "holdout_loss": 3.3, "train_loss": 3.1},
    ],
    "tokens_per_s": 1234.5,
    "trained_parameters": 160_128,
    "train_windows": 800,
    "holdout_windows": 16,
    "peak_memory_bytes": 10**9,
    "device_peak_memory_bytes": None,
    "resumed_step": 60,
}


@pytest.mark.usefixtures("drawn")
def test_a_tuned_model_says_how() -> None:
    params = {"method": "group", "dataset": "calibration.txt", "distill": {"weight": 0.5}}
    tuned = report_of(tune=TUNED, spec=spec_of(tune=params).model_dump(mode="json"))
    page = Page(render_page(tuned))
    assert page.open == []
    said = (
        "Then group trained 160,128 parameters of weights in 4 bits, stored dense, for 200 steps of 8 x 256 tokens of "
        "calibration.txt, 50 % of the loss on the dense model's predictions. The loss on held-out windows of that text "
        "went from 3.5000 to 3.2500 nats a token; step 100 ships, the best."
    )
    assert said in page.text
    assert "200, stopped early, resumed at 60; step 100 ships" in page.text
    assert "arXiv:2309.14717" in page.text
    assert "loss, nats a token" in page.text
    card = render_card(tuned)
    assert said in card
    assert "# tiny, pruned and tuned\n" in card
    assert "Tuning" not in Page(render_page(report_of())).text


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    ("parts", "shapes", "said", "code"),
    [
        ({}, [(4, 8)] * 3, "50 % of the weights of 6 linear layers (96 of 192) were set to zero", False),
        (
            {"score": {"method": "taylor"}, "prune": {"method": "structured", "sparsity": 0.5}},
            [(4, 4)] * 3,
            "50 % of the weights of 6 linear layers were cut off, 1,000 parameters became 904: scored by taylor",
            False,
        ),
        (
            {"score": {"method": "taylor"}, "prune": {"method": "structured", "sparsity": 0.5}},
            [(4, 4), (4, 2), (4, 6)],
            "1,000 parameters became 904",
            True,
        ),
        (
            {"score": {"method": "reverse_order"}, "prune": {"method": "depth", "layers": 1}},
            [(4, 8), (4, 8), (0, 0)],
            "1 of 3 decoder blocks were dropped: scored by reverse_order, removed by depth.",
            False,
        ),
    ],
    ids=["zeros", "uniform", "per-layer", "depth"],
)
def test_page_and_card_say_what_went_and_how_to_load_the_rest(
    parts: dict[str, Any], shapes: list[tuple[int, int]], said: str, code: bool
) -> None:
    layers = [layer.model_dump() | {"shape": shapes[layer.block]} for layer in report_of().layers]
    runtimes = own_code() if code else stock_checkpoint("narrower layers")
    report = report_of(
        spec=spec_of(**parts).model_dump(mode="json"), layers=layers, parameters_after=904, runtimes=runtimes
    )
    page = Page(render_page(report)).text
    assert said in page
    cut = shapes != [(4, 8)] * 3
    assert ("Shape of each block" in page) == ("Sparsity of each layer" not in page) == cut
    card = render_card(report)
    assert said in card
    assert ("trust_remote_code=True" in card) == code


def test_the_card_has_front_matter_papers_and_numbers() -> None:
    card = render_card(report_of())
    front, body = re.fullmatch(r"---\n(.*?)---\n(.*)", card, re.S).groups()  # type: ignore[union-attr]
    assert yaml.safe_load(front)["tags"] == ["espalier", "pruning", "sparsity"]
    assert "base_model" not in yaml.safe_load(front)  # a local name means nothing to the hub
    assert "arXiv:2306.11695" in body
    assert "| perplexity/heldout.txt | 35.00 | 38.50 | ×1.100 |" in body
    assert json.loads(body.split("```json")[1].split("```")[0]) == report_of().spec
    assert WandaParams().method in body


def test_the_card_names_a_hub_model_and_stays_inert() -> None:
    provenance = {**report_of().provenance.model_dump(), "model_id": "owner/name"}
    front = render_card(report_of(provenance=provenance)).split("---")[1]
    assert yaml.safe_load(front)["base_model"] == "owner/name"
    card = render_card(report_of(warnings=[HOSTILE]))
    assert "<script>" not in card
    assert "\n# heading" not in card


@pytest.mark.usefixtures("drawn")
def test_page_and_card_show_what_both_wrote() -> None:
    written = {"prompt": "Once upon", "dense": " a time.", "pruned": f" a ![time](http://x) {HOSTILE}"}
    report = report_of(samples=[written])
    page = Page(render_page(report))
    assert page.open == []
    assert page.fetched == []
    assert all(text in page.text for text in written.values())
    card = render_card(report)
    assert "| Once upon | a time. | a !\\[time](http://x) &lt;script&gt;" in card
    assert "\n# heading" not in card


def test_what_a_licence_and_a_tokenizer_need_travels_and_code_does_not(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    travels = {
        "LICENSE.md": "Do as you like.",
        "Notice": "Made by us.",
        "USE_POLICY.md": "Be kind.",
        "spiece.model": "pieces",
        "additional_chat_templates/tool.jinja": "{{ messages }}",
    }
    stays = {"tokenization_own.py": "import os", "license.py": "import os", "README.md": "# Model", "a.gguf": "x"}
    (tiny / "additional_chat_templates").mkdir()
    for name, text in (travels | stays).items():
        (tiny / name).write_text(text)
    settings = json.loads((tiny / "tokenizer_config.json").read_text())
    code = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (tiny / "tokenizer_config.json").write_text(json.dumps(settings | code))
    package(tiny, folder, report_of())
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found & {*travels, *stays} == {*travels, "README.md"}
    assert (folder / "README.md").read_text() != "# Model"
    assert all((folder / name).read_text() == text for name, text in travels.items())
    assert json.loads((folder / "tokenizer_config.json").read_text()) == settings
    assert verify(folder) == []


@pytest.fixture
def packaged(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (tiny / "pytorch_model.bin").write_bytes(b"pickle")
    package(tiny, folder, report_of())
    return folder


def test_a_package_holds_the_tokenizer_and_no_pickle(packaged: Path) -> None:
    assert {p.name for p in packaged.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "report.html",
        "report.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert Report.model_validate_json((packaged / "report.json").read_text()) == report_of()


def test_the_manifest_notices_every_change(packaged: Path) -> None:
    assert verify(packaged) == []
    assert {e.path for e in file_entries(packaged)} == {p.name for p in packaged.iterdir()} - {"manifest.json"}
    (packaged / "model.safetensors").write_bytes(b"weighty")
    (packaged / "config.json").unlink()
    (packaged / "stray").touch()
    assert verify(packaged) == ["config.json: missing", "model.safetensors: changed", "stray: not in the manifest"]
    (packaged / "config.json").symlink_to("model.safetensors")
    os.mkfifo(packaged / "pipe")
    first, second = verify(packaged)  # and nothing is read
    assert first.startswith("config.json: is a link to model.safetensors")
    assert second == "pipe: is no regular file"

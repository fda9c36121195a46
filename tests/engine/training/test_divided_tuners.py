"""Tuners that train a part of a model, or what they put into it, divided over two ranks beside the same on one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from tests.helpers.divided_tuning import Job, run_all
from tests.helpers.mixtures import save
from tests.helpers.on_ranks import on_ranks
from tests.helpers.small_models import EXAMPLES, SIZES, SaveModel
from tests.helpers.tuning import halved, tuning
from workers.engine.ranks import Ranks
from workers.engine.registry import methods
from workers.engine.sources.resolve import Sources

FEW: dict[str, Any] = {"dataset": "again.txt", "steps": 4, "batch": 4, "holdout": 5}
LOSS = 1e-6
"""Relative, of held-out losses. Measured: 1.3e-8 at most."""
ROUNDING = 2e-4
"""Of trained weights relative to the largest of their tensor. Measured: 5e-5 at most."""
TUNERS = {
    "full of routers": ("mixture", tuning("full", train="routers", learning_rate=0.01, **FEW)),
    "last_layers": ("tied", tuning("last_layers", blocks=1, tied_head="joint", learning_rate=0.01, **FEW)),
    "lora": ("mixture", tuning("lora", dropout=0.0, learning_rate=0.03, **FEW)),
    "group": ("mixture", tuning("group", **FEW | {"group_size": 8, "learning_rate": 0.1})),
    "group that quantises nothing": ("tied", tuning("group", bits=16, learning_rate=0.03, **FEW)),
    "spp": ("mixture", tuning("spp", learning_rate=0.3, **FEW)),
}
"""Model and parameters of each. Two matrices of the mixture's 24 inputs have groups of 8 alone."""
GO_ON = ("lora", "last_layers")
"""Begun on one rank; two go on."""
COME_BACK = ("group", "spp")
"""Begun on two; one goes on."""
HALF = ("lora", "last_layers", "group that quantises nothing")
"""Computed in bfloat16 too: the frozen weights are rounded to it, those that are trained and the result are not."""


@pytest.fixture
def job(sources: Sources, save_model: SaveModel, tmp_path: Any) -> Callable[..., Job]:
    """Makes the job of a tuner on a pruned model, under a name."""
    (sources.data_dir / "again.txt").write_text((EXAMPLES / "data/calibration.txt").read_text()[:600] * 40)
    folders = {
        "mixture": save("mixtral", sources.models_dir / "mixture"),
        "tied": save_model("tied", LlamaConfig(**SIZES | {"tie_word_embeddings": True})),
    }
    pruned = {name: halved(folder, tmp_path / f"pruned-{name}") for name, folder in folders.items()}

    def made(name: str, tuner: str, **parts: Any) -> Job:
        model, tune = TUNERS[tuner]
        return Job(tmp_path, pruned[model], f"{name} {tuner}", {"model": {"id": model}, "tune": tune, **parts})

    return made


def test_ranks_train_what_one_trains_and_another_number_goes_on_with_it(job: Callable[..., Job]) -> None:
    assert {tune["method"] for _, tune in TUNERS.values()} == {method.name for method in methods("tune")}
    whole = {name: job("whole", name) for name in TUNERS}
    on = {name: replace(job("on", name), stop=1) for name in GO_ON}
    back = {name: replace(job("back", name), stop=1) for name in COME_BACK}
    bfloat16 = {"compute": {"dtype": "bfloat16", "device": "cpu"}}
    half = [job("half", name, **bfloat16) for name in HALF]
    run_all(Ranks(), [*whole.values(), *on.values()])
    going_on = [replace(one, stop=None) for one in on.values()]
    two = {name: job("two", name) for name in TUNERS if name not in GO_ON}
    on_ranks(2, run_all, [*going_on, *two.values(), *back.values(), *half])
    run_all(Ranks(), [replace(one, stop=None) for one in back.values()])
    for resumed, jobs in ((2, on), (0, two), (2, back)):
        for name, other in jobs.items():
            same(other, whole[name], resumed)
    # Once, but where what is put in, codes in place of weights, changes the model at once.
    ended = [*whole.values(), *on.values(), *two.values(), *half]
    assert [job.name for job in ended if job.reads != 1] == ["two group"]
    assert two["group"].reads == 2
    begun = {name: job.read()[0] for name, job in whole.items()}
    as_it_was = {
        name for name, told in begun.items() if told["curve"][0]["holdout_loss"] == told["holdout_loss_before"]
    }
    assert as_it_was == TUNERS.keys() - {"group"}, "on one device it is measured before anything is put in"
    for one in half:
        report, found = one.read()
        begun = load_file(one.model / "model.safetensors")
        assert report["best_step"] > 0
        assert all(torch.equal(found[name] == 0, tensor == 0) for name, tensor in begun.items() if "proj" in name)


def same(other: Job, whole: Job, resumed: int) -> None:
    """Assert that one made what the other did, up to rounding, of weights that changed."""
    expected, weights = whole.read()
    report, found = other.read()
    assert report["resumed_step"] == resumed, other.name
    assert expected["best_step"] > 0, whole.name
    begun = load_file(whole.model / "model.safetensors")
    assert any(not torch.equal(begun[name], tensor) for name, tensor in weights.items())
    for looked, again in zip(expected["curve"], report["curve"], strict=True):
        assert again["holdout_loss"] == pytest.approx(looked["holdout_loss"], rel=LOSS), other.name
    for name, tensor in weights.items():
        assert torch.equal(found[name] == 0, tensor == 0), (other.name, name)
        assert (found[name] - tensor).abs().max() <= ROUNDING * tensor.abs().max(), (other.name, name)

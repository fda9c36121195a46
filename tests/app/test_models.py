"""Models that the service can see, and the planner's answers about them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.jobs import local_models
from app.models import catalogue
from app.settings import Settings
from tests.helpers.api import ROOT, Api, tiny_model
from workers.engine.contracts.refs import ModelRef
from workers.engine.planning import abilities as planning
from workers.engine.planning.abilities import abilities
from workers.engine.registry import methods
from workers.engine.sources.resolve import Sources, resolve_model

EXAMPLES = ROOT / "examples/models"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """With a folder of models: a Llama, a mixture, one that is damaged, one of pickles, a file and a hidden folder."""
    folder = tmp_path / "models"
    for name in ("bookworm-7m", "bookworm-moe-8m"):
        shutil.copytree(EXAMPLES / name, folder / name)
    shutil.copytree(EXAMPLES / "bookworm-7m", folder / "cut-off")
    weights = folder / "cut-off/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    tiny_model(folder / "pickles", {"model_type": "llama"}, ("pytorch_model.bin", "tokenizer.json"))
    (folder / "README.md").write_text("no model")
    (folder / ".cache").mkdir()
    return settings.model_copy(update={"models_dir": folder})


def test_each_folder_is_shown_with_what_it_is_or_why_not(api: Api) -> None:
    page = api.client.get("/v1/models").json()
    found = {model["id"]: model for model in page["data"]}
    assert list(found) == ["bookworm-7m", "bookworm-moe-8m", "cut-off", "pickles"]
    llama = found["bookworm-7m"]
    assert (llama["model_type"], llama["family"], llama["blocks"], llama["compressible"]) == ("llama", "Llama", 8, True)
    assert llama["parameters"] == 6_951_168
    assert {"mask", "structured", "depth", "hidden", "duplicate"} <= {*llama["methods"]}
    assert "experts" not in llama["methods"]
    assert {"experts", "structured", "depth"} <= {*found["bookworm-moe-8m"]["methods"]}
    for name, code in (("cut-off", "unsupported_model"), ("pickles", "unsafe_weights")):
        broken = found[name]
        assert (broken["compressible"], broken["code"], broken["methods"]) == (False, code, [])
        assert broken["reason"]


def test_pages_cover_every_model_once(api: Api) -> None:
    seen, url = [], "/v1/models?limit=3"
    while url:
        response = api.client.get(url)
        seen += [model["id"] for model in response.json()["data"]]
        url = response.headers.get("Link", "")[1:].partition(">")[0]
    assert seen == ["bookworm-7m", "bookworm-moe-8m", "cut-off", "pickles"]


def test_the_reason_is_the_planners(api: Api) -> None:
    """A method said not to fit is refused with the same words, and one said to fit is accepted."""
    text = {"dataset": "calibration.txt", "samples": 1, "sequence_length": 8}
    for name in ("bookworm-7m", "bookworm-moe-8m"):
        model = api.client.get(f"/v1/models/{name}").json()
        for each in model["abilities"]:
            spec = {"model": {"id": name}, **(each["spec"] or {})}
            if each["fits"]:
                assert api.client.post("/v1/jobs?dry_run=true", json={"spec": spec}).status_code == 200, each
    refused = next(each for each in model["abilities"] if each["method"] == "hidden")
    spec = {"model": {"id": name}, "score": {"method": "magnitude"}, "prune": {"method": "hidden", "sparsity": 0.5}}
    problem = api.client.post("/v1/jobs?dry_run=true", json={"spec": {**spec, "calibrate": text}}).json()
    assert (problem["code"], problem["detail"]) == (refused["code"], refused["reason"])


def test_every_method_that_edits_is_answered() -> None:
    source = resolve_model(ModelRef(id="bookworm-7m"), Sources(EXAMPLES, EXAMPLES))
    _, found = abilities(source)
    assert [(each.stage, each.method) for each in found] == [
        (stage, method.name) for stage in ("prune", "grow") for method in methods(stage)
    ]
    assert all(each.fits or each.reason for each in found)


def test_a_model_is_looked_at_again_only_when_its_files_change(
    api: Api, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_models, "SETTLED_NS", 0)
    catalogue._kept.cache_clear()
    looked: list[str] = []
    real = planning.abilities
    monkeypatch.setattr(planning, "abilities", lambda source: (looked.append(source.id), real(source))[1])

    def shown() -> Any:
        return api.client.get("/v1/models/bookworm-7m").json()

    first = shown()
    assert shown() == first
    assert looked == ["bookworm-7m"]
    config = settings.models_dir / "bookworm-7m/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 9}))
    assert shown()["code"] == "unsupported_model"
    assert looked == ["bookworm-7m", "bookworm-7m"]


def test_results_of_ones_own_jobs(api: Api, foreign: httpx2.Headers) -> None:
    job = api.succeeded()
    api.submit()
    [result] = api.client.get("/v1/models?source=job").json()["data"]
    assert (result["id"], result["parameters"], result["compressible"]) == (job["id"], 4, False)
    assert api.client.get(f"/v1/models/{job['id']}").json() == {**result, "abilities": []}
    assert api.client.get("/v1/models?source=job", headers=foreign).json()["data"] == []
    assert api.client.get(f"/v1/models/{job['id']}", headers=foreign).status_code == 404


@pytest.mark.parametrize("name", ["nothing", "README.md", ".cache", "..", "%2e%2e", "a%2Fb", "%00", "x" * 97])
def test_a_name_of_no_model_is_404(api: Api, name: str) -> None:
    assert api.client.get(f"/v1/models/{name}").status_code in (404, 422)

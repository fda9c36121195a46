"""Mistyped fields and methods: the answer names what was meant, at every depth of a spec, a request and a sweep."""

from __future__ import annotations

import ast
import re
from typing import Any

from app.http.suggest import did_you_mean, field_names
from tests.helpers.api import ROOT, SPEC, WANDA, Api
from workers.engine.registry import methods
from workers.engine.spec import CompressionSpec


def changed(stage: str, **fields: Any) -> dict[str, Any]:
    return {"spec": {**WANDA, stage: fields}}


MEASURED = {"method": "perplexity", "dataset": "heldout.txt"}
LORA = {"method": "lora", "dataset": "heldout.txt"}
# (body, pointer, what was meant)
MISTYPED: list[tuple[dict[str, Any], str, str]] = [
    ({"spec": SPEC, "prioritty": 1}, "/prioritty", "priority"),
    ({"spec": {**SPEC, "scroe": 1}}, "/spec/scroe", "score"),
    ({"spec": {**SPEC, "Prune": 1}}, "/spec/Prune", "prune"),
    (changed("model", id="bookworm-7m", revison="main"), "/spec/model/revison", "revision"),
    (changed("calibrate", dataset="calibration.txt", sample=8), "/spec/calibrate/sample", "samples"),
    (changed("score", method="wnada"), "/spec/score/method", "wanda"),
    (changed("allocate", method="alpha-pruning"), "/spec/allocate/method", "alpha_pruning"),
    (changed("prune", method="sparse_gpt"), "/spec/prune/method", "sparsegpt"),
    (changed("prune", method="mask", sparcity=0.5), "/spec/prune/sparcity", "sparsity"),
    (
        changed("prune", method="structured", at_most={"parameter": 5}),
        "/spec/prune/at_most/parameter",
        "parameters",
    ),
    (changed("refine", method="dsnoT"), "/spec/refine/method", "dsnot"),
    (changed("refine", method="dsnot", cycle=3), "/spec/refine/cycle", "cycles"),
    (changed("tune", **LORA, learning_rat=1), "/spec/tune/learning_rat", "learning_rate"),
    (changed("tune", **LORA, distill={"wieght": 1}), "/spec/tune/distill/wieght", "weight"),
    (
        {"spec": {**WANDA, "evaluate": [{"method": "size"}, {**MEASURED, "sequence_lenght": 64}]}},
        "/spec/evaluate/1/sequence_lenght",
        "sequence_length",
    ),
    ({"spec": {**WANDA, "evaluate": [{"method": "perplexty"}]}}, "/spec/evaluate/0/method", "perplexity"),
    (
        {"spec": {**WANDA, "gates": [{"metric": "a", "max": 1, "confidense": 1}]}},
        "/spec/gates/0/confidense",
        "confidence",
    ),
    (changed("package", dtype="bfloat"), "/spec/package/dtype", "bfloat16"),
    (changed("compute", memory_bugdet=2**30), "/spec/compute/memory_bugdet", "memory_budget"),
]


def test_a_mistyped_name_is_answered_with_the_right_one(api: Api) -> None:
    for body, pointer, meant in MISTYPED:
        problem = api.client.post("/v1/jobs", json=body).json()
        (error,) = [e for e in problem["errors"] if e["pointer"] == pointer]
        assert f"(did you mean `{meant}`?)" in error["detail"], error
        assert meant in error["allowed"]


def test_sweeps_suggest_in_their_own_fields_in_the_spec_and_behind_pointers(api: Api) -> None:
    grid = {"/prune/sparsity": [0.3, 0.4]}
    for body, pointer, meant in (
        ({"spec": SPEC, "grid": grid, "stpo": {}}, "/stpo", "stop"),
        ({"spec": SPEC, "grid": grid, "lits": {}}, "/lits", "list"),
        ({"spec": SPEC, "grid": grid, "stop": {"ascendng": "/prune/sparsity"}}, "/stop/ascendng", "ascending"),
        ({"spec": {**SPEC, "evalute": []}, "grid": grid}, "/spec/evalute", "evaluate"),
        ({"spec": SPEC, "grid": {"/prune/sparsty": [0.3, 0.4]}}, "/spec/prune/sparsty", "sparsity"),
        ({"spec": SPEC, "list": [{"/scroe/method": "wanda"}]}, "/spec/scroe", "score"),
        ({"spec": SPEC, "grid": {"/score/method": ["wanda", "magnitud"]}}, "/spec/score/method", "magnitude"),
    ):
        problem = api.client.post("/v1/sweeps", json=body).json()
        details = [error["detail"] for error in problem["errors"] if error["pointer"] == pointer]
        assert details, (body, problem)
        assert f"(did you mean `{meant}`?)" in details[0]


def test_a_field_of_another_object_is_sent_there(api: Api) -> None:
    """A method's parameter beside its stage, or a spec that was not put into `spec`."""
    problem = api.client.post("/v1/jobs", json={"spec": {**SPEC, "sparsity": 0.5}}).json()
    assert "it is one of `prune`" in problem["errors"][0]["detail"]
    problem = api.client.post("/v1/jobs", json=SPEC).json()
    details = {error["pointer"]: error["detail"] for error in problem["errors"]}
    assert "it is one of `spec`" in details["/model"]
    problem = api.client.post("/v1/jobs", json={"spec": {**SPEC, "allocate": "owl"}}).json()
    assert problem["errors"][0]["detail"] == 'this must be a JSON object, e.g. {"method": "owl"}'


def test_what_resembles_nothing_gets_no_guess_and_short_names_none_either() -> None:
    assert did_you_mean("colour", ["score", "prune"]) == ""
    assert did_you_mean("gpu", ["auto", "cpu", "cuda"]) == ""
    assert did_you_mean("OWL", ["owl", "dlp"]) == " (did you mean `owl`?)"


def test_every_object_of_a_spec_knows_its_fields() -> None:
    for stage in ("score", "allocate", "prune", "refine", "tune"):
        for method in methods(stage):
            tag = [method.name] if len(methods(stage)) > 1 else []
            assert field_names(CompressionSpec, (stage, *tag)) == tuple(method.params.model_fields), method.name


def test_no_message_shows_a_brace_or_a_gap_of_its_template() -> None:
    """pydantic fills `{name}` from the context and knows no `{{`."""
    checked = 0
    for path in [*(ROOT / "app").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]:
        source = path.read_text()
        for call in ast.walk(ast.parse(source)) if "PydanticCustomError(" in source else ():
            if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "PydanticCustomError"):
                continue
            texts = [
                n.value for n in ast.walk(call.args[1]) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            keys = {
                k.value for n in call.args[2:] if isinstance(n, ast.Dict) for k in n.keys if isinstance(k, ast.Constant)
            }
            for text in texts:
                assert "{{" not in text, (path, text)
                assert set(re.findall(r"\{(\w+)\}", text)) <= keys, (path, text)
            checked += 1
    assert checked > 20

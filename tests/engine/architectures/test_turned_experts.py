"""Qwen3-VL-MoE's released files hold all experts' tensors transposed to how transformers saves them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.families.checkpoints import save, tiny_model
from tests.families.loading import logits
from tests.families.sides import Side, ids_for, loads
from tests.families.wrappers import wrapper_class, wrapper_config
from tests.helpers.small_models import spec_of, walk
from workers.engine.errors import UnsupportedModel
from workers.engine.planning.plan import plan
from workers.engine.removals.assemble import assemble
from workers.engine.sources.resolve import Sources

FAMILY, FILE = "qwen3_vl_moe", "model.safetensors"
RANDOM: dict[str, Any] = {"method": "random"}
JOBS: dict[str, dict[str, Any]] = {
    "wanda": {},
    "experts": {"score": RANDOM, "prune": {"method": "experts", "experts": 4}},
    "expert channels": {"score": RANDOM, "prune": {"method": "expert_channels", "channels": 8, "compensate": False}},
}


def is_turned(name: str) -> bool:
    return ".experts." in name


@pytest.fixture
def _both(sources: Sources) -> None:
    """A tiny model as transformers saves it, `tiny`, and as it is released, `released`."""
    folder, released = (sources.models_dir / name for name in ("tiny", "released"))
    save(tiny_model(wrapper_config(FAMILY), wrapper_class(FAMILY)), folder)
    shutil.copytree(folder, released)
    tensors = {n: t.mT.contiguous() if is_turned(n) else t for n, t in load_file(folder / FILE).items()}
    save_file(tensors, released / FILE, {"format": "pt"})


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("job", JOBS)
def test_results_are_the_same_and_lie_as_the_model_did(job: str, sources: Sources, tmp_path: Path) -> None:
    found: dict[str, dict[str, Tensor]] = {}
    for name in ("tiny", "released"):
        walked = walk(spec_of(**JOBS[job], model={"id": name}), sources, tmp_path / name)
        assemble(walked.spec, walked.model, walked.outcome, walked.checkpoint, tmp_path / name / "model")
        found[name] = load_file(tmp_path / name / "model" / FILE)
    assert found["tiny"].keys() == found["released"].keys()
    for name, tensor in found["tiny"].items():
        assert torch.equal(found["released"][name], tensor.mT if is_turned(name) else tensor), name
    sides = [Side(tmp_path / name / "model", wrapper_class(FAMILY)) for name in found]
    for side in sides:
        loads(side)
    one, other = (logits(side.model, ids_for(side)) for side in sides)
    assert torch.equal(one, other)


@pytest.mark.usefixtures("_both")
def test_a_width_at_which_transformers_would_not_turn_them_is_refused(sources: Sources) -> None:
    """Of 16 channels and 32 hidden dimensions, gate and up together are square."""
    prune = JOBS["expert channels"]["prune"] | {"channels": 16}
    assert plan(spec_of(score=RANDOM, prune=prune), sources).parameters_after
    with pytest.raises(UnsupportedModel, match=r"would not turn .*gate_up_proj of \[8, 32, 32\]"):
        plan(spec_of(score=RANDOM, prune=prune, model={"id": "released"}), sources)

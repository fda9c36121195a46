"""Memory of loading a mixture whole, in a process of its own, beside the dry run's prediction."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from benchmarks.random_model import Shape, write
from tests.helpers.small_models import spec_of
from workers.engine.model.loaded import described, in_parts, load_model
from workers.engine.planning.plan import plan
from workers.engine.sources.resolve import Sources

_MIXTURE = Shape(hidden=512, mlp=256, heads=8, blocks=4, kv_heads=2, experts=64)
_MEASURE = """
import gc, sys
from pathlib import Path
import torch
from workers.engine.model.loaded import load_model, load_result
from workers.engine.model.loss import nll
from workers.engine.store.clock import peak_resident_bytes

for load in (load_model, load_result):
    model = load(Path(sys.argv[1]), torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        nll(model, torch.zeros((1, 512), dtype=torch.long))
    del model
    gc.collect()
    print(peak_resident_bytes())
"""
"""Loads and measures the dense model, then the result, as evaluation does. Prints the peak so far after each."""


def test_of_a_model_in_parts_no_more_than_one_is_whole(tiny: Path) -> None:
    """Weights that are there when a part is given are of that part, where those of the parts before were taken away."""
    held: list[set[str]] = []

    def alive() -> int:
        return sum(one.numel() for one in gc.get_objects() if type(one) is nn.Parameter and not one.is_meta)

    gc.collect()
    before = alive()
    architecture = described(tiny)[0]
    layout = architecture.layout
    model, parts = in_parts(tiny, torch.device("cpu"), torch.float32)
    for number, block in enumerate(parts):
        assert block == (number if number < architecture.blocks else None)
        held.append({name for name, parameter in model.named_parameters() if not parameter.is_meta})
        assert alive() - before == sum(model.get_parameter(name).numel() for name in held[-1])
        for module in model.modules():
            for name, parameter in [*module.named_parameters(recurse=False)]:
                setattr(module, name, nn.Parameter(parameter.to("meta")))
    whole = load_model(tiny, torch.device("cpu"), torch.float32)
    names = {name for name, _ in whole.named_parameters()}
    for block, one in enumerate(held[:-1]):
        assert one == {name for name in names if name.startswith(f"{layout.in_module(layout.block(block))}.")}
    assert held[-1] == names - set().union(*held[:-1])
    assert held[-1]


def test_a_mixture_is_loaded_within_its_prediction(sources: Sources) -> None:
    """Its experts one by one, beside all of them in one tensor, are a second model: only a block's may be there."""
    folder = sources.models_dir / "mixture"
    write(_MIXTURE, folder, "bfloat16")
    perplexity = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 512}
    spec = spec_of(model={"id": "mixture"}, score={"method": "magnitude"}, calibrate=None, evaluate=[perplexity])
    predicted = plan(spec, sources).peak_memory_bytes
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs = map(int, ran.stdout.split())
    assert ours <= predicted
    assert theirs <= predicted
    assert predicted <= 1.4 * theirs

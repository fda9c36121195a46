"""Memory that a job needs, and files that are mapped beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.small_models import spec_of
from workers.engine.architectures.architecture import Architecture
from workers.engine.architectures.recognise import recognise
from workers.engine.errors import MemoryBudgetTooSmall
from workers.engine.model.loaded import load_result
from workers.engine.planning.memory import Memory
from workers.engine.planning.plan import plan
from workers.engine.planning.predictions import checks_whole, least_memory_bytes, predicted_memory, whole_models
from workers.engine.report import Plan
from workers.engine.sources.resolve import ModelSource, Sources, resolve_model

PERPLEXITY = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 128, "samples": 20}
SPEED = {"method": "generation_speed", "prompt_tokens": 64}
BATCH = PERPLEXITY | {"batch_size": 64}
"""Its logits take more than anything else of such a small model."""


@pytest.fixture
def halved(tiny: Path) -> Path:
    """The small model in bfloat16."""
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tiny / "model.safetensors").items()}
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    return tiny


def model(sources: Sources) -> tuple[ModelSource, Architecture]:
    source = resolve_model(spec_of().model, sources)
    return source, recognise(source.config, source.stored)


def planned(sources: Sources, **parts: Any) -> Plan:
    return plan(spec_of(**parts), sources)


def is_mapped(folder: Path) -> bool:
    return str(folder / "model.safetensors") in Path("/proc/self/maps").read_text()


def test_tensors_that_ship_in_the_compute_type_are_mapped_pages_and_others_are_copies(tiny: Path) -> None:
    cpu = torch.device("cpu")
    loaded = load_result(tiny, cpu, torch.float32)
    assert is_mapped(tiny)
    del loaded
    assert not is_mapped(tiny)
    loaded = load_result(tiny, cpu, torch.bfloat16)
    assert not is_mapped(tiny)
    assert loaded.dtype == torch.bfloat16


def test_a_plan_says_what_is_mapped(halved: Path, sources: Sources) -> None:
    files = sum(facts.bytes for facts in model(sources)[0].tensors.values())
    assert planned(sources, evaluate=[BATCH]).mapped_memory_bytes == files
    assert planned(sources, evaluate=[BATCH], compute={"dtype": "bfloat16"}).mapped_memory_bytes == 0


def test_what_is_needed_is_the_same_with_a_budget_and_without(halved: Path, sources: Sources) -> None:
    spec = spec_of(evaluate=[BATCH])
    free = predicted_memory(spec, *model(sources))
    assert free.mapped > 0
    for room in (0, 1000, free.mapped, 2 * free.mapped):
        bound = planned(sources, evaluate=[BATCH], compute={"memory_budget": free.needed + room})
        assert bound.mapped_memory_bytes == min(room, free.mapped), "as much as there is room for"
        assert bound.peak_memory_bytes == free.needed + bound.mapped_memory_bytes
        assert bound.least_memory_bytes == free.needed
    assert whole_models(spec, *model(sources), free.needed) == 1
    assert whole_models(spec, *model(sources), free.needed - 1) == 0


def test_the_least_memory_is_that_of_a_budget_which_is_just_kept(halved: Path, sources: Sources) -> None:
    text = {"dataset": "calibration.txt", "samples": 128, "sequence_length": 32}
    tune = {"method": "full", "dataset": "calibration.txt", "batch": 1, "sequence_length": 32, "holdout": 4}
    for parts in ({"evaluate": [BATCH]}, {"evaluate": [SPEED | {"batch_size": 64}]}, {"tune": tune}):
        parts |= {"calibrate": text}
        free = planned(sources, **parts)
        least = free.least_memory_bytes
        assert least <= free.peak_memory_bytes - free.mapped_memory_bytes
        assert planned(sources, **parts, compute={"memory_budget": least}).peak_memory_bytes <= least
        with pytest.raises(MemoryBudgetTooSmall):
            planned(sources, **parts, compute={"memory_budget": least - 1})
    assert least_memory_bytes(spec_of(evaluate=[BATCH]), *model(sources)) < 2**29, "block by block"


def test_a_check_fits_by_what_it_needs(halved: Path, sources: Sources) -> None:
    """Mapped files do not count; what else there is of the job does."""
    spec, (source, architecture) = spec_of(), model(sources)
    needed = 500 * 2**20 + 4 * source.parameters
    assert checks_whole(spec, source, architecture, needed)
    assert not checks_whole(spec, source, architecture, needed - 1)
    assert checks_whole(spec, source, architecture, None)


def test_the_most_of_two_times_is_of_all_and_of_what_is_needed() -> None:
    assert Memory(3, 4).and_then(Memory(5)) == Memory(5, 2)
    assert Memory(3, 4).and_then(Memory(8)) == Memory(8, 0)
    assert Memory(3, 4).within(5) == Memory(3, 2)
    assert Memory(3, 4).within(2) == Memory(3, 0)

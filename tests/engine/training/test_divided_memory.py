"""Bytes of tensors that a rank of a divided training holds: never the model whole."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig

from tests.helpers.divided_tuning import Job
from tests.helpers.on_ranks import on_ranks
from tests.helpers.small_models import SIZES, SaveModel, load, spec_of
from tests.helpers.training import TARGETS, training
from tests.helpers.tuning import tuning
from workers.engine.events import Silent
from workers.engine.model.loaded import described
from workers.engine.ranks import Ranks
from workers.engine.sources.resolve import Sources
from workers.engine.stages import train, tune
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run
from workers.engine.training.shards import Shards, part_by_part
from workers.engine.training.text import training_text

DEEP = SIZES | {"hidden_size": 16, "num_hidden_layers": 16, "intermediate_size": 2048, "tie_word_embeddings": True}
ONE: dict[str, Any] = {"steps": 1, "batch": 2, "holdout": 2}
TUNERS = {
    "last_layers": tuning("last_layers", blocks=1, **ONE),
    "lora": tuning("lora", rank=1, **ONE),
    "group": tuning("group", rank=1, **ONE),
}
SHEARED = {"score": None, "calibrate": None, "train": training("sheared", **ONE), **TARGETS["head"]["ranking"]}
IN_PARTS = Shards.in_parts


class Training(Job):
    """A pruning while training instead."""

    def run(self, ranks: Ranks) -> None:
        spec, sources = spec_of(**self.parts), Sources(self.folder / "models", self.folder / "data")
        dense, place = replace(load(spec, sources), ranks=ranks), self.folder / self.name
        text = ranks.first(lambda: training_text("train", spec.train, dense, sources))
        run = Run.of(Checkpoint(place / "checkpoint", ranks=ranks), Silent())
        train.train(spec, dense, None, place / "model", text, run, text.holdout_NT[0])


def held_bytes() -> int:
    """Of all tensors of this process, each storage counted once."""
    found = {}
    for one in gc.get_objects():
        if issubclass(type(one), torch.Tensor) and not one.is_meta:
            storage = (one.to_local() if isinstance(one, DTensor) else one).untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def watched(ranks: Ranks, jobs: dict[str, Job], most_bytes: dict[str, int]) -> None:
    """Run jobs; never may this rank hold more than so much while it reads the model, and while the result is made."""
    gc.freeze()
    for name, job in jobs.items():
        gc.collect()
        before, most = held_bytes(), dict.fromkeys(most_bytes, 0)

        def note(when: str, before: int = before, most: dict[str, int] = most) -> None:
            most[when] = max(most[when], held_bytes() - before)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Shards, "in_parts", partial(reading, Shards(ranks, torch.device("cpu")), note))
            for stage in (tune, train):
                patch.setattr(stage, "part_by_part", partial(merging, note))
            job.run(ranks)
        for when, allowed in most_bytes.items():
            assert 0 < most[when] <= allowed, (name, when, most[when], allowed)


def reading(shards: Shards, note: Callable[[str], None], *args: Any) -> Any:
    """`Shards.in_parts`, which says when a block is there."""
    model, parts = IN_PARTS(shards, *args)

    def noted() -> Iterator[int | None]:
        for block in parts:
            note("reading")
            yield block

    return model, noted()


def merging(note: Callable[[str], None], model: Any, architecture: Any, merged: Any) -> Any:
    """`part_by_part`, which says when the first tensor of a part is asked for."""
    last: list[Any] = []

    def noted(name: str, stored: Any) -> Any:
        found, part = merged(name, stored), (architecture.layout.split(name) or [None])[0]
        if last != [part]:
            last[:] = [part]
            note("writing")
        return found

    return part_by_part(model, architecture, noted)


def test_no_rank_holds_the_model_whole(sources: Sources, save_model: SaveModel, tmp_path: Path) -> None:
    deep, model = save_model("deep", LlamaConfig(**DEEP)), {"model": {"id": "deep"}}
    jobs = {name: Job(tmp_path, deep, name, {"tune": params, **model}) for name, params in TUNERS.items()}
    jobs["sheared"] = Training(tmp_path, deep, "sheared", SHEARED | model)
    architecture, pieces = described(deep)
    sizes = {name: 4 * piece.facts.parameters for name, piece in pieces.items()}
    whole = sum(sizes.values())
    block = sum(size for name, size in sizes.items() if name.startswith(f"{architecture.layout.block(0)}."))
    # While the result is made, a part of the model is there as it is divided, as stored, as trained and as written.
    on_ranks(2, watched, jobs, {"reading": whole // 2 + 2 * block, "writing": whole // 2 + 7 * block})
    assert whole // 2 + 7 * block < whole

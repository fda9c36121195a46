"""Small models, and the way of one through the stages. Folders that use the fixtures import them in their conftest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from workers.engine.architectures.recognise import recognise
from workers.engine.checks.tries import Tries
from workers.engine.contracts.facts import Allocation
from workers.engine.events import Events, Silent
from workers.engine.files.tensors import bytes_of, read_tensor
from workers.engine.methods.evaluate.macs import macs
from workers.engine.model.calibration import Calibration
from workers.engine.model.loaded import LoadedModel
from workers.engine.model.memory import Room
from workers.engine.model.placement import States
from workers.engine.model.walk import Walk
from workers.engine.model.walk import walk as walk_of
from workers.engine.planning.plan import feasible
from workers.engine.removals.assemble import assemble
from workers.engine.removals.outcome import Outcome
from workers.engine.removals.unit_scores import score_units
from workers.engine.report import LayerReport
from workers.engine.sources.resolve import ModelSource, Sources, resolve_model
from workers.engine.spec import CompressionSpec
from workers.engine.stages import load as loading
from workers.engine.stages.allocate import allocate
from workers.engine.stages.calibrate import calibration
from workers.engine.stages.prune import layer_reports, prune
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


@pytest.fixture(scope="session")
def examples() -> Sources:
    """The shipped model and texts."""
    return Sources(EXAMPLES / "models", EXAMPLES / "data")


SaveModel = Callable[[str, PretrainedConfig], Path]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Empty folders but for the beginnings of the shipped texts, some 10,000 tokens each."""
    found = Sources(tmp_path / "models", tmp_path / "data")
    found.models_dir.mkdir()
    found.data_dir.mkdir()
    for name in ("calibration.txt", "heldout.txt"):
        (found.data_dir / name).write_text(_beginning(name))
    return found


@cache
def _beginning(name: str) -> str:
    return (EXAMPLES / "data" / name).read_text()[:40_000]


@pytest.fixture
def save_model(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> SaveModel:
    """Save a random model of a config under a name, with the shipped tokenizer (4096 entries). It is made once in a
    process: a test gets a copy."""

    def save(name: str, config: PretrainedConfig, **kwargs: Any) -> Path:
        key = (type(config), config.to_json_string(use_diff=False), *sorted(kwargs.items()))
        if key not in _saved:
            folder = tmp_path_factory.mktemp("model")
            _saved[key] = folder, _save(folder, deepcopy(config), **kwargs)
        folder, chance = _saved[key]
        torch.set_rng_state(chance)
        return Path(shutil.copytree(folder, sources.models_dir / name, dirs_exist_ok=True))

    return save


_saved: dict[tuple[object, ...], tuple[Path, Tensor]] = {}
"""Config and options of a model -> its folder, and the state of chance once it is made."""


def _save(folder: Path, config: PretrainedConfig, **kwargs: Any) -> Tensor:
    """The state of chance then."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder, **kwargs)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLES / "models/bookworm-7m" / file, folder)
    return torch.get_rng_state()


@pytest.fixture
def tiny(save_model: SaveModel) -> Path:
    """A Llama of three blocks, hidden size 32, context 128, float32, under the name `tiny`."""
    return save_model("tiny", LlamaConfig(**SIZES))


def spec_of(**parts: Any) -> CompressionSpec:
    """A spec for `tiny`: Wanda, half of the weights, eight windows of 32 tokens, unless said otherwise."""
    parts = {
        "model": {"id": "tiny"},
        "calibrate": {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32},
        "score": {"method": "wanda"},
        "prune": {"method": "mask", "sparsity": 0.5},
    } | parts
    return CompressionSpec.model_validate_json(json.dumps(parts))


def text_of(spec: CompressionSpec, model: LoadedModel, sources: Sources) -> Calibration:
    """The calibration windows of a spec that needs them."""
    text = calibration(spec, model, sources)
    assert text is not None
    return text


class Scratch(Checkpoint):
    """Closes its files when the test is over."""

    def __init__(self, directory: Path, files: ExitStack) -> None:
        super().__init__(directory)
        self._files = files

    def scratch_file(self) -> BinaryIO:
        return self._files.enter_context(super().scratch_file())


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    with ExitStack() as files:
        yield Scratch(tmp_path / "scratch", files)


def entering(model: LoadedModel, text: Calibration, checkpoint: Checkpoint) -> tuple[Walk, States]:
    """The walk of a text, and what enters block 0."""
    way = walk_of(model, text, checkpoint.scratch_file)
    return way, way.enter()


def block_tensors(checkpoint: Checkpoint, block: int) -> dict[str, Tensor]:
    """The tensors of a finished block."""
    return {name: read_tensor(piece) for name, piece in checkpoint.block(block).items()}


@dataclass(frozen=True)
class Walked:
    """A model whose blocks have been pruned into a checkpoint."""

    spec: CompressionSpec
    model: LoadedModel
    allocation: Allocation
    outcome: Outcome
    checkpoint: Checkpoint

    def reports(self, folder: Path) -> list[LayerReport]:
        """Reports of the layers, once they are assembled into `folder`."""
        assemble(self.spec, self.model, self.outcome, self.checkpoint, folder)
        return layer_reports(self.spec, self.model, self.allocation, self.outcome, folder, {})

    def blocks(self) -> dict[int, dict[str, tuple[torch.dtype, bytes]]]:
        """Pruned block -> tensor name -> its type and bytes."""
        return {
            block: {name: (t.dtype, bytes(bytes_of(t))) for name, t in block_tensors(self.checkpoint, block).items()}
            for block in range(self.checkpoint.finished_blocks())
        }


def load(spec: CompressionSpec, sources: Sources) -> LoadedModel:
    """The model of a spec, as a job loads it."""
    return loading.load(spec, feasible(spec, resolve_model(spec.model, sources), sources))


def walk(
    spec: CompressionSpec,
    sources: Sources,
    folder: Path,
    *,
    events: Events | None = None,
    cache: Path | None = None,
    checkpoint: Checkpoint | None = None,
    room: Room | None = None,
) -> Walked:
    """`compress` up to the pruned blocks, each a resume point in `folder/checkpoint` unless said otherwise.

    `room`: for hidden states, if not what the spec leaves.
    """
    events = events or Silent()
    model = load(spec, sources)
    model = replace(model, room=room or model.room)
    checkpoint = checkpoint or Checkpoint(folder / "checkpoint")
    text = calibration(spec, model, sources)
    run = Run.of(checkpoint, events, cache)
    units = score_units(spec, model, text, run) if spec.scores_first else None
    allocation = allocate(spec, model, text, sources, units, Tries(spec, run))
    outcome, _ = prune(spec, model, text, units, allocation, run)
    return Walked(spec, model, allocation, outcome, checkpoint)


def size_of(source: ModelSource) -> dict[str, int]:
    """Counted in a model's files."""
    return {
        "parameters": source.parameters,
        "bytes": sum(facts.bytes for facts in source.tensors.values()),
        "macs": macs(recognise(source.config, source.stored), 64),
    }

"""A tokenizer that knows no limit says so with int(1e30), of 31 digits, as most published ones do."""

from __future__ import annotations

import json
import pickle

import pytest
from transformers import LlamaConfig

from tests.helpers.small_models import SIZES, SaveModel
from workers.engine.errors import InvalidSpec
from workers.engine.events import Silent
from workers.engine.files.model_files import BadFile, parse_json
from workers.engine.pipeline import compress
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec


def test_its_model_is_compressed_and_the_limit_travels(save_model: SaveModel, sources: Sources) -> None:
    folder = save_model("endless", LlamaConfig(**SIZES))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": int(1e30)}))
    spec = {"model": {"id": "endless"}, "score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5}}
    out = sources.data_dir.parent
    compress(CompressionSpec.model_validate(spec), out, sources, Silent(), out / "checkpoint")
    assert json.loads((out / "model/tokenizer_config.json").read_text())["model_max_length"] == int(1e30)


def test_no_other_number_is_so_long() -> None:
    for text in (str(10**30), "9" * 5000):
        with pytest.raises(BadFile, match="an integer of"):
            parse_json(f'{{"vocab_size": {text}}}'.encode(), "config.json")


def test_errors_reach_another_process_whole() -> None:
    error = pickle.loads(pickle.dumps(InvalidSpec("what", "remedy", field="/prune")))
    assert type(error) is InvalidSpec
    assert (error.message, error.hint, error.field) == ("what", "remedy", "/prune")

"""Size: parameters, zeros and bytes of the weights as stored, counted in the safetensors files; exact."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.facts import Measurement
from workers.engine.contracts.params import MethodParams
from workers.engine.registry import evaluator

if TYPE_CHECKING:
    from pathlib import Path

    from workers.engine.contracts.evaluation import EvaluationContext


HEADER_MARGIN = 0.001
"""The same weights take some bytes more or less, by what the header of a file says beside them."""


class SizeParams(MethodParams):
    """Count parameters, zeros and bytes on disk."""

    method: Literal["size"] = Field("size", description="Parameters, zeros and bytes on disk.")

    @property
    def tokens_at_once(self) -> int:
        return 0  # nothing is run: files are counted

    @property
    def measures(self) -> tuple[str, ...]:
        return "size/parameters", "size/zeros", "size/weight_bytes"


@evaluator(SizeParams, whole_model=False)
def evaluate(context: EvaluationContext, params: SizeParams) -> list[Measurement]:
    """`size/parameters`, `size/zeros` (of all weights, embeddings included) and `size/weight_bytes`.

    Tied weights count as often as the files hold them, which is once in files that transformers wrote.
    """
    from safetensors import safe_open

    parameters = zeros = weight_bytes = 0
    for path in weight_files(context.model_dir):
        weight_bytes += path.stat().st_size
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                tensor = tensors.get_tensor(name)
                parameters += tensor.numel()
                zeros += tensor.numel() - int(tensor.count_nonzero())
    return [
        Measurement("size/parameters", parameters, "parameters"),
        Measurement("size/zeros", zeros, "parameters"),
        Measurement(
            "size/weight_bytes",
            weight_bytes,
            "bytes",
            higher_is_better=False,
            note="safetensors files",
            margin=HEADER_MARGIN,
        ),
    ]


def weight_files(model_dir: Path) -> list[Path]:
    """The safetensors files transformers would load from `model_dir`: those of the index, or the only one."""
    index = model_dir / "model.safetensors.index.json"
    if index.exists():
        return [model_dir / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return [model_dir / "model.safetensors"]

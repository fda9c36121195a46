"""Trial prunings: the loss of the model with masks from scores taken once, on a little text, block by block.

Cheap enough to try many allocations: nothing is calibrated again, no weight is updated, and of two allocations that
share their first blocks the second starts where they part. Masks are unstructured, also where N:M will be rounded from
the allocation, as a rounded loss has no slope to follow. The real result, whose inputs are refreshed, is better.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workers.engine.architectures.llama import BLOCKS
from workers.engine.errors import NumericalFailure
from workers.engine.linalg import dropped
from workers.engine.provenance import environment
from workers.engine.registry import method_of
from workers.engine.stages.load import tensors_of
from workers.engine.stages.stream import StreamedLoss
from workers.engine.stats import LinearStats

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.cache import Cache
    from workers.engine.checkpoint import Checkpoint
    from workers.engine.events import Events
    from workers.engine.spec import CompressionSpec
    from workers.engine.stages.calibrate import Calibration
    from workers.engine.stages.load import LoadedModel
    from workers.engine.stats import LinearFacts


LOSSES = "trial-losses"


class Trials:
    """Losses of one text under different allocations."""

    def __init__(
        self,
        spec: CompressionSpec,
        model: LoadedModel,
        text: Calibration,
        stats: Mapping[str, LinearStats],
        calibration_digest: str,
        cache: Cache,
        checkpoint: Checkpoint,
        events: Events,
    ) -> None:
        """`stats`: `block/stream` -> statistics of the dense model. Losses are cached, one by one as they are found."""
        self._spec = spec
        self._model = model
        self._blocks = [model.architecture.block(block) for block in range(model.architecture.blocks)]
        self._stats = stats
        self._events = events
        self._streamed = StreamedLoss(model, text, checkpoint, keep_path=True)
        self._cache = cache
        self._key: dict[str, Any] = environment(spec, model) | {
            "text": text.digest,
            "calibration": calibration_digest,
            "score": spec.score.model_dump(mode="json") if spec.score else None,
        }
        self._known: dict[str, float] = cache.json(LOSSES, self._key) or {}

    def close(self) -> None:
        self._streamed.close()

    def loss(self, sparsity: Mapping[str, float]) -> float:
        """Mean loss in nats a token with every layer pruned to its sparsity. Raises NumericalFailure."""
        path = tuple(tuple(sparsity[layer.name] for layer in block) for block in self._blocks)
        name = hashlib.sha256(json.dumps(path).encode()).hexdigest()
        if name not in self._known:
            nll_N = self._streamed.nll(path, lambda block: self._masked(self._blocks[block], sparsity))
            if not nll_N.isfinite().all():
                raise NumericalFailure(
                    "the loss of a trial pruning is infinite or NaN",
                    "set /compute/dtype to float32; if it is, the model's weights are broken",
                    field="/allocate",
                )
            self._known[name] = nll_N.mean().item()
            self._cache.keep_json(LOSSES, self._key, self._known)
            self._events.log(f"trial {len(self._known)}: loss {self._known[name]:.4f}")
        return self._known[name]

    def _masked(self, layers: list[LinearFacts], sparsity: Mapping[str, float]) -> dict[str, Tensor]:
        """A block's tensors with its layers masked."""
        spec = self._spec
        tensors = tensors_of(self._model, f"{BLOCKS}.{layers[0].block}")
        for layer in layers:
            if not sparsity[layer.name]:
                continue
            weight_OI = tensors[f"{layer.name}.weight"]
            # By rows where the pruner chooses by itself: what stands for its choice is comparable there.
            group = spec.group if spec.score else "row"
            mask_OI = dropped(self._score(layer, weight_OI), sparsity[layer.name], group, None)
            tensors[f"{layer.name}.weight"] = weight_OI.masked_fill(mask_OI, 0)
        return tensors

    def _score(self, layer: LinearFacts, weight_OI: Tensor) -> Tensor:
        """The spec's score; where the pruner chooses by itself, |W| times its input's norm stands for its choice."""
        stats = self._stats.get(f"{layer.block}/{layer.stream}")
        if self._spec.score is not None:
            score_OI: Tensor = method_of("score", self._spec.score).function(
                weight_OI, stats or LinearStats(), self._spec.score
            )
            return score_OI
        assert stats is not None  # `allocate_needs` asks for them
        return stats.weighted(weight_OI)

"""Trial prunings: the loss of the model pruned with statistics taken once, on a little text, block by block.

Cheap enough to try many allocations: nothing is calibrated again, and of two allocations that share their first blocks
the second starts at the first block that differs. Where the pruner updates the kept weights, SparseGPT's solver does so
here, whichever the pruner is: masks alone overestimate the loss of layers that compensate well. Patterns are
unstructured, also where N:M will be rounded from the allocation, as a rounded loss has no slope to follow. The real
result, whose inputs are refreshed, is better.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors.torch import load, save

from workers.engine.contracts.facts import LayerTask, LinearStats
from workers.engine.contracts.needed import needed
from workers.engine.errors import NumericalFailure
from workers.engine.maths.masking import zeroed
from workers.engine.maths.second_order import hessian_of, solve_columns
from workers.engine.maths.selection import dropped
from workers.engine.model.loaded import block_tensors
from workers.engine.model.provenance import environment
from workers.engine.model.streamed_loss import StreamedLoss
from workers.engine.registry import method_of

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.store.run import Run


LOSSES = "trial-losses"
DAMPENING, STRIPE = 0.01, 128
"""Of the solver; SparseGPT's defaults."""


class Trials:
    """Losses of one text under different allocations."""

    def __init__(
        self,
        spec: CompressionSpec,
        model: LoadedModel,
        text: Calibration,
        stats: Mapping[str, LinearStats],
        measured_on: str,
        run: Run,
    ) -> None:
        """`stats`: `block/stream` -> statistics of the dense model, of a calibration with this key. Losses are cached,
        one by one as they are found."""
        self._spec = spec
        self._model = model
        self._blocks = [model.architecture.block(block) for block in range(model.architecture.blocks)]
        self._stats = stats
        self._solved = _Solved(run.checkpoint) if spec.editor.updates_weights else None
        self._run = run
        self._streamed = StreamedLoss(model, text, run.checkpoint, keep_path=True)
        self._key: dict[str, Any] = environment(model) | {
            "text": text.digest,
            "calibration": measured_on,
            "choice": "solver" if self._solved else spec.score.model_dump(mode="json") if spec.score else "",
        }
        self._known: dict[str, float] = run.cache.json(LOSSES, self._key) or {}

    def close(self) -> None:
        self._streamed.close()
        if self._solved:
            self._solved.close()

    def loss(self, sparsity: Mapping[str, float]) -> float:
        """Mean loss in nats a token with every layer pruned to its sparsity. Raises NumericalFailure."""
        path = tuple(tuple(sparsity[layer.name] for layer in block) for block in self._blocks)
        name = hashlib.sha256(json.dumps(path).encode()).hexdigest()
        if name not in self._known:
            nll_N = self._streamed.nll(path, lambda block: self._pruned(block, sparsity))
            if not nll_N.isfinite().all():
                raise NumericalFailure(
                    "the loss of a trial pruning is infinite or NaN",
                    "set /compute/dtype to float32; if it is, the model's weights are broken",
                    field="/allocate",
                )
            self._known[name] = nll_N.mean().item()
            self._run.cache.keep_json(LOSSES, self._key, self._known)
            self._run.events.log(f"trial {len(self._known)}: loss {self._known[name]:.4f}")
        return self._known[name]

    def _pruned(self, block: int, sparsity: Mapping[str, float]) -> dict[str, Tensor]:
        """A block's tensors with its layers pruned."""
        tensors = block_tensors(self._model, block)
        for stream, layers in self._model.architecture.streams(block).items():
            wanted = [layer for layer in layers if sparsity[layer.name]]
            tasks = [LayerTask(layer.name, tensors[layer.weight], sparsity[layer.name]) for layer in wanted]
            for layer, weight_OI in zip(wanted, self._weights(f"{block}/{stream}", tasks), strict=True):
                tensors[layer.weight] = weight_OI
        return tensors

    def _weights(self, stream: str, tasks: list[LayerTask]) -> list[Tensor]:
        """The pruned weights of layers that read one stream."""
        if not tasks:
            return []
        if self._solved is None:
            return [self._masked(task, self._stats.get(stream)) for task in tasks]
        key = tuple((task.name, task.sparsity) for task in tasks)
        if (found := self._solved.get(stream, key)) is None:
            gram_II = needed(self._stats[stream].gram_II, "Stat.GRAM")
            found = solve_columns(tasks, hessian_of(gram_II, DAMPENING, tasks), None, STRIPE)
            found = [weight_OI.to(task.weight_OI.dtype) for task, weight_OI in zip(tasks, found, strict=True)]
            self._solved.keep(stream, key, found)
        return [weight_OI.to(self._model.device) for weight_OI in found]

    def _masked(self, task: LayerTask, stats: LinearStats | None) -> Tensor:
        spec = self._spec
        params = needed(spec.score, "/score")
        score_OI = method_of("score", params).function(task.weight_OI, stats or LinearStats(), params)
        return zeroed(task.weight_OI, dropped(score_OI, task.sparsity, spec.group, None))


class _Solved:
    """The last few solutions of every stream, on disk: allocations are tried that differ in one stream each."""

    KEPT = 3
    """Solutions kept per stream: those of a lower, the base and a higher sparsity, as `search` tries them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files: dict[str, OrderedDict[Hashable, BinaryIO]] = {}

    def get(self, stream: str, key: Hashable) -> list[Tensor] | None:
        files = self._files.get(stream, OrderedDict())
        if key not in files:
            return None
        files.move_to_end(key)
        files[key].seek(0)
        found = load(files[key].read())
        return [found[name] for name in sorted(found)]

    def keep(self, stream: str, key: Hashable, weights: list[Tensor]) -> None:
        files = self._files.setdefault(stream, OrderedDict())
        file = files[key] = self._checkpoint.scratch_file()
        left = memoryview(save({f"{index:02d}": weight_OI.cpu() for index, weight_OI in enumerate(weights)}))
        while left:
            left = left[file.write(left) :]
        if len(files) > self.KEPT:
            files.popitem(last=False)[1].close()

    def close(self) -> None:
        for files in self._files.values():
            for file in files.values():
                file.close()

"""The windows of a text that a model is calibrated on. N = windows, T = tokens of a window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from workers.engine.model.windows import ids_digest

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.ranks import Ranks
    from workers.engine.report import TextReport


@dataclass(frozen=True)
class Calibration:
    """The text a model is calibrated on."""

    windows_NT: Tensor
    """Token ids, int64."""
    label: str
    """Of the text they come from."""
    read: TextReport | None = None
    all_experts: bool = False
    """Whether each expert of a mixture reads all tokens while statistics are taken."""

    @property
    def digest(self) -> str:
        return ids_digest([self.windows_NT])

    @property
    def key(self) -> str:
        """A digest of all that statistics taken on it depend on."""
        return f"{self.digest}, all experts" if self.all_experts else self.digest

    @property
    def digests(self) -> dict[str, str]:
        """`calibrate/<label>` -> `sha256:` digest of the windows."""
        return {f"calibrate/{self.label}": self.digest}

    def share(self, ranks: Ranks) -> Calibration:
        """The windows of one rank."""
        return replace(self, windows_NT=self.windows_NT[ranks.share(len(self.windows_NT))])

    def batches(self, batch_tokens: int) -> Iterator[slice]:
        """Slices of windows that make one forward pass each, of at most `batch_tokens` tokens or one window."""
        count, length = self.windows_NT.shape
        step = max(1, batch_tokens // length)
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

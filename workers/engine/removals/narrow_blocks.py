"""Narrow blocks: a result whose blocks have fewer heads or channels, alike or not. Import-light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from workers.engine.architectures.built import key_heads, value
from workers.engine.architectures.per_layer import MODELING, PER_LAYER, modeling_class
from workers.engine.removals.outcome import Outcome

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Family
    from workers.engine.removals.widths import Widths

_OF_BLOCKS = "num_attention_heads_per_layer"
"""Laguna's config entry: blocks may have different numbers of query heads to as many key heads."""


_ADJUSTS = "block_auto_adjust_ff_dim"
"""Entry of LFM2's config that makes MLPs of another width than the config says."""


@dataclass(frozen=True)
class Narrow(Outcome):
    """Structure of a result whose blocks have lost units that slices of tensors belong to."""

    families: Sequence[Family]
    widths: Widths
    """Units that stay in each family."""

    cut: ClassVar[bool] = True

    def narrow(self, shapes: dict[str, list[int]]) -> None:
        for family in self.families:
            for member in family.members:
                if member.tensor in shapes:
                    unit = shapes[member.tensor][member.axis] // family.units
                    shapes[member.tensor][member.axis] = unit * self.widths[family.block, family.kind]


@dataclass(frozen=True)
class NarrowBlocks(Narrow):
    """Structure of a result that has lost heads or channels."""

    field: ClassVar[str] = "/prune/units"

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(key/value heads, channels) of every block that stays, of blocks that have both."""
        return [(self.widths[block, "head"], self.widths[block, "channel"]) for block in self.blocks]

    @property
    def uniform(self) -> bool:
        return all(len(self._units(kind)) <= 1 for kind in ("head", "channel"))

    def _units(self, kind: str) -> set[int]:
        """How many units of a kind stay in blocks that have such."""
        return {units for (block, of), units in self.widths.items() if of == kind and block in self.blocks}

    def _cuts(self, kind: str) -> bool:
        """Whether the config is to say how many units of a kind stay: where all blocks have some, or some go."""
        families = [family for family in self.families if family.kind == kind and family.block in self.blocks]
        cut = any(self.widths[family.block, kind] < family.units for family in families)
        return cut or len(families) == len(self.blocks)

    def entries(self, config: Mapping[str, Any]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        if self._cuts("head"):
            heads, shared_by = max(self._units("head")), value(config, "num_attention_heads") // key_heads(config)
            entries |= {"num_key_value_heads": heads, "num_attention_heads": heads * shared_by}
            if isinstance(of_blocks := value(config, _OF_BLOCKS), list):
                entries[_OF_BLOCKS] = [count // key_heads(config) * heads for count in of_blocks]
        if self._cuts("channel"):
            entries["intermediate_size"] = self._width(config, max(self._units("channel")))
            if value(config, _ADJUSTS):
                entries[_ADJUSTS] = False
        return entries

    def _width(self, config: Mapping[str, Any], channels: int) -> int:
        """The config's entry for so many channels: in Moshi, gate and channels together."""
        said, dense = value(config, "intermediate_size"), next(f.units for f in self.families if f.kind == "channel")
        return channels * said // dense if type(said) is int and said % dense == 0 else channels

    def block_entries(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`per_layer_config`, as transformers defines it, and the classes in `MODELING` that build such blocks, as the
        stock ones make all alike. vLLM reads the same entries."""
        architecture, module = modeling_class(config), MODELING.removesuffix(".py")
        shared_by = config["num_attention_heads"] // config["num_key_value_heads"]
        return {
            PER_LAYER: {
                str(block): {
                    "num_attention_heads": heads * shared_by,
                    "num_key_value_heads": heads,
                    "intermediate_size": channels,
                }
                for block, (heads, channels) in enumerate(self.shapes)
            },
            # Tools that read the number of heads get the widest block's instead of an exception.
            "allow_global_per_layer_attribute_access": True,
            "architectures": [architecture],
            "auto_map": {
                "AutoModel": f"{module}.{architecture.replace('ForCausalLM', 'Model')}",
                "AutoModelForCausalLM": f"{module}.{architecture}",
            },
        }

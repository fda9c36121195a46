"""Jobs on `tiny` that prune while they train: a spec for every method and kind of unit that it decides on."""

from __future__ import annotations

from typing import Any

from workers.engine.registry import Method, methods

FEW: dict[str, Any] = {
    "dataset": "calibration.txt", "steps": 6, "batch": 2, "sequence_length": 32, "holdout": 4, "evaluate_every": 3,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "ast": {"interval": 2},
    "efficient_llm": {"every": 1, "variant": "B"},
    "elsa": {"interval": 2},
    "gradual": {"interval": 2},
}
"""Parameters with which a method does in six steps what it does in thousands."""
TARGETS: dict[str, dict[str, dict[str, Any]]] = {
    "weight": {
        "unstructured": {"prune": {"method": "mask", "sparsity": 0.6}},
        "2:4": {"prune": {"method": "mask", "pattern": "2:4"}},
    },
    "head": {
        "uniform": {"prune": {"method": "structured", "sparsity": 0.4}},
        "ranking": {"prune": {"method": "structured", "sparsity": 0.4}, "allocate": {"method": "ranking"}},
        "channels": {"prune": {"method": "structured", "sparsity": 0.3, "units": ["channel"]}},
    },
    "layer": {"depth": {"prune": {"method": "depth", "layers": 1}}},
    "hidden": {
        "hidden": {"prune": {"method": "hidden", "sparsity": 0.25}},
        "width": {"prune": {"method": "shape", "hidden": 24, "heads": 2, "channels": 30}},
    },
    "hidden layer": {"shape": {"prune": {"method": "shape", "hidden": 24, "heads": 2, "layers": 2, "channels": 30}}},
}
"""Kinds of unit -> target -> parts of a spec."""


def training(method: str, **changes: Any) -> dict[str, Any]:
    return {"method": method, **FEW, **OWN.get(method, {}), **changes}


def jobs() -> list[tuple[Method, str, dict[str, Any]]]:
    """(method, name of the target, parts of a spec) of every method and target that it can reach."""
    return [
        (method, name, {"score": None, "calibrate": None, "train": training(method.name)} | parts)
        for method in methods("train")
        for units, targets in TARGETS.items()
        if {*units.split()} <= {*method.units}
        for name, parts in targets.items()
    ]

"""Runtimes that can load a result, and whether it is faster there. Import-light."""

from __future__ import annotations

from workers.engine.report import Runtime


def dense_checkpoint() -> list[Runtime]:
    """Of a result in the dense model's shapes, with zeros."""
    return [
        Runtime(
            runtime="transformers",
            loads=True,
            faster=False,
            note="an ordinary checkpoint; zeros are stored and multiplied like other weights",
        ),
        Runtime(
            runtime="vLLM",
            loads=True,
            faster=False,
            note="loads as a dense checkpoint; vLLM has removed its 2:4 sparse kernels",
        ),
    ]


def stock_checkpoint(difference: str, *, faster: bool = True) -> list[Runtime]:
    """Of a result whose blocks are alike: one config can say its shapes."""
    note = f"an ordinary checkpoint whose config says {difference}"
    return [Runtime(runtime=name, loads=True, faster=faster, note=note) for name in ("transformers", "vLLM")]


def own_code() -> list[Runtime]:
    """Of a result whose blocks differ in width, which brings a modelling file."""
    return [
        Runtime(
            runtime="transformers",
            loads=True,
            faster=True,
            note="blocks of different widths: 5.14 or newer, with trust_remote_code=True and the file in the folder",
        ),
        Runtime(
            runtime="vLLM",
            loads=True,
            faster=True,
            note="blocks of different widths: with --trust-remote-code, through its transformers backend (tried: 0.32)",
        ),
    ]


def skipping_code() -> list[Runtime]:
    """Of a mixture that skips experts, which brings a modelling file."""
    return [
        Runtime(
            runtime="transformers",
            loads=True,
            faster=False,
            note="skips experts with trust_remote_code=True and the file in the folder: less arithmetic, but no faster "
            "where it was measured (8 M parameters, a CPU); without, loads and skips none",
        ),
        Runtime(
            runtime="vLLM",
            loads=False,
            faster=False,
            note="starts, and computes something else (tried: 0.32): serve the result of the same spec without `skip`",
        ),
    ]

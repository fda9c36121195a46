"""Rules of every method that makes new blocks: found through the registry, so a new file is tested unseen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.helpers.stacks import stack_of
from workers.engine.contracts.growing import GrowMethodParams
from workers.engine.errors import InvalidSpec
from workers.engine.laws.random_layers import seeded
from workers.engine.registry import Method, methods

BLOCKS = 6
SHAPES = {"matrix": (10, 6), "gains": (6,)}


def variants(method: Method) -> list[GrowMethodParams]:
    """Defaults, every choice of every parameter that has some, and every switch turned over."""
    found: list[dict[str, Any]] = [{}]
    for name, schema in method.params.model_json_schema()["properties"].items():
        for part in schema.get("anyOf", [schema]):
            found += [{name: choice} for choice in part.get("enum", [])]
        if schema.get("type") == "boolean":
            found.append({name: not schema["default"]})
    return [method.params.model_validate({"layers": 2, **changes}) for changes in found]  # type: ignore[misc]


CASES = [
    pytest.param(method, params, id=f"{method.name}-{index}")
    for method in methods("grow")
    for index, params in enumerate(variants(method))
]


def tensors(kind: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(SHAPES[kind], generator=seeded(block)).to(dtype) for block in range(BLOCKS)]


def new_of(arrangement: list[int]) -> list[int]:
    return [block for index, block in enumerate(arrangement) if block in arrangement[:index]]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("method", "params"), CASES)
class TestTensors:
    def test_are_one_a_new_block_in_the_dense_shape(self, method: Method, params: Any, kind: str) -> None:
        like = new_of(params.arrangement(BLOCKS))
        for dtype in (torch.float32, torch.bfloat16):
            dense = tensors(kind, dtype)
            found = [*method.function(stack_of(dense, like, is_matrix=kind == "matrix"), params).tensors]
            assert len(found) == 2
            assert {tuple(tensor.shape) for tensor in found} == {SHAPES[kind]}
            assert all(tensor.isfinite().all() and tensor.dtype in (torch.float32, dtype) for tensor in found)
            assert all(map(torch.equal, dense, tensors(kind, dtype)))  # left alone

    def test_are_the_same_for_the_same_seed(self, method: Method, params: Any, kind: str) -> None:
        like = new_of(params.arrangement(BLOCKS))
        torch.manual_seed(torch.initial_seed() + 1)  # of the process, which counts for nothing
        first, second = (
            [*method.function(stack_of(tensors(kind), like, is_matrix=kind == "matrix", seed=3), params).tensors]
            for _ in range(2)
        )
        assert all(map(torch.equal, first, second))

    def test_of_zeros_are_finite(self, method: Method, params: Any, kind: str) -> None:
        like = new_of(params.arrangement(BLOCKS))
        zeros = [torch.zeros(SHAPES[kind])] * BLOCKS
        for tensor in method.function(stack_of(zeros, like, is_matrix=kind == "matrix"), params).tensors:
            assert not tensor.any()


@pytest.mark.parametrize(("method", "params"), CASES)
class TestArrangement:
    def test_holds_every_dense_block_once_in_order_and_the_new_ones(self, method: Method, params: Any) -> None:
        for blocks in (params.least_blocks + 2, 6, 32):
            found = params.arrangement(blocks)
            assert len(found) == blocks + 2
            assert list(dict.fromkeys(found)) == list(range(blocks))
            if params.between:
                assert blocks - 1 not in new_of(found)

    def test_of_named_blocks_has_one_after_each(self, method: Method, params: Any) -> None:
        named = method.params.model_validate({"after": [0, 3]})
        assert named.arrangement(6) == [0, 0, 1, 2, 3, 3, 4, 5]  # type: ignore[attr-defined]

    def test_refuses_more_than_there_is_room_for(self, method: Method, params: Any) -> None:
        room = BLOCKS - params.between
        assert len(method.params.model_validate({"layers": room}).arrangement(BLOCKS)) == BLOCKS + room  # type: ignore[attr-defined]
        with pytest.raises(InvalidSpec, match=f"room for {room}") as found:
            method.params.model_validate({"layers": room + 1}).arrangement(BLOCKS)  # type: ignore[attr-defined]
        assert found.value.field == "/grow/layers"
        with pytest.raises(InvalidSpec, match=f"after block {room} of {BLOCKS}") as found:
            method.params.model_validate({"after": [room]}).arrangement(BLOCKS)  # type: ignore[attr-defined]
        assert found.value.field == "/grow/after"

    def test_parameters_survive_json(self, method: Method, params: Any) -> None:
        assert method.params.model_validate_json(params.model_dump_json()) == params


@pytest.mark.parametrize("method", methods("grow"), ids=lambda method: method.name)
@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({}, "one_number"),
        ({"layers": 1, "after": [0]}, "one_number"),
        ({"after": [1, 0]}, "not_ascending"),
        ({"after": [1, 1]}, "not_ascending"),
        ({"after": [0], "place": "end"}, "two_places"),
    ],
)
def test_says_where_in_one_way(method: Method, given: dict[str, Any], code: str) -> None:
    with pytest.raises(ValidationError) as found:
        method.params.model_validate(given)
    assert [error["type"] for error in found.value.errors()] == [code]

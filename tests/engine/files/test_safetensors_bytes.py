"""Our reader and writer of safetensors against the reference implementation."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.engine.files.safetensors_bytes import MalformedFile, TensorFacts, merge, pack, read_header


def test_merged_files_are_read_by_the_reference_reader(tmp_path: Path) -> None:
    first = {"b": torch.randn(3, 5), "d": torch.randn(7).bfloat16(), "e": torch.zeros(0)}
    second = {"a": torch.arange(5, dtype=torch.uint8), "c": torch.randn(2, 2).half()}
    save_file(first, tmp_path / "1")
    save_file(second, tmp_path / "2")
    merge([read_header(tmp_path / "1"), read_header(tmp_path / "2")], tmp_path / "out")
    loaded = load_file(tmp_path / "out")
    assert loaded.keys() == first.keys() | second.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in {**first, **second}.items())
    merge([read_header(tmp_path / "2"), read_header(tmp_path / "1")], tmp_path / "swapped")
    assert (tmp_path / "swapped").read_bytes() == (tmp_path / "out").read_bytes()


def test_a_file_that_has_become_shorter_is_an_error_and_no_endless_copy(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(100, 100)}, tmp_path / "file")
    parts = [read_header(tmp_path / "file")]
    os.truncate(tmp_path / "file", 20_000)
    with pytest.raises(OSError, match="ends at byte 20000"):
        merge(parts, tmp_path / "out")


def test_header(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3, 5, dtype=torch.bfloat16)}, tmp_path / "file")
    facts = read_header(tmp_path / "file")["w"].facts
    assert facts == TensorFacts("BF16", (3, 5))
    assert (facts.parameters, facts.bytes) == (15, 30)


def header(value: object) -> bytes:
    encoded = json.dumps(value).encode()
    return struct.pack("<Q", len(encoded)) + encoded


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes long, too short"),
        (b"PK\x03\x04 a zip file", "announces a header of"),
        (struct.pack("<Q", 3) + b"not", "no readable safetensors header"),
        (header([1, 2]), "no readable safetensors header"),
        (header({"w": {"dtype": "F32", "shape": [2]}}), "no readable safetensors header"),
        (header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}), "cannot take 4 bytes"),
        (header({"w": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}), "unknown dtype C64"),
        (header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + b"1234", "should be"),
    ],
)
def test_damage_is_told(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(MalformedFile, match=message):
        read_header(tmp_path / "file")


@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        ([], []),
        ([3, 3, 3, 3], [[0, 1], [2, 3]]),
        ([6, 1, 5], [[0], [1, 2]]),
        ([9, 1, 9], [[0], [1], [2]]),  # an item above the limit is alone
    ],
)
def test_pack(sizes: list[int], runs: list[list[int]]) -> None:
    assert pack(sizes, limit=6) == runs

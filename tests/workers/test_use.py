"""The use of its devices, as a worker reports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers import use
from workers.engine import host
from workers.engine.host import available_memory, total_memory


def test_of_the_host() -> None:
    looks = use.Use(())
    sum(range(2_000_000))  # some processor time between the two looks
    (found,) = looks.look()
    assert found["device"] == "host"
    assert found["memory_bytes"] == total_memory()
    assert 0 < found["memory_used_bytes"] <= found["memory_bytes"]
    assert found["busy"] is None or 0 <= found["busy"] <= 1


def test_memory_of_a_control_group_is_what_it_may_still_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container on a large host has its own limit; pages of files do not count against it."""
    monkeypatch.setattr(host, "_limits", lambda: iter([(2**26, tmp_path)]))
    assert available_memory() > 2**26, "a group that says nothing of itself is left out"
    (tmp_path / "memory.current").write_text(f"{2**25}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2**20}\nactive_file {2**21}\n")
    assert available_memory() == 2**26 - 2**25 + 3 * 2**20
    assert total_memory() == 2**26


def test_of_its_own_gpus_by_number_or_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "0, GPU-a, 81559, 60000, 97\n1, GPU-b, 81559, 1, 0\n2, GPU-c, [N/A], [N/A], [N/A]\n"
    said += "Unable to determine the device handle for GPU 0000:41:00.0: Unknown Error\n"
    monkeypatch.setattr(use, "output", lambda command: said)
    _, first, third = use.Use(["0", "GPU-c"]).look()
    assert first == {"device": "0", "memory_bytes": 81559 * 2**20, "memory_used_bytes": 60000 * 2**20, "busy": 0.97}
    assert third == {"device": "GPU-c", "memory_bytes": None, "memory_used_bytes": None, "busy": None}


def test_a_driver_that_does_not_answer_hides_the_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use, "output", lambda command: "")
    assert [each["device"] for each in use.Use(["0"]).look()] == ["host"]

"""The use of its devices, as a worker reports it."""

from __future__ import annotations

import pytest

from workers import use
from workers.engine.host import total_memory


def test_of_the_host() -> None:
    looks = use.Use(())
    sum(range(2_000_000))  # some processor time between the two looks
    (host,) = looks.look()
    assert host["device"] == "host"
    assert host["memory_bytes"] == total_memory()
    assert 0 < host["memory_used_bytes"] <= host["memory_bytes"]
    assert host["busy"] is None or 0 <= host["busy"] <= 1


def test_of_its_own_gpus_by_number_or_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "0, GPU-a, 81559, 60000, 97\n1, GPU-b, 81559, 1, 0\n2, GPU-c, [N/A], [N/A], [N/A]\n"
    monkeypatch.setattr(use, "output", lambda command: said)
    _, first, third = use.Use(["0", "GPU-c"]).look()
    assert first == {"device": "0", "memory_bytes": 81559 * 2**20, "memory_used_bytes": 60000 * 2**20, "busy": 0.97}
    assert third == {"device": "GPU-c", "memory_bytes": None, "memory_used_bytes": None, "busy": None}


def test_a_driver_that_does_not_answer_hides_the_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(use, "output", lambda command: "")
    assert [each["device"] for each in use.Use(["0"]).look()] == ["host"]

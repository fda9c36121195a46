"""Small files that several processes make at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.files import write_once
from app.settings import Settings


def test_one_of_many_writers_wins_and_all_read_the_same(tmp_path: Path) -> None:
    found: list[str] = []
    start = threading.Barrier(16)

    def write(n: int) -> None:
        start.wait()
        found.append(write_once(tmp_path / "deep" / "secret", f"{n}" * 10_000, mode=0o600))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found[0]) in (10_000, 20_000)
    assert [(path.name, path.stat().st_mode & 0o777) for path in (tmp_path / "deep").iterdir()] == [("secret", 0o600)]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", unsupported)
    assert write_once(tmp_path / "a", "x") == write_once(tmp_path / "a", "y") == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_text_that_the_disk_has_no_room_for_leaves_no_file(tmp_path: Path) -> None:
    """An empty one would be the secret, or the mark of the store, for good."""
    script = (
        "import resource, sys; from pathlib import Path; from app.files import write_once\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))\n"
        "write_once(Path(sys.argv[1]) / 'secret', 'x' * 64)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_empty_secret_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    with pytest.raises(ValueError, match="empty: restore it"):
        Settings(home=tmp_path).secret()

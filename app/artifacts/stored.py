"""Whether an artifact is still in the store as the database has it."""

from __future__ import annotations

from app.errors import ArtifactLost
from app.jobs.models import Artifact
from app.storage import ArtifactStore


def check_stored(store: ArtifactStore, file: Artifact) -> None:
    """Raises ArtifactLost before the answer begins; afterwards it would be too late."""
    size = store.size(file.key)
    if size != file.bytes:
        raise lost(file, "is gone from it" if size is None else f"has {size} bytes there instead of {file.bytes}")


def lost(file: Artifact, how: str) -> ArtifactLost:
    return ArtifactLost(
        f"The artifact store was changed from outside: {file.path} {how}. Restore it from a backup, or submit the job "
        "again: the same spec gives the same weights.",
        headers={"Cache-Control": "no-store"},
    )

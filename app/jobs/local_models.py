"""Models in this service's folder, described once for as long as their files stay as they are.

Reading a model's config, the files beside its weights and their headers is most of what a submission costs; looking
whether they are the files that were read is a fiftieth of it.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.engine.contracts.refs import ModelRef
    from workers.engine.sources.resolve import ModelSource, Sources

Identity = tuple[tuple[object, ...], ...]

SETTLED_NS = 2 * 10**9
"""A file that changed more recently may change again within the clock's resolution, with the same times."""
_MOST_FILES = 1000
_TEMPLATES = "additional_chat_templates"


def local_model(ref: ModelRef, sources: Sources) -> ModelSource:
    """As `resolve_model`, of a model in the models directory. Raises what that raises."""
    from workers.engine.sources.resolve import resolve_model

    files = identity(sources.models_dir / ref.id)
    return resolve_model(ref, sources) if files is None else _described(ref, sources, files)


@lru_cache(maxsize=32)
def _described(ref: ModelRef, sources: Sources, files: Identity) -> ModelSource:
    from workers.engine.sources.resolve import resolve_model

    return resolve_model(ref, sources)


def identity(folder: Path) -> Identity | None:
    """A value that changes with any file of the folder; None where that cannot be detected, or not yet."""
    found: list[tuple[object, ...]] = [(os.path.realpath(folder),)]
    newest = 0
    try:
        for part in (folder, folder / _TEMPLATES):
            if part is not folder and not part.is_dir():
                continue
            with os.scandir(part) as entries:
                for entry in islice(entries, _MOST_FILES + 1):
                    link = os.path.realpath(entry.path) if entry.is_symlink() else ""
                    status = entry.stat()
                    newest = max(newest, status.st_ctime_ns)
                    found.append((
                        part.name, entry.name, link, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns,
                        status.st_ctime_ns,
                    ))  # fmt: skip
    except OSError:  # resolve_model says what it is
        return None
    if len(found) > _MOST_FILES or newest > time.time_ns() - SETTLED_NS:
        return None
    return tuple(sorted(found, key=repr))

"""Load tasks of the lm-evaluation-harness by name, and translate its exceptions into errors for users."""

from __future__ import annotations

from contextlib import chdir, contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.manager import TaskManager

from workers.engine.errors import BadRequest, DatasetNotFound, EngineError, HubUnavailable
from workers.engine.failures import translated
from workers.engine.sources.texts.files import kind_of
from workers.engine.sources.texts.rows import jsonl_rows, parquet_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lm_eval.tasks.manager import TaskDict


class UnknownTask(BadRequest):
    code = "unknown_task"


class UnsuitableTask(BadRequest):
    """A task that runs code the model writes, needs images or sound, or cannot be set up here."""

    code = "unsuitable_task"


def load_tasks(names: Sequence[str], tasks_dir: Path, pointer: str) -> list[Any]:
    """The harness's Task and Group objects for `names`, data included.

    Relative `data_files` of a task file are relative to `tasks_dir`; .jsonl (.gz, .zst) and .parquet files there are
    read as texts are. A task file may name Python functions: the directory belongs to whoever runs the service, never
    to its clients.
    """
    manager = _task_manager(names, tasks_dir.resolve(), pointer)
    # `datasets` looks for relative files in the working directory and the harness has no way to tell it otherwise.
    with chdir(tasks_dir) if tasks_dir.is_dir() else nullcontext():
        loaded = [_load_task(manager, name, tasks_dir, pointer) for name in names]
    for found in loaded:
        for task in found["tasks"].values():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise _unsuitable(task.task_name, "it runs code the model writes, or needs more than text", pointer)
    return [
        item
        for name, found in zip(names, loaded, strict=True)
        for item in ([found["groups"][name]] if name in found["groups"] else found["tasks"].values())
    ]


@contextmanager
def suitable(names: Sequence[str], pointer: str) -> Iterator[None]:
    """Raise UnsuitableTask for exceptions that the harness raises while it asks these tasks' questions of a model.

    It fills templates from rows, cuts prompts by the model's tokenizer and computes what task files name: whatever is
    wrong there is the task's or the tokenizer's. Errors of ours, of memory and of disks pass as they are.
    """
    try:
        with translated():
            yield
    except (EngineError, OSError):
        raise
    except (Exception, SystemExit) as error:  # some tasks' code ends the process where it misses a package or a file
        raise UnsuitableTask(
            f"{', '.join(names)} cannot be asked of this model: {type(error).__name__}: {error}",
            "check the task's templates, rows and metrics, and that the model's tokenizer can encode them; the job's "
            "log has the traceback",
            field=f"{pointer}/tasks",
        ) from error


def _load_task(manager: TaskManager, name: str, tasks_dir: Path, pointer: str) -> TaskDict:
    if (manager.task_index[name].cfg or {}).get("unsafe_code"):  # loading it would already import code from the hub
        raise _unsuitable(name, "it runs code the model writes", pointer)
    try:
        with translated():
            return manager.load(_with_our_reader(manager, name, tasks_dir, f"{pointer}/tasks"))
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise DatasetNotFound(
            f"the data of task {name} is not there: {error}",
            "check the data the task file names, and your access to it",
            field=f"{pointer}/tasks",
        ) from error
    except (ConnectionError, HfHubHTTPError) as error:
        raise HubUnavailable(
            f"the data of task {name} cannot be fetched: {error}",
            "try again when the hub answers, or use a task file with local data",
            field=f"{pointer}/tasks",
        ) from error
    except EngineError:
        raise
    except (Exception, SystemExit) as error:  # of its templates, its metrics, its rows: whatever the file may name
        if isinstance(error.__cause__, OSError | MemoryError):  # `datasets` wraps what the system says
            with suppress(OSError), translated():
                raise error.__cause__ from None
        raise _unsuitable(name, f"{type(error).__name__}: {error}", pointer) from error


def _with_our_reader(manager: TaskManager, name: str, tasks_dir: Path, field: str) -> str | dict[str, Any]:
    """The task by its name; one that names files of rows in `tasks_dir` as a config that reads them with our reader."""
    path = manager.task_index[name].yaml_path
    config = load_yaml(path) if path else {}
    named = (config.get("dataset_kwargs") or {}).get("data_files")
    if "task" not in config or "group" in config or config.get("dataset_path") not in ("json", "parquet") or not named:
        return name
    splits = named if isinstance(named, dict) else {"train": named}
    files = {
        split: [tasks_dir / file for file in ([found] if isinstance(found, str) else found)]
        for split, found in splits.items()
    }
    for file in chain(*files.values()):
        if not file.is_file() or kind_of(file) not in (".jsonl", ".parquet"):
            return name
    return {**config, "custom_dataset": partial(_rows_of, files, field)}


def _rows_of(files: dict[str, list[Path]], field: str, **_: object) -> DatasetDict:
    """Split -> the rows of its files. Called by the harness, which passes the task's metadata along."""
    return DatasetDict(
        {
            split: Dataset.from_list([dict(row) for path in paths for row in _rows(path, field)])
            for split, paths in files.items()
        }
    )


def _rows(path: Path, field: str) -> Iterator[Mapping[str, Any]]:
    rows = jsonl_rows(path, field) if kind_of(path) == ".jsonl" else parquet_rows(path, (), field)
    return (row for _, row in rows)


def _unsuitable(name: str, reason: str, pointer: str) -> UnsuitableTask:
    return UnsuitableTask(f"task {name} cannot be run: {reason}", "choose another task", field=f"{pointer}/tasks")


def _task_manager(names: Sequence[str], tasks_dir: Path, pointer: str) -> TaskManager:
    """A manager that knows all of `names`; the harness's own 10,000 task files are read only where they are needed."""
    manager = TaskManager(include_path=tasks_dir, include_defaults=False)
    local = manager.all_tasks
    if not set(names) <= set(local):
        manager = TaskManager(include_path=tasks_dir)
    if unknown := sorted(set(names) - set(manager.all_tasks)):
        raise UnknownTask(
            f"no task is called {', '.join(unknown)}",
            f"local tasks: {', '.join(local) or 'none'}; the harness's own: `lm-eval ls tasks`",
            field=f"{pointer}/tasks",
        )
    return manager

"""The applications: one file each, found by its name.

A task says how a record becomes a conversation to learn from, how the model's answer is read, and how it is measured.
To add one, write `gpt_keras/tasks/NAME.py` with a `Task` called `TASK`; or give a command the path of such a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from gpt_keras.data.errors import InputError
from gpt_keras.data.records import read_records
from gpt_keras.tasks.task import MappedTask, Record, Task


def task_names() -> list[str]:
    """The names of the tasks there are."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if name not in ("task", "metrics"))


def find_task(name: str) -> Task:
    """The task of this name, or in the file of this path.

    Raises:
        InputError: There is none.
    """
    if name.endswith(".py"):
        return _from_file(Path(name))
    if name not in task_names():
        raise InputError(f"there is no task {name}; tasks are {', '.join(task_names())}, or a .py file with a TASK")
    task: Task = importlib.import_module(f"{__name__}.{name}").TASK
    task.name = name
    return task


def read_task_records(sources: Sequence[str], task: MappedTask) -> list[Record]:
    """Records, each seen to be what the task expects.

    Raises:
        InputError: Naming the file and line of one that is not, or there is none.
    """
    records = []
    for name, record in read_records(sources, task.fields):
        try:
            task.conversations(record)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        records.append(record)
    if not records:
        raise InputError(f"{', '.join(sources)}: there is no record in it")
    return records


def _from_file(path: Path) -> Task:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever is wrong with it
        raise InputError(f"{path}: cannot be loaded ({type(error).__name__}: {error})") from error
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise InputError(f"{path}: it defines no TASK that is a gpt_keras.tasks.task.Task")
    task.name = str(path)
    return task

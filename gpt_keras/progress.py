"""How commands show long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from gpt_keras.data.preparation import Progress

LOG_SECONDS = 30.0


@contextlib.contextmanager
def preparation_progress(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Yields what to call as a preparation goes on: documents, MB, MB/s and the time left of each stage."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn(compact=True))
    with Bar(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, words="")
        stage, began, begin_bytes, said = "", 0.0, 0, 0.0

        def report(progress: Progress) -> None:
            nonlocal stage, began, begin_bytes, said
            now = time.monotonic()
            if progress.stage != stage:
                stage, began, begin_bytes, said = progress.stage, now, progress.bytes, now
                bar.reset(task, description=stage, total=progress.total_bytes)
            rate = (progress.bytes - begin_bytes) / max(now - began, 1e-9) / 1e6
            words = f"{progress.documents:,} documents"
            if progress.bytes:
                words += f", {progress.bytes / 1e6:,.1f} MB, {rate:.1f} MB/s"
            bar.update(task, completed=progress.bytes, total=progress.total_bytes, words=words)
            if not console.is_terminal and now - said > LOG_SECONDS:
                said = now
                left = ""
                if progress.total_bytes and rate > 0:
                    left = f", {(progress.total_bytes - progress.bytes) / rate / 6e7:.1f} minutes left"
                console.print(f"{stage}: {words}{left}", highlight=False, soft_wrap=True)

        yield report

"""Bars on standard error for what takes long at start-up.

Owns how they look. Knows nothing of what is loaded or recorded.
"""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TransferSpeedColumn,
)


@contextlib.contextmanager
def loading_progress(shown: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Bytes read, and how fast: to be called with (tensor, bytes done, all bytes)."""
    if not shown:
        yield None
        return
    columns = (
        TextColumn("loading weights"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[tensor]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, tensor="")

        def on_progress(tensor: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, tensor=tensor)

        yield on_progress


@contextlib.contextmanager
def recording_progress(shown: bool, count: int) -> Iterator[Callable[[int], None]]:
    """Graphs recorded of `count`: to be called with the rows of each."""
    columns = (TextColumn("recording CUDA graphs"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=count)
        yield lambda rows: bar.advance(task)

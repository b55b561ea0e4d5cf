"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY = 10.0
"""Seconds between plain lines."""


class Advance(Protocol):
    """Call with the amount done, in the unit that the bar was opened with, and an optional note."""

    def __call__(self, amount: float = 1.0, note: str = "") -> None: ...


@contextmanager
def progress(title: str, total: float, unit: str) -> Iterator[Advance]:
    """Show how far some work is.

    Args:
        title: What is being done, such as `transcribe`.
        total: The whole, in `unit`.
        unit: What is counted, such as `s of audio`, `steps` or `cuts`.
    """
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns) as bar:
            task = bar.add_task(title, total=total, note="")

            def advance_bar(amount: float = 1.0, note: str = "") -> None:
                bar.update(task, advance=amount, note=note)

            yield advance_bar
        return
    start = last = time.monotonic()
    done = 0.0

    def advance_lines(amount: float = 1.0, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= LINE_EVERY and done > 0:
            left = (now - start) * max(total - done, 0) / done
            line = f"{title}: {done:.0f}/{total:.0f} {unit}, {left:.0f} s left {note}"
            print(line.rstrip(), file=sys.stderr, flush=True)
            last = now

    yield advance_lines

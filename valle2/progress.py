"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, which `read_line` reads again."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from valle2.types import Seconds

LINE_EVERY = 10.0
"""Seconds between plain lines."""


class Advance(Protocol):
    """Call with the amount done, in the unit that the bar was opened with, and an optional note."""

    def __call__(self, amount: float = 1.0, note: str = "") -> None: ...


@dataclass(frozen=True)
class Progressed:
    """What a plain line says."""

    title: str
    done: float
    total: float
    unit: str
    left: Seconds
    note: str = ""
    """Such as `loss 2.311, 41.2 h/h`."""

    def __str__(self) -> str:
        line = f"{self.title}: {self.done:.0f}/{self.total:.0f} {self.unit}, {self.left:.0f} s left"
        return f"{line}, {self.note}" if self.note else line


_LINE = re.compile(r"([\w-]+): (\d+)/(\d+) ([^,]+), (\d+) s left(?:, (.+))?")


def read_line(line: str) -> Progressed | None:
    """What a line says of progress, None if it is about something else."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return None
    title, done, total, unit, left, note = found.groups()
    return Progressed(title, float(done), float(total), unit, float(left), note or "")


@contextmanager
def progress(title: str, total: float, unit: str, done: float = 0.0) -> Iterator[Advance]:
    """Show how far some work is.

    Args:
        title: What is being done, such as `transcribe`.
        total: The whole, in `unit`.
        unit: What is counted, such as `s of audio`, `steps` or `cuts`.
        done: What an earlier attempt has done of it.
    """
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns) as bar:
            task = bar.add_task(title, total=total, completed=int(done), note="")

            def advance_bar(amount: float = 1.0, note: str = "") -> None:
                bar.update(task, advance=amount, note=note)

            yield advance_bar
        return
    start = last = time.monotonic()
    before = done

    def advance_lines(amount: float = 1.0, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= LINE_EVERY and done > before:
            left = (now - start) * max(total - done, 0) / (done - before)
            print(Progressed(title, done, total, unit, left, note), file=sys.stderr, flush=True)
            last = now

    yield advance_lines

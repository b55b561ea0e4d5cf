"""Append-only record of finished items, so that killed work goes on where it stopped."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """One JSON line per finished item; a line that a crash cut short counts as not finished.

    with Journal(work / "done.jsonl") as journal:
        for item in items:
            if item.id not in journal.done:
                journal.add(item.id, compute(item))
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.done: dict[str, Any] = {}
        """Results by item."""

    def __enter__(self) -> "Journal":
        whole = 0
        if self._path.is_file():
            data = self._path.read_bytes()
            whole = data.rfind(b"\n") + 1
            self.done = dict(json.loads(line) for line in data[:whole].splitlines())
        self._file = self._path.open("ab")
        self._file.truncate(whole)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, item: str, result: Any) -> None:
        """Record an item's result, JSON-able, at once."""
        self._file.write(json.dumps([item, result]).encode() + b"\n")
        self._file.flush()
        self.done[item] = result


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows atomically, keys sorted: the same rows are always the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(path.name + ".tmp")
    with building.open("w") as file:
        file.writelines(json_line(row) for row in rows)
    building.replace(path)


def json_line(row: dict[str, Any]) -> str:
    """A row as it stands in a JSONL file."""
    return json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return list(iterate_jsonl(path))


def iterate_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file, one after another."""
    with path.open() as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)

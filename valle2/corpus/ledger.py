"""What earlier runs have found out about the same bytes: a corpus that grows is worked on only where it is new.

A result is found again as long as the item, the parameters, the code and the packages that made it are the same. It is
a shortcut and no output: without it a stage writes the same bytes.
"""

import json
import sqlite3
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from valle2.errors import StorageError
from valle2.stage import digest, file_sha256
from valle2.tracking import home
from valle2.types import Stage


class Ledger:
    """Results by item, kept in `home()` for all workspaces; safe for several threads and processes.

    with Ledger("curate", config.model_dump(), ["valle2.corpus.quality"], ["onnxruntime"]) as ledger:
        result = ledger.get(item)
        if result is None:
            result = compute(item)
            ledger.add(item, result)

    Args:
        stage: Whose.
        inputs: JSON-able value of all else that a result depends on.
        code: Names of the modules that make results.
        packages: Packages that do.
    """

    def __init__(self, stage: Stage, inputs: Any, code: Sequence[str], packages: Sequence[str] = ()) -> None:
        files = [Path(str(sys.modules[name].__file__)) for name in code]
        self._context = digest([inputs, [file_sha256(path) for path in files], [version(name) for name in packages]])
        self._path = home() / "ledger" / f"{stage}.sqlite"
        self._lock = threading.Lock()

    def __enter__(self) -> "Ledger":
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._store = sqlite3.connect(self._path, timeout=60, check_same_thread=False, isolation_level=None)
            self._store.execute("PRAGMA journal_mode=WAL")
            self._store.execute("PRAGMA synchronous=NORMAL")
            self._store.execute("CREATE TABLE IF NOT EXISTS results (item TEXT PRIMARY KEY, result TEXT) WITHOUT ROWID")
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def get(self, item: Any) -> Any | None:
        """The result of a JSON-able item; None if there is none."""
        try:
            with self._lock:
                row = self._store.execute("SELECT result FROM results WHERE item = ?", [self._key(item)]).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return None if row is None else json.loads(row[0])

    def add(self, item: Any, result: Any) -> None:
        """Keep the result, JSON-able and not None, of an item."""
        try:
            with self._lock:
                row = [self._key(item), json.dumps(result)]
                self._store.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", row)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _key(self, item: Any) -> str:
        return digest([self._context, item])

    def _unusable(self, error: Exception) -> StorageError:
        return StorageError(
            f"cannot use {self._path} ({error}); free some space, or remove it: it saves time and holds nothing else"
        )


def heard(row: dict[str, Any]) -> list[Any]:
    """What results about a cut's sound depend on, of the cut."""
    rate = row["recording"]["sampling_rate"]
    return [row["custom"]["sha256"], row["start"], row["duration"], row["channel"], rate]
